"""LLaVA-PruMerge (Shang et al. 2024), at a fixed count or keeping outliers: kept patches take in those nearest.

Shapes: b batch, n patches, k kept, s dropped, w width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reduction.attention import raw_scores, take
from reduction.compress import Merged, Sizes
from reduction.filter import Partition, count_outliers, drop_highest
from reduction.matching import unit
from reduction.patches import Patches
from reduction.settings import Reduction, ReductionError
from reduction.tensors import Float, Int

_NEAREST = 32
"""Dropped patches that a kept one takes in."""


def _attention(patches: Patches) -> Float[Tensor, "b n"]:
    """What CLS pays each patch, with all heads taken as one."""
    if patches.first == 0:
        raise ReductionError("prumerge reads the attention of CLS, and this model's tower has no CLS token.")
    scores = raw_scores(patches.queries[:, :1], patches.keys, patches.queries.shape[-1] ** -0.5)
    return scores.softmax(-1)[:, 0, 1:]


def outliers(patches: Patches, reduction: Reduction) -> Int[Tensor, " b"]:
    """How many patches get attention above Q3 + 1.5 (Q3 - Q1), Q1 and Q3 the image's own quartiles; 1 at least."""
    return count_outliers(_attention(patches))


def most_attended(patches: Patches, n_drop: int, reduction: Reduction) -> Partition:
    """The patches that CLS pays most attention stay."""
    return drop_highest(-_attention(patches), n_drop)


def nearest_and_all(patches: Patches, split: Partition, reduction: Reduction) -> Float[Tensor, "b s u"]:
    """The attention of CLS on each dropped patch, for every kept patch whose 32 nearest keys hold it; and, last, for
    the one token made of all that are dropped."""
    weights = _attention(patches).gather(1, split.dropped).unsqueeze(-1)
    keys = unit(patches.keys[:, patches.first :])
    likeness = torch.bmm(take(keys, split.dropped), take(keys, split.kept).transpose(1, 2))
    nearest = likeness.topk(min(_NEAREST, likeness.shape[1]), dim=1).indices
    chosen = torch.zeros_like(likeness).scatter(1, nearest, 1.0)
    return torch.cat([chosen * weights, weights], dim=2)


def add(
    targets: Float[Tensor, "b k w"],
    sources: Float[Tensor, "b s w"],
    correlation: Float[Tensor, "b s u"],
    reduction: Reduction,
    sizes: Sizes,
) -> Merged:
    """x_j + Σ_i C_ij x_i for every kept token, and the last column's sum as a token made anew."""
    summed = torch.bmm(correlation.transpose(1, 2).to(sources.dtype), sources)
    return torch.cat([targets + summed[:, :-1], summed[:, -1:]], dim=1), None
