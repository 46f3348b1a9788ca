"""Recorded steps, and the memory for keys and values that they work in, kept from batch to batch.

Engines that take turns, as the settings of a comparison do, share one stretch of memory: each engine's own would not
fit beside those of dozens of settings. What one leaves in it is overwritten or cleared by the next.
"""

from __future__ import annotations

import torch

from pipeline.decoder import Decoder
from pipeline.step_graphs import StepGraphs
from pipeline.stopwatch import Stopwatch
from reduction.tensors import Float


class KeptSteps:
    """The recordings of some engines' decoders, of which one decodes at a time."""

    def __init__(self) -> None:
        self._memory: Float[torch.Tensor, " v"] | None = None
        self._steps: dict[Decoder, StepGraphs] = {}

    def begin(self, decoder: Decoder, rows: int, base: tuple[int, ...], room: int, stopwatch: Stopwatch) -> StepGraphs:
        """A decoder's steps for a batch: those there are, where their cache is large enough, or new ones, which tell
        `stopwatch` what recording takes.
        """
        steps = self._steps.get(decoder)
        if steps is not None and steps.take(rows, base, room):
            return steps
        self._steps.pop(decoder, None)
        needed = StepGraphs.values(decoder, rows, base, room)
        if self._memory is None or len(self._memory) < needed:
            # First, so that the old memory and the new are never held at once.
            self.clear()
            weight = decoder.head.weight
            self._memory = torch.zeros(needed, dtype=weight.dtype, device=weight.device)
        self._steps[decoder] = StepGraphs(decoder, rows, base, room, self._memory, stopwatch)
        return self._steps[decoder]

    def of(self, decoder: Decoder) -> StepGraphs | None:
        """A decoder's steps, where some are kept."""
        return self._steps.get(decoder)

    def clear(self) -> None:
        """Give the memory back, and with it all recordings: they work in it."""
        self._steps.clear()
        self._memory = None

    def spare_bytes(self, decoder: Decoder) -> int:
        """Bytes kept that a decoder would not need if it were alone."""
        if self._memory is None:
            return 0
        steps = self._steps.get(decoder)
        return self._memory.nbytes - (steps.bytes if steps else 0)
