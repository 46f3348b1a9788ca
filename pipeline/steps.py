"""Decoding steps that are run as they come."""

from __future__ import annotations

from torch import Tensor

from pipeline.decoder import Decoder
from reduction.tensors import Float, Int


class EagerSteps:
    """`Decoder.step` on a cache of its own."""

    def __init__(self, decoder: Decoder, rows: int, base: tuple[int, ...], room: int) -> None:
        self._decoder = decoder
        self.cache = decoder.new_cache(rows, base, room)

    def step(self, tokens: Int[Tensor, " q"], own: Int[Tensor, " q"], longest: int, even: bool) -> Float[Tensor, "q v"]:
        return self._decoder.step(tokens, own, longest, self.cache.part(0, len(tokens)), even)

    def keep_rows(self, rows: Int[Tensor, " r"]) -> None:
        self.cache.move_up(rows)
