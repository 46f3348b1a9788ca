"""Compress: how is it merged? New kept tokens from old kept tokens, dropped tokens and their correlation C.

Shapes: b batch, s dropped tokens, t kept tokens, w width.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import torch
from torch import Tensor

from reduction.tensors import Bool, Float


def quantile_count(epsilon: float, count: int) -> int:
    """How many of `count` different values lie at or above their ε-quantile: n - ⌈ε (n - 1)⌉, 1 at least.

    The linear-interpolation quantile lies at rank ε (n - 1) from below, so 2 of 530 at ε = 0.998. The subtracted
    billionth absorbs the rounding of the product.
    """
    return count - max(0, ceil(epsilon * (count - 1) - 1e-9))


def chosen_targets(correlation: Float[Tensor, "b s t"], epsilon: float) -> Bool[Tensor, "b s t"]:
    """J of Eq. 2: the targets at or above the ε-quantile of each dropped token's row."""
    kept = quantile_count(epsilon, correlation.shape[-1])
    threshold = correlation.topk(kept, dim=-1).values[..., -1:]
    return correlation >= threshold


def merge(
    targets: Float[Tensor, "b t w"],
    sources: Float[Tensor, "b s w"],
    correlation: Float[Tensor, "b s t"],
    epsilon: float,
) -> Float[Tensor, "b t w"]:
    """Eq. 2: x_j ← (x_j + Σ_i α_ij x_i) / (1 + Σ_i α_ij), α proportional to C over each dropped token's J."""
    chosen = correlation.masked_fill(~chosen_targets(correlation, epsilon), 0.0)
    total = chosen.sum(-1, keepdim=True).clamp_min(torch.finfo(chosen.dtype).tiny)
    return _weighted(targets, sources, chosen / total)


def average(
    targets: Float[Tensor, "b t w"],
    sources: Float[Tensor, "b s w"],
    correlation: Float[Tensor, "b s t"],
    epsilon: float,
) -> Float[Tensor, "b t w"]:
    """Plain mean of each target and every dropped token whose J holds it: α is 1 there."""
    return _weighted(targets, sources, chosen_targets(correlation, epsilon).to(correlation.dtype))


def _weighted(
    targets: Float[Tensor, "b t w"], sources: Float[Tensor, "b s w"], weights: Float[Tensor, "b s t"]
) -> Float[Tensor, "b t w"]:
    share = 1 / (1 + weights.sum(1).unsqueeze(-1))
    summed = torch.baddbmm(targets, weights.transpose(1, 2).to(sources.dtype), sources)
    return summed * share.to(summed.dtype)


Compression = Callable[
    [Float[Tensor, "b t w"], Float[Tensor, "b s w"], Float[Tensor, "b s t"], float], Float[Tensor, "b t w"]
]

MERGES: dict[str, Compression] = {"merge": merge, "mean": average}
"""Compress stages that need a correlation; `prune` needs none and leaves the kept tokens as they are."""
