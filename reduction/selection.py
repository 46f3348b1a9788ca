"""Filters that need no comparison of tokens: by importance, at random, at equal distances, one in each window.

Shapes: b batch, n visual tokens, k kept, s dropped.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reduction.filter import Partition, drop_highest, drop_random, drop_stride, keep_set
from reduction.schedule import window_counts
from reduction.settings import Reduction
from reduction.tensors import Float, Int
from reduction.views import Features, View


def random_tokens(view: View, n_drop: int, reduction: Reduction) -> Partition:
    """A seeded random set stays, the same for every image."""
    (batch, count), device = view.states.shape[:2], view.states.device
    return drop_random(batch, count, n_drop, reduction.seed, device)


def stride_tokens(view: View, n_drop: int, reduction: Reduction) -> Partition:
    """Tokens at equal distances stay."""
    (batch, count), device = view.states.shape[:2], view.states.device
    return drop_stride(batch, count, n_drop, device)


def most_important(view: View, n_drop: int, reduction: Reduction) -> Partition:
    """The most important tokens stay: by CLS in the encoder (EViT, HiRED), by the last token in the decoder (FastV)."""
    return drop_highest(-view.importance, n_drop)


def _windows(view: Features, n_keep: int) -> Int[Tensor, " n"]:
    """The window that each patch lies in, of as many as tokens shall stay."""
    rows, columns = window_counts(n_keep, view.grid)
    place = torch.arange(view.grid, device=view.states.device)
    return ((place * rows // view.grid).unsqueeze(1) * columns + place * columns // view.grid).flatten()


def one_per_window(view: Features, n_drop: int, reduction: Reduction) -> Partition:
    """The grid is cut into equal windows, and the first patch of each stays to stand for it."""
    (batch, count), n_keep = view.states.shape[:2], view.states.shape[1] - n_drop
    order = _windows(view, n_keep).argsort(stable=True)
    starts = torch.searchsorted(_windows(view, n_keep)[order], torch.arange(n_keep, device=order.device))
    return keep_set(order[starts].expand(batch, -1), count)


def same_window(view: Features, split: Partition, reduction: Reduction) -> Float[Tensor, "b s k"]:
    """1 where a dropped token lies in the window that the kept one stands for, else 0."""
    window = _windows(view, split.kept.shape[1])
    same = window[split.dropped].unsqueeze(2) == window[split.kept].unsqueeze(1)
    return same.to(torch.promote_types(view.states.dtype, torch.float32))
