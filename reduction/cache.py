"""Keys and values of a reduced prompt: each decoder layer has as many as tokens entered it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from reduction.layout import Layout
from reduction.settings import ReductionError

NO_ASSISTANCE = (
    "assisted decoding is not possible under a reduction: generate without an assistant and prompt_lookup_num_tokens."
)


class ReducedCache(DynamicCache):
    """A DynamicCache that counts as if nothing had been dropped, so that `generate` keeps its books as usual.

    `get_seq_length` is the length of the unreduced prompt and what was generated; the layers' own lengths are true.
    """

    def __init__(self, config: Any, layout: Layout, visual_lengths: tuple[int, ...]) -> None:
        super().__init__(config=config)
        self.prefix, self.suffix = layout.prefix, layout.suffix
        self.padded, self.full, self.prompt_length = layout.padded, layout.full, layout.length
        self.visual_lengths = visual_lengths
        """Visual tokens that entered each layer, padding of unequal rows included."""
        self.visual = layout.visual
        """Which of them are no padding (b, n), the same in all layers; None: all."""
        self.generated = 0
        """Tokens after the prompt."""
        self.next_position = torch.zeros(len(layout.prefix), 1, dtype=torch.long, device=layout.prefix.device)
        """Position id, in the unreduced numbering, of the next token (b, 1)."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen, the dropped ones included; the same for every layer."""
        return self.prompt_length + self.generated

    def lengths(self) -> tuple[int, ...]:
        """Keys that each layer really holds."""
        return tuple(keys.shape[-2] for keys, *_ in self)

    def prompt_real(self, layer: int) -> Tensor:
        """Which of a layer's prompt keys are no padding (b, p + n + s)."""
        visual = self.visual
        if visual is None:
            visual = self.prefix.new_ones(len(self.prefix), self.visual_lengths[layer])
        return torch.cat([self.prefix, visual, self.suffix], dim=1)

    def dropped(self, layer: int) -> int | Tensor:
        """Visual tokens fewer than in the unreduced prompt, in a layer; (b, 1) where rows differ."""
        return self.full - (self.visual_lengths[layer] if self.visual is None else self.visual.sum(1, keepdim=True))

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._select(torch.arange(len(self.prefix)).repeat_interleave(repeats))

    def _select(self, rows: Tensor) -> None:
        rows = rows.to(self.prefix.device)
        self.prefix, self.suffix = self.prefix[rows], self.suffix[rows]
        self.visual = None if self.visual is None else self.visual[rows]
        self.next_position = self.next_position[rows]

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: assisted decoding would take back tokens."""
        raise ReductionError(NO_ASSISTANCE)
