"""Tokens on the grid of image patches they came from."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from reduction.tensors import Bool, Float, Int


@lru_cache(maxsize=64)
def _by_window(grid: int, window: int, device: torch.device) -> Int[Tensor, " cells"]:
    """Where each raster index stands when the windows lie one behind the other, all of them whole."""
    place = torch.arange(grid, device=device)
    which, inside = place // window, place % window
    per_side = -(-grid // window)
    windows = which.unsqueeze(1) * per_side + which
    return (windows * window**2 + inside.unsqueeze(1) * window + inside).flatten()


def window_highest(
    scores: Float[Tensor, "b n"], cells: Int[Tensor, "b n"], grid: int, window: int
) -> Bool[Tensor, "b n"]:
    """Whether a token has the highest score among those left in its window; of equal scores the first in raster order.

    `cells` are raster indices on a `grid` x `grid` board, cut into `window` x `window` windows from its upper left;
    windows at the other edges may be smaller.
    """
    batch, windows = len(scores), (-(-grid // window)) ** 2
    place = _by_window(grid, window, scores.device)[cells]
    board = scores.new_full((batch, windows * window**2), -torch.inf).scatter_(1, place, scores)
    board = board.view(batch, windows, -1)
    highest = torch.zeros_like(board, dtype=torch.bool).scatter_(2, board.argmax(-1, keepdim=True), True)
    return highest.flatten(1).gather(1, place)


def local_penalty(
    scores: Float[Tensor, "b n"], cells: Int[Tensor, "b n"], grid: int, window: int, factor: float
) -> Float[Tensor, "b n"]:
    """The highest score of each window raised: times `factor` if positive, divided by it if negative.

    It spreads the drops over the image (FiCoCo-V's local penalty).
    """
    raised = torch.where(scores > 0, scores * factor, scores / factor)
    return torch.where(window_highest(scores, cells, grid, window), raised, scores)
