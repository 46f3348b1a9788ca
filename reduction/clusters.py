"""SparseVLM's recycling (Zhang et al. 2025): the best of what is dropped is clustered, and each cluster averaged.

Density peaks (Rodriguez and Laio 2014) with the density of the nearest neighbours (Du et al. 2016): a centre is dense
and far from anything denser. Shapes: b batch, s dropped, m recycled, c clusters, w width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from reduction.attention import precise, take
from reduction.block import VisualBlock
from reduction.filter import Partition, drop_highest
from reduction.methods import clusters_made, recycled
from reduction.settings import Reduction
from reduction.tensors import Float, Int

NEIGHBOURS = 5


def best_rated(block: VisualBlock, n_drop: int, reduction: Reduction) -> Partition:
    """The visual tokens stay that the raters among the words pay most attention; what goes is in raster order."""
    split = drop_highest(-block.rated, n_drop)
    return split._replace(dropped=split.dropped.sort(dim=1).values)


def clusters(block: VisualBlock, split: Partition, reduction: Reduction) -> Float[Tensor, "b s c"]:
    """The share of each dropped token in each token made anew: equal in a cluster, zero for the worse rated 70 %."""
    count = split.dropped.shape[1]
    rated = block.rated.gather(1, split.dropped)
    best = rated.argsort(dim=1, descending=True, stable=True)[:, : recycled(count)]
    number = clusters_made(count)
    member = density_peaks(take(block.states, split.dropped.gather(1, best)), number)
    weights = functional.one_hot(member, number).to(rated.dtype)
    weights = weights / weights.sum(1, keepdim=True)
    return weights.new_zeros(len(rated), count, number).scatter(1, best.unsqueeze(-1).expand_as(weights), weights)


def density_peaks(tokens: Float[Tensor, "b m w"], count: int) -> Int[Tensor, "b m"]:
    """The cluster, of `count`, that each token belongs to: that of the nearest centre.

    density_i = exp(-mean of the squared distances to the 5 nearest others), distances divided by √w; a centre's score
    is density times the distance to the nearest denser token (for the densest: the largest distance there is). Of
    equally dense tokens the first counts as denser.
    """
    distance = _distances(precise(tokens))
    total = distance.shape[1]
    near = distance.topk(min(NEIGHBOURS, total - 1) + 1, dim=-1, largest=False).values
    # A token is its own nearest at distance 0: it adds nothing to the sum and does not count.
    density = (-near.square().sum(-1) / max(1, near.shape[-1] - 1)).exp()
    mine, other = density.unsqueeze(2), density.unsqueeze(1)
    earlier = torch.ones(total, total, dtype=torch.bool, device=tokens.device).tril(-1)
    denser = (other > mine) | ((other == mine) & earlier)
    farthest = distance.amax((1, 2), keepdim=True)
    score = torch.where(denser, distance, farthest).amin(-1) * density
    centres = score.argsort(dim=1, descending=True, stable=True)[:, :count]
    to_centres = distance.gather(2, centres.unsqueeze(1).expand(-1, total, -1))
    own = torch.arange(count, device=tokens.device).expand(len(centres), -1)
    # Of two centres at one place each keeps itself.
    return to_centres.argmin(-1).scatter(1, centres, own)


def _distances(tokens: Float[Tensor, "b m w"]) -> Float[Tensor, "b m m"]:
    """Euclidean distances over √w."""
    squares = tokens.square().sum(-1)
    apart = squares.unsqueeze(1) + squares.unsqueeze(2) - 2 * torch.bmm(tokens, tokens.transpose(1, 2))
    own = torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device)
    return (apart.masked_fill(own, 0).clamp_min(0) / tokens.shape[2]).sqrt()
