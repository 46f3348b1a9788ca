"""A shard that is worked on in slices: which there are, and when all of them are in."""

from __future__ import annotations

import itertools
from dataclasses import replace

from pipeline.records import ShardRef, SliceReport
from pipeline.tasks import END, Assembly, Slice, Task

PIECES = 8
"""Slices that one is cut into which has killed its replicas: more than two, as every round costs replicas."""


class Division:
    """The slices of one shard.

    The first lease is for `END`: only by reading to the end is it known how many samples a tar holds.

    Args:
        parts: how many slices are wanted.
    """

    def __init__(self, ref: ShardRef, parts: int) -> None:
        self.ref, self.parts = replace(ref, task=None), parts
        self.failures = 0
        self._window = 1
        self._open = 1
        self._done: list[Slice] = []

    def finished(self, part: Slice, report: SliceReport) -> list[Task]:
        """What is to be done once a slice is staged: slices at first, in the end the assembly."""
        self._open -= 1
        self._done.append(part)
        if part == END:
            self._window = report.window
            slices = cut(0, report.numbered, self.parts, report.window)
            self._open += len(slices)
            if slices:
                return list(slices)
        if self._open:
            return []
        return [Assembly(tuple(sorted(self._done, key=lambda one: one.first)))]

    def narrowed(self, part: Slice, reason: str) -> list[Slice]:
        """Smaller slices for one that has killed its replicas; a sample alone is condemned."""
        length = (part.stop or 0) - part.first
        if length <= 1:
            return [replace(part, condemned=reason)]
        slices = cut(part.first, part.first + length, PIECES, self._window if length > self._window else 1)
        self._open += len(slices) - 1
        return slices


def cut(first: int, stop: int, parts: int, grain: int) -> list[Slice]:
    """At most `parts` slices of like length, each but the last a multiple of `grain` samples long."""
    grains = -(-(stop - first) // grain)
    parts = min(parts, grains)
    borders = [min(stop, first + grain * (number * grains // parts)) for number in range(parts + 1)] if grains else []
    return [Slice(*pair) for pair in itertools.pairwise(borders)]
