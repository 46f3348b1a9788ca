"""A shard that is worked on in slices: which there are, and when all of them are in."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from pipeline.records import ShardRef, SliceReport
from pipeline.tasks import END, Assembly, Begun, Slice, Task

PIECES = 8
"""Slices that one is cut into which has killed its replicas: more than two, as every round costs replicas."""


class Division:
    """The slices of one shard.

    The first lease is for `END`: only by reading to the end is it known how many samples a tar holds. A shard that was
    begun goes on with what is not staged.

    Args:
        parts: how many slices are wanted.
    """

    def __init__(self, ref: ShardRef, parts: int) -> None:
        self.ref, self.parts = replace(ref, task=None), parts
        self.failures = 0
        self._begun = ref.task if isinstance(ref.task, Begun) else Begun(())
        self._window = self._begun.window
        self._open = 0
        self._done: list[Slice] = list(self._begun.staged)

    def first(self) -> list[Task]:
        """What is to be done at first."""
        if END in self._done:
            return self._rest(self._begun.numbered)
        self._open = 1
        return [END]

    def finished(self, part: Slice, report: SliceReport) -> list[Task]:
        """What is to be done once a slice is staged: slices at first, in the end the assembly."""
        self._open -= 1
        self._done.append(part)
        if part == END:
            self._window = report.window
            self._done = [one for one in self._done if one == END or (one.stop or 0) <= report.numbered]
            return self._rest(report.numbered)
        return [] if self._open else [self._assembly()]

    def narrowed(self, part: Slice, reason: str) -> list[Slice]:
        """Smaller slices for one that has killed its replicas; a sample alone is condemned."""
        length = (part.stop or 0) - part.first
        if length <= 1:
            return [replace(part, condemned=reason)]
        slices = cut(part.first, part.first + length, PIECES, self._window if length > self._window else 1)
        self._open += len(slices) - 1
        return slices

    def _rest(self, numbered: int) -> list[Task]:
        """The slices that are not staged; the assembly where there are none."""
        slices: list[Task] = []
        for first, stop in gaps(self._done, numbered):
            slices += cut(first, stop, -(-(stop - first) * self.parts // numbered), self._window)
        self._open += len(slices)
        return slices or [self._assembly()]

    def _assembly(self) -> Assembly:
        return Assembly(tuple(sorted(self._done, key=lambda one: one.first)))


def gaps(slices: Sequence[Slice], numbered: int) -> list[tuple[int, int]]:
    """The stretches of `numbered` samples, (first, stop), that slices which do not overlap leave out."""
    inside = sorted((one.first, one.stop) for one in slices if one.stop is not None)
    borders = [0, *itertools.chain.from_iterable(inside), numbered]
    return [(first, stop) for first, stop in zip(borders[::2], borders[1::2], strict=True) if first < stop]


def cut(first: int, stop: int, parts: int, grain: int) -> list[Slice]:
    """At most `parts` slices of like length; they meet at multiples of `grain`."""
    lowest, highest = first // grain, -(-stop // grain)
    parts = min(parts, highest - lowest)
    middle = [grain * (lowest + number * (highest - lowest) // parts) for number in range(1, parts)]
    return [Slice(*pair) for pair in itertools.pairwise([first, *middle, stop])] if first < stop else []
