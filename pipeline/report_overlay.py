"""A setting's kept and dropped patches over a picture, as SVG paths in units of one patch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from pipeline.comparison import Flow

Move = tuple[int, int, float]
"""Dropped cell, the kept cell that most of it went to, its share."""


def dropped_path(kept: Iterable[int], grid: int) -> str:
    """The cells that are not kept, as one path of horizontal runs."""
    stays, parts = set(kept), []
    for row in range(grid):
        start = None
        for column in range(grid + 1):
            gone = column < grid and row * grid + column not in stays
            if gone and start is None:
                start = column
            elif not gone and start is not None:
                parts.append(f"M{start} {row}h{column - start}v1H{start}z")
                start = None
    return "".join(parts)


def strongest(moved: Sequence[Move], most: int) -> list[Move]:
    """The `most` moves with the largest shares; of about equal ones some from all over the picture."""

    def rank(move: Move) -> tuple[int, float]:
        # Multiples of the golden ratio's fraction spread evenly, whatever number of them is taken.
        return -round(10 * move[2]), (move[0] * 0.6180339887498949) % 1

    return sorted(moved, key=rank)[:most]


def arrows_path(flow: Flow, grid: int, most: int) -> str:
    """Arrows from the middles of dropped cells to those of the cells that took them in, heads included."""
    return "".join(_arrow(divmod(move[0], grid), divmod(move[1], grid)) for move in strongest(flow.moved, most))


def _arrow(source: tuple[int, int], target: tuple[int, int]) -> str:
    (y1, x1), (y2, x2) = ((row + 0.5, column + 0.5) for row, column in (source, target))
    angle = math.atan2(y2 - y1, x2 - x1)
    head = [
        (x2 - 0.75 * math.cos(angle + side), y2 - 0.75 * math.sin(angle + side)) for side in (-math.pi / 7, math.pi / 7)
    ]
    left, right = (f"{x:.1f} {y:.1f}" for x, y in head)
    return f"M{x1:g} {y1:g}L{x2:g} {y2:g}M{left}L{x2:g} {y2:g}L{right}"
