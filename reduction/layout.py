"""Padded prompts with one image each, rearranged so that the image stands at one place in all rows.

Prompts of different length, padded on the left or the right, become prefix (padded on the left), visual block and
suffix (padded on the right), each of one length. Shapes: b batch, l source tokens, p prefix, s suffix, n visual tokens
left, t = p + n + s, w width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reduction.attention import take
from reduction.settings import ReductionError
from reduction.tensors import Bool, Float, Int


@dataclass(frozen=True)
class Layout:
    """Where each token of the arranged prompt comes from."""

    prefix_index: Int[Tensor, "b p"]
    prefix: Bool[Tensor, "b p"]
    """Which prefix places hold real tokens."""
    suffix_index: Int[Tensor, "b s"]
    suffix: Bool[Tensor, "b s"]
    image_start: Int[Tensor, "b 1"]
    """Source position of the first placeholder."""
    full: int
    """Placeholders per row."""
    length: int
    """Source tokens per row, padding included."""
    padded: bool
    visual: Bool[Tensor, "b n"] | None = None
    """Which visual tokens are no padding, where images keep unequal numbers; None: all."""

    @classmethod
    def of(cls, placeholders: Bool[Tensor, "b l"], real: Bool[Tensor, "b l"], full: int) -> Layout:
        """The layout of prompts with `full` adjacent placeholders each; ReductionError for any others."""
        _check_placeholders(placeholders, full)
        start = placeholders.int().argmax(1, keepdim=True)
        place = torch.arange(placeholders.shape[1], device=placeholders.device)
        before, after = real & (place < start), real & (place >= start + full)
        widths = torch.stack([before.sum(1), after.sum(1)]).amax(1).tolist()
        # A stable sort of the flags lines the real tokens up at the right end, or at the left end.
        left = before.int().argsort(dim=1, stable=True)[:, placeholders.shape[1] - widths[0] :]
        right = (~after).int().argsort(dim=1, stable=True)[:, : widths[1]]
        prefix, suffix = before.gather(1, left), after.gather(1, right)
        return cls(
            prefix_index=left,
            prefix=prefix,
            suffix_index=right,
            suffix=suffix,
            image_start=start,
            full=full,
            length=placeholders.shape[1],
            padded=not bool(prefix.all() & suffix.all()),
        )

    @property
    def start(self) -> int:
        """Length of the prefix: where the visual block starts."""
        return self.prefix.shape[1]

    def arrange(self, tokens: Float[Tensor, "b l w"], visual: Float[Tensor, "b n w"]) -> Float[Tensor, "b t w"]:
        """Prefix and suffix from the source tokens, the visual block from `visual`."""
        return torch.cat([take(tokens, self.prefix_index), visual, take(tokens, self.suffix_index)], dim=1)

    def real(self, visual: int) -> Bool[Tensor, "b t"]:
        """Which tokens are no padding, with `visual` visual tokens left."""
        tokens = self.prefix.new_ones(len(self.prefix), visual) if self.visual is None else self.visual
        return torch.cat([self.prefix, tokens, self.suffix], dim=1)

    def left(self, visual: int) -> int | Int[Tensor, "b 1"]:
        """How many of `visual` visual tokens each row really has."""
        return visual if self.visual is None else self.visual.sum(1, keepdim=True)

    def with_visual(self, real: Bool[Tensor, "b n"]) -> Layout:
        """This layout with unequal numbers of visual tokens, each row's padded to the longest."""
        return replace(self, visual=real, padded=self.padded or not bool(real.all()))

    def positions(self, source: Int[Tensor, "b l"], kept: Int[Tensor, "b n"], mode: str) -> Int[Tensor, "b t"]:
        """Position ids of the arranged prompt from those of the source tokens.

        "original": every token keeps its own. "packed": visual tokens and suffix close up over the dropped ones.
        """
        suffix = source.gather(1, self.suffix_index)
        if mode == "original":
            visual = source.gather(1, self._source(kept))
        else:
            visual = source.gather(1, self.image_start) + torch.arange(kept.shape[1], device=kept.device)
            suffix = suffix - (self.full - self.left(kept.shape[1]))
        return torch.cat([source.gather(1, self.prefix_index), visual, suffix], dim=1)

    def _source(self, kept: Int[Tensor, "b n"]) -> Int[Tensor, "b n"]:
        """Source positions of visual tokens; padding's may be any."""
        return (self.image_start + kept).clamp_max(self.length - 1)

    def spread(self, hidden: Float[Tensor, "b t w"], kept: Int[Tensor, "b n"]) -> Float[Tensor, "b l w"]:
        """States at the source positions; a dropped token's position shows the last token before it that is left.

        So the logits at any real position predict the next token from all that the decoder still had before it.
        """
        count, device = kept.shape[1], kept.device
        places = torch.arange(hidden.shape[1], device=device).expand(len(kept), -1)
        slot = torch.full((len(kept), self.length), -1, device=device)
        index = torch.cat([self.prefix_index, self._source(kept), self.suffix_index], dim=1)
        slot = slot.scatter_reduce(1, index, places.masked_fill(~self.real(count), -1), "amax")
        # Tokens need not stand in the order of their source positions: the last position, not the last slot, counts.
        last = torch.where(slot >= 0, torch.arange(self.length, device=device), -1).cummax(1).values
        return take(hidden, slot.gather(1, last.clamp_min(0)).clamp_min(0))


def _check_placeholders(placeholders: Bool[Tensor, "b l"], full: int) -> None:
    counts = placeholders.sum(1)
    for row, count in enumerate(counts.tolist()):
        if count != full:
            raise ReductionError(
                f"row {row} of the batch has {count} image placeholders instead of {full}: "
                "under a reduction every row must show exactly one image."
            )
    place = torch.arange(placeholders.shape[1], device=placeholders.device)
    last = torch.where(placeholders, place, 0).amax(1)
    if bool((last - placeholders.int().argmax(1) + 1 != full).any()):
        raise ReductionError("the image placeholders of a row do not stand together: they must form one block.")
