"""Filter: which tokens go? Scores of redundancy (high goes first), and the split into kept and dropped tokens.

Shapes: b batch, n visual tokens, k kept, s dropped. Equations are those of the FiCoCo paper (arXiv 2411.17686).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from reduction.attention import precise
from reduction.tensors import Bool, Float, Int


class Partition(NamedTuple):
    """Indices of the tokens that stay, in the order they go on in, and of those that go, in any."""

    kept: Int[Tensor, "b k"]
    dropped: Int[Tensor, "b s"]
    eligible: Bool[Tensor, "b k"] | None = None
    """Which of the tokens kept may take in dropped ones; None: all."""


def scaled(scores: Float[Tensor, "b n"], how: str) -> Float[Tensor, "b n"]:
    """Scores brought to one scale over the tokens: "l2" (unit length), "zscore" (mean 0, deviation 1) or "none"."""
    if how == "l2":
        return functional.normalize(scores, dim=1)
    if how == "zscore":
        centred = scores - scores.mean(1, keepdim=True)
        return centred / centred.square().mean(1, keepdim=True).sqrt().clamp_min(1e-12)
    return scores


def redundancy(
    visual: Float[Tensor, "b n"], importance: Float[Tensor, "b n"], weight: float, how: str
) -> Float[Tensor, "b n"]:
    """s = weight * visual - (1 - weight) * importance, each at one scale first.

    Eq. 1 with weight λ and the attention of CLS as importance, Eq. 3 with β and the attention of the text.
    """
    return weight * scaled(visual, how) - (1 - weight) * scaled(importance, how)


def key_distinctness(keys: Float[Tensor, "b n w"], heads: int) -> Float[Tensor, "b n"]:
    """Eq. 9-13, importance without a CLS token: minus the cosine of a head-mean key with the mean of all of them."""
    head_mean = precise(keys).reshape(*keys.shape[:2], heads, -1).mean(2)
    return -functional.cosine_similarity(head_mean, head_mean.mean(1, keepdim=True), dim=-1)


def drop_highest(scores: Float[Tensor, "b n"], n_drop: int) -> Partition:
    """The `n_drop` highest scores go; of equal scores the first ones."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    return Partition(order[:, n_drop:].sort(dim=1).values, order[:, :n_drop])


def count_outliers(weights: Float[Tensor, "b n"]) -> Int[Tensor, " b"]:
    """How many of a row's weights lie above Q3 + 1.5 (Q3 - Q1), Q1 and Q3 its own quartiles; 1 at least."""
    low, high = weights.quantile(weights.new_tensor([0.25, 0.75]), dim=1)
    return (weights > (high + 1.5 * (high - low)).unsqueeze(1)).sum(1).clamp_min(1)


def keep_set(kept: Int[Tensor, "b k"], count: int) -> Partition:
    """The partition of `count` tokens that keeps a given set, for filters that choose one without scores."""
    stays = torch.zeros(len(kept), count, dtype=torch.uint8, device=kept.device).scatter(1, kept, 1)
    order = stays.argsort(dim=1, stable=True)
    n_drop = count - kept.shape[1]
    return Partition(order[:, n_drop:], order[:, :n_drop])


def drop_random(batch: int, count: int, n_drop: int, seed: int, device: torch.device) -> Partition:
    """A seeded random set, the same for every image: a row's fate must not hang on its batch."""
    order = _random_order(count, seed, device).expand(batch, -1)
    return Partition(order[:, n_drop:].sort(dim=1).values, order[:, :n_drop])


@lru_cache(maxsize=1024)
def _random_order(count: int, seed: int, device: torch.device) -> Int[Tensor, n]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + count)
    return torch.randperm(count, generator=generator).to(device)


def drop_stride(batch: int, count: int, n_drop: int, device: torch.device) -> Partition:
    """Tokens at equal distances stay."""
    n_keep = count - n_drop
    kept = (torch.arange(n_keep, device=device) * 2 + 1) * count // (2 * n_keep)
    return keep_set(kept.expand(batch, -1), count)
