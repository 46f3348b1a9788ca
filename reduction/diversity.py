"""Filters that choose a set of tokens unlike each other. Greedy: a step per token, each a few operations on a batch.

Shapes: b batch, n visual tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reduction.filter import Partition, keep_set
from reduction.matching import unit
from reduction.settings import Reduction
from reduction.tensors import Float, Int
from reduction.views import View

_AT_ONCE = 8
"""Tokens that VisPruner removes in a step."""


def likeness(view: View) -> Float[Tensor, "b n n"]:
    """Cosines between the states of all tokens."""
    states = unit(view.states)
    return torch.bmm(states, states.transpose(1, 2))


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
