"""Decoding steps recorded once and replayed, as CUDA graphs: a step's hundreds of small kernels cost one launch.

A graph has fixed shapes and addresses. So the keys and values of all batches lie in one cache that stays, rows are
rounded up (`recorded_rows`) and stretches of keys to `STRETCH` entries; what is rounded up is masked, as padding is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.decoder import Decoder
from pipeline.stopwatch import Stopwatch
from reduction.tensors import Float, Int

STRETCH = 64
WARM_UPS = 2
"""Runs before recording, in which libraries choose kernels and allocate what they keep."""


@dataclass(frozen=True, slots=True)
class _Recorded:
    tokens: Int[Tensor, " r"]
    own: Int[Tensor, " r"]
    logits: Float[Tensor, "r v"]
    replay: Callable[[], None]


class StepGraphs:
    """Steps of many batches, on one cache. On a CPU a step is run, not replayed, with the same shapes."""

    def __init__(
        self,
        decoder: Decoder,
        rows: int,
        base: tuple[int, ...],
        room: int,
        memory: Float[Tensor, " v"],
        stopwatch: Stopwatch,
    ) -> None:
        """`memory`: where the cache is to lie, with at least `values` numbers. `stopwatch`: gets what recording takes,
        as the stage `recording`.
        """
        self._decoder = decoder
        self._stopwatch = stopwatch
        self._whole = decoder.new_cache(recorded_rows(rows), base, _stretched(room), memory)
        self.cache = self._whole.part(0, rows)
        """The present batch's rows."""
        self._recorded: dict[tuple[int, int], _Recorded] = {}
        self._pool: Any = None
        """Memory in which all recordings work: one is replayed at a time, and its result is used before the next."""
        self._aside: Any = None
        """The stream that all are recorded on: its own, as what libraries keep for a stream ends with a graph of it."""

    @staticmethod
    def values(decoder: Decoder, rows: int, base: tuple[int, ...], room: int) -> int:
        """How many numbers the cache holds."""
        return decoder.cache_values(recorded_rows(rows), base, _stretched(room))

    @property
    def bytes(self) -> int:
        """Of the cache."""
        return self._whole.bytes

    def take(self, rows: int, base: tuple[int, ...], room: int) -> bool:
        """Begin another batch, where the cache is large enough for it."""
        whole = self._whole
        fits = rows <= whole.rows and room <= whole.room and base == whole.base
        if fits:
            self.cache = whole.part(0, rows)
        return fits

    def step(self, tokens: Int[Tensor, " q"], own: Int[Tensor, " q"], longest: int, even: bool) -> Float[Tensor, "q v"]:
        """What `Decoder.step` returns. It is overwritten by the next step."""
        count, rows, longest = len(tokens), recorded_rows(len(tokens)), min(_stretched(longest), self._whole.room)
        if (rows, longest) not in self._recorded:
            with self._stopwatch.stage("recording"):
                self._recorded[rows, longest] = self._record(rows, longest, tokens, own)
        recorded = self._recorded[rows, longest]
        recorded.tokens[:count].copy_(tokens)
        recorded.own[:count].copy_(own)
        recorded.replay()
        return recorded.logits[:count]

    def keep_rows(self, rows: Int[Tensor, " r"]) -> None:
        self.cache.move_up(rows)

    def _record(self, rows: int, longest: int, tokens: Tensor, own: Tensor) -> _Recorded:
        inputs = tokens.new_zeros(rows), own.new_zeros(rows)
        # The rows' own values: recording then writes the entries that replaying will write again.
        inputs[0][: len(tokens)].copy_(tokens)
        inputs[1][: len(own)].copy_(own)
        cache = self._whole.part(0, rows)

        def run() -> Tensor:
            return self._decoder.step(*inputs, longest, cache)

        if tokens.device.type == "cuda":
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            self._aside = self._aside or torch.cuda.Stream()
            return _Recorded(*inputs, *_cuda_graph(run, self._pool, self._aside))
        logits = run()

        def again() -> None:
            logits.copy_(run())

        return _Recorded(*inputs, logits, again)


def _cuda_graph(run: Callable[[], Tensor], pool: Any, aside: Any) -> tuple[Tensor, Callable[[], None]]:
    """Record what `run` launches on the stream `aside`; returns its result's place and what fills it again."""
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=aside):
        result = run()
    return result, graph.replay


def recorded_rows(count: int) -> int:
    """The rows of the recording that serves `count` rows: a power of two, or three quarters of one."""
    power: int = 1 << (count - 1).bit_length()
    return power * 3 // 4 if power >= 4 and count <= power * 3 // 4 else power


def _stretched(length: int) -> int:
    return -(-length // STRETCH) * STRETCH
