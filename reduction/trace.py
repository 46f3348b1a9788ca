"""Watching a reduction at work: which visual tokens stay, and where the content of those that go ends up.

It observes the stages of a real forward pass, `install`'s or the engine's. Filter and correlation come from the view of
a layer, and every compress stage is linear in the states, so the same stages applied to the identity matrix in the
states' place give the exact matrix of one place; the product over places leads from an image's visual tokens to those
left. What attention and MLPs mix between two places is not counted: shares are what the reductions move.
Shapes: b batch, k visual tokens left, n visual tokens of an unreduced image, t tokens of a view.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from reduction import language, stages, vision
from reduction.methods import Place
from reduction.settings import Reduction, ReductionError
from reduction.shapes import ModelShape, from_config
from reduction.tensors import Float, Int
from reduction.views import View, behind, in_raster_order

OBSERVED = (vision, language)
"""Where `reduce_tokens` and `sort_raster` are called."""


@dataclass(frozen=True, slots=True)
class Step:
    """The visual tokens behind one reducing place."""

    place: Place
    kept: Int[Tensor, "b k"]
    """Which visual token each one was or, if made anew, stands for; n for the padding behind a row with fewer."""
    shares: Float[Tensor, "b k n"]
    """What each consists of: its weight on every visual token of the unreduced image."""


@dataclass(slots=True)
class Trace:
    """The steps of one forward pass, in order; empty where nothing was dropped.

    Visual tokens are counted as the decoder sees them unreduced: patches in raster order, behind CLS where it does.
    """

    shape: ModelShape
    steps: list[Step] = field(default_factory=list)

    @property
    def cls(self) -> int:
        """Visual tokens before the first patch."""
        return int(self.shape.vision.keeps_cls)

    def flows(self) -> Float[Tensor, "b n k"]:
        """Where each visual token's content is in the end: its weight in every token left. A row of a token that was
        pruned is zero.

        Raises ReductionError where nothing was dropped.
        """
        if not self.steps:
            raise ReductionError("nothing was dropped, so there is nothing to trace: choose a reduction.")
        return self.steps[-1].shares.transpose(1, 2)

    def add(self, view: View, left: stages.Reduced, transfer: Float[Tensor, "b k t"]) -> None:
        """One place's reduction; `transfer` is the matrix from the view's tokens to those left."""
        kept, transfer = left.kept, transfer.float()
        if view.place == "vision" and self.cls:
            kept = behind(1, kept)
            transfer = torch.stack([torch.block_diag(torch.ones(1, 1).to(row), row) for row in transfer])
        before = self._before(*transfer.shape[::2])
        kept = before.kept.gather(1, kept)
        if left.counts is not None:
            real = left.counts.unsqueeze(1) + kept.shape[1] - left.kept.shape[1]
            kept = kept.masked_fill(torch.arange(kept.shape[1]) >= real, self.shape.vision.visual_tokens)
        self.steps.append(Step(view.place, kept, torch.bmm(transfer, before.shares)))

    def sort(self, order: Int[Tensor, "b k"]) -> None:
        """The tokens left are put in another order."""
        if self.cls and self.steps[-1].place == "vision":
            order = behind(1, order)
        last = self.steps[-1]
        index = order.unsqueeze(-1).expand_as(last.shares)
        self.steps[-1] = Step(last.place, last.kept.gather(1, order), last.shares.gather(1, index))

    def _before(self, rows: int, tokens: int) -> Step:
        """The last step, or the unreduced image for `rows` rows; checks that it fits what comes now."""
        if self.steps:
            last = self.steps[-1]
        else:
            eye = torch.eye(self.shape.vision.visual_tokens)
            every = torch.arange(len(eye)).expand(rows, -1)
            last = Step("vision", every, eye.expand(rows, -1, -1))
        if last.kept.shape != (rows, tokens):
            raise ReductionError(
                f"{rows} rows of {tokens} visual tokens follow {last.kept.shape[0]} rows of {last.kept.shape[1]}: "
                "trace one forward pass at a time, with one question to each image."
            )
        return last


@contextmanager
def observe(model: Any) -> Iterator[Trace]:
    """Traces the one forward pass that is made inside the block, by `install` or the engine, on this thread alone.

    Raises ReductionError, from the forward pass, where a second pass is made or rows share an image.
    """
    trace = Trace(from_config(model.config))
    originals = [(module, module.reduce_tokens, module.sort_raster) for module in OBSERVED]

    def reduce_tokens(
        view: View, states: Tensor, n_drop: int, setting: Reduction, sizes: Tensor | None = None
    ) -> stages.Reduced:
        left = stages.reduce_tokens(view, states, n_drop, setting, sizes)
        eye = torch.eye(states.shape[1], device=states.device, dtype=torch.float32).expand(len(states), -1, -1)
        matrix = stages.reduce_tokens(view, eye, n_drop, setting, sizes).states
        counts = None if left.counts is None else left.counts.cpu()
        trace.add(
            view,
            stages.Reduced(left.states, left.kept.cpu(), None, counts),
            matrix[:, view.first :, view.first :].cpu(),
        )
        return left

    def sort_raster(reduced: stages.Reduced, cells: Tensor) -> stages.Reduced:
        trace.sort(in_raster_order(cells).cpu())
        return stages.sort_raster(reduced, cells)

    try:
        for module in OBSERVED:
            vars(module).update(reduce_tokens=reduce_tokens, sort_raster=sort_raster)
        yield trace
    finally:
        for module, reducing, sorting in originals:
            vars(module).update(reduce_tokens=reducing, sort_raster=sorting)
