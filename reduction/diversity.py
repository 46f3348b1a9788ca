"""Filters that choose a set of tokens unlike each other. Greedy: a step per token, each a few operations on a batch.

Shapes: b batch, n visual tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reduction.filter import Partition, keep_set
from reduction.matching import unit
from reduction.relevance import min_max, wanted
from reduction.settings import Reduction
from reduction.tensors import Float, Int
from reduction.views import AskedFeatures, View

_AT_ONCE = 8
"""Tokens that VisPruner removes in a step."""
_LEAST_GAIN = 1e-6
"""Of a token's own L_ii: what is left of it below that is rounding."""


def cosines(states: Float[Tensor, "b n w"]) -> Float[Tensor, "b n n"]:
    """Cosines between all tokens of a row."""
    states = unit(states)
    return torch.bmm(states, states.transpose(1, 2))


def likeness(view: View) -> Float[Tensor, "b n n"]:
    """Cosines between the states of all tokens."""
    return cosines(view.states)


def max_min(view: View, n_drop: int, reduction: Reduction) -> Partition:
    """DivPrune (Alvar et al. 2025): first the token with the farthest nearest neighbour, then always the token
    farthest from all chosen so far."""
    distance = 1 - likeness(view)
    count = distance.shape[1]
    own = torch.eye(count, dtype=torch.bool, device=distance.device)
    chosen = [distance.masked_fill(own, torch.inf).amin(-1).argmax(1, keepdim=True)]
    nearest = torch.full_like(distance[:, 0], torch.inf)
    for _ in range(count - n_drop - 1):
        row = distance.gather(1, chosen[-1].unsqueeze(2).expand(-1, -1, count)).squeeze(1)
        nearest = torch.minimum(nearest, row).scatter(1, chosen[-1], -torch.inf)
        chosen.append(nearest.argmax(1, keepdim=True))
    return keep_set(torch.cat(chosen, dim=1), count)


def conditional_dpp(view: AskedFeatures, n_drop: int, reduction: Reduction) -> Partition:
    """CDPruner (Zhang et al. 2025): the set that a determinantal point process finds most likely, by greedy search,
    with the kernel L_ij = q_i S_ij q_j of likeness S and relevance to the question q between 0 and 1."""
    # Questions about an image have its likeness in common.
    similar = cosines(view.images)
    if view.image is not None:
        similar = similar.index_select(0, view.image)
    quality = min_max(wanted(view, reduction))
    kernel = quality.unsqueeze(2) * similar * quality.unsqueeze(1)
    count = kernel.shape[1]
    return keep_set(greedy_map(kernel, count - n_drop), count)


def greedy_map(kernel: Float[Tensor, "b n n"], n_keep: int) -> Int[Tensor, "b k"]:
    """Tokens in the order in which each raises det(L of those chosen) most (Chen et al. 2018): an incremental Cholesky
    factor, a row of it per step. Where no token raises it above rounding, the largest L_ii among the rest is next."""
    batch, count, _ = kernel.shape
    own = kernel.diagonal(dim1=1, dim2=2)
    floor = _LEAST_GAIN * own
    gain, taken = own, torch.zeros_like(own, dtype=torch.bool)
    rows = kernel.new_zeros(batch, n_keep, count)
    chosen = []
    for step in range(n_keep):
        gain = torch.maximum(gain, floor)
        best = gain.masked_fill(taken, -torch.inf).argmax(1, keepdim=True)
        row = kernel.gather(1, best.unsqueeze(2).expand(-1, -1, count))
        if step:
            before = rows[:, :step]
            factors = before.gather(2, best.unsqueeze(1).expand(-1, step, -1))
            row = row - torch.bmm(factors.transpose(1, 2), before)
        row = row.squeeze(1) * gain.gather(1, best).clamp_min(torch.finfo(gain.dtype).tiny).rsqrt()
        rows[:, step] = row
        gain = gain - row.square()
        taken = taken.scatter(1, best, True)
        chosen.append(best)
    return torch.cat(chosen, dim=1)


def important_and_diverse(view: View, n_drop: int, reduction: Reduction) -> Partition:
    """VisPruner (Zhang et al. 2025): `important_share` of the tokens left by importance, the rest by removing, step by
    step, those of every second token that are most like one of the others."""
    importance = view.importance
    count = importance.shape[1]
    n_important = round(reduction.important_share * (count - n_drop))
    order = importance.argsort(dim=1, descending=True, stable=True)
    rest = order[:, n_important:].sort(dim=1).values
    rest = _unlike(likeness(view), rest, count - n_drop - n_important)
    return keep_set(torch.cat([order[:, :n_important], rest], dim=1), count)


def _unlike(likeness: Float[Tensor, "b n n"], left: Int[Tensor, "b r"], n_keep: int) -> Int[Tensor, "b d"]:
    rows = torch.arange(len(left), device=left.device).view(-1, 1, 1)
    while left.shape[1] > n_keep:
        even, odd = left[:, ::2], left[:, 1::2]
        removed = min(_AT_ONCE, left.shape[1] - n_keep, even.shape[1])
        if odd.shape[1] == 0:
            return left[:, :n_keep]
        closest = likeness[rows, even.unsqueeze(2), odd.unsqueeze(1)].amax(-1)
        stay = closest.argsort(dim=1, descending=True, stable=True)[:, removed:]
        left = torch.cat([even.gather(1, stay), odd], dim=1)
    return left
