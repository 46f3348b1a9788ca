"""Tokens on the grid of image patches they came from."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from reduction.tensors import Bool, Float, Int


def window_highest(
    scores: Float[Tensor, "b n"], cells: Int[Tensor, "b n"], grid: int, window: int
) -> Bool[Tensor, "b n"]:
    """Whether a token has the highest score among those left in its window; of equal scores the first in raster order.

    `cells` are raster indices on a `grid` x `grid` board, cut into `window` x `window` windows from its upper left;
    windows at the other edges may be smaller.
    """
    batch, per_side = len(scores), -(-grid // window)
    board = scores.new_full((batch, grid * grid), -torch.inf).scatter(1, cells, scores)
    margin = per_side * window - grid
    padded = functional.pad(board.view(batch, grid, grid), (0, margin, 0, margin), value=-torch.inf)
    windows = padded.view(batch, per_side, window, per_side, window).transpose(2, 3).flatten(3).flatten(1, 2)
    winner = windows.argmax(-1)
    row, column = cells // grid, cells % grid
    inside = (row % window) * window + column % window
    return winner.gather(1, (row // window) * per_side + column // window) == inside


def local_penalty(
    scores: Float[Tensor, "b n"], cells: Int[Tensor, "b n"], grid: int, window: int, factor: float
) -> Float[Tensor, "b n"]:
    """The highest score of each window raised: times `factor` if positive, divided by it if negative.

    It spreads the drops over the image (FiCoCo-V's local penalty).
    """
    raised = torch.where(scores > 0, scores * factor, scores / factor)
    return torch.where(window_highest(scores, cells, grid, window), raised, scores)
