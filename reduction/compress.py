"""Compress: how is it merged? New kept tokens from old kept tokens, dropped tokens and their correlation C.

Shapes: b batch, s dropped tokens, t kept tokens, w width.
"""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor

from reduction.attention import put_, take
from reduction.settings import Reduction
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


def merging_weights(correlation: Float[Tensor, "b s t"], epsilon: float) -> Float[Tensor, "b s t"]:
    """α of Eq. 2: proportional to C over each dropped token's J, where its row sums to 1."""
    chosen = correlation.masked_fill(~chosen_targets(correlation, epsilon), 0.0)
    return chosen / chosen.sum(-1, keepdim=True).clamp_min(torch.finfo(chosen.dtype).tiny)


def take_in(
    targets: Float[Tensor, "b t w"], sources: Float[Tensor, "b s w"], weights: Float[Tensor, "b s t"]
) -> Float[Tensor, "b t w"]:
    """Eq. 2: x_j ← (x_j + Σ_i α_ij x_i) / (1 + Σ_i α_ij).

    On a CPU, where no gradient is asked for, the targets given are overwritten and returned.
    """
    received = weights.sum(1)
    if on_host(received) and not _differentiated(targets, sources, weights):
        return _few_take_in(targets, sources, weights, received)
    share = 1 / (1 + received.unsqueeze(-1))
    # The targets are passed over once, added to what they take in.
    taken = torch.bmm((weights.transpose(1, 2) * share).to(sources.dtype), sources)
    return taken.addcmul_(targets, share.to(targets.dtype))


def on_host(values: Tensor) -> bool:
    """Whether the host can read values without waiting for a device."""
    return values.device.type == "cpu"


def _differentiated(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _few_take_in(
    targets: Float[Tensor, "b t w"],
    sources: Float[Tensor, "b s w"],
    weights: Float[Tensor, "b s t"],
    received: Float[Tensor, "b t"],
) -> Float[Tensor, "b t w"]:
    """`take_in` in place, of those alone that take in something: in each row as many as in the one with most."""
    most = max(1, int((received != 0).sum(1).max()))
    receivers = received.topk(most, dim=1).indices
    share = 1 / (1 + received.gather(1, receivers).unsqueeze(-1))
    columns = weights.gather(2, receivers.unsqueeze(1).expand(-1, weights.shape[1], -1))
    taken = torch.bmm((columns.transpose(1, 2) * share).to(sources.dtype), sources)
    put_(targets, receivers, taken.addcmul_(take(targets, receivers), share.to(targets.dtype)))
    return targets


Sizes = tuple[Float[Tensor, "b t"], Float[Tensor, "b s"]] | None
"""How many tokens each kept and each dropped token stands for; None: one each."""
Merged = tuple[Float[Tensor, "b u w"], Float[Tensor, "b u"] | None]
"""The tokens left (kept ones, then those made anew), and how many each stands for where that is counted."""


def merge_stage(
    targets: Float[Tensor, "b t w"],
    sources: Float[Tensor, "b s w"],
    correlation: Float[Tensor, "b s t"],
    reduction: Reduction,
    sizes: Sizes,
) -> Merged:
    """Eq. 2 with α proportional to C over each dropped token's J."""
    return take_in(targets, sources, merging_weights(correlation, reduction.epsilon)), None


def average_stage(
    targets: Float[Tensor, "b t w"],
    sources: Float[Tensor, "b s w"],
    correlation: Float[Tensor, "b s t"],
    reduction: Reduction,
    sizes: Sizes,
) -> Merged:
    """Plain mean of each target and every dropped token whose J holds it: α is 1 there."""
    joins = chosen_targets(correlation, reduction.epsilon)
    return take_in(targets, sources, joins.to(correlation.dtype)), None


def join_best(
    targets: Float[Tensor, "b t w"],
    sources: Float[Tensor, "b s w"],
    correlation: Float[Tensor, "b s t"],
    reduction: Reduction,
    sizes: Sizes,
) -> Merged:
    """Each dropped token joins the one target of its highest correlation; means weighted by sizes, which add up."""
    kept = correlation.new_ones(targets.shape[:2]) if sizes is None else sizes[0]
    gone = correlation.new_ones(sources.shape[:2]) if sizes is None else sizes[1]
    place = torch.arange(correlation.shape[2], device=correlation.device)
    joins = correlation.argmax(-1, keepdim=True) == place
    weights = joins.to(gone.dtype) * gone.unsqueeze(-1)
    total = kept + weights.sum(1)
    summed = torch.baddbmm(
        targets * kept.unsqueeze(-1).to(targets.dtype), weights.transpose(1, 2).to(sources.dtype), sources
    )
    return summed / total.unsqueeze(-1).to(summed.dtype), total


def fuse(
    targets: Float[Tensor, "b t w"],
    sources: Float[Tensor, "b s w"],
    correlation: Float[Tensor, "b s f"],
    reduction: Reduction,
    sizes: Sizes,
) -> Merged:
    """The kept tokens as they are, and one made anew: the sum of the dropped ones, each times its weight (EViT)."""
    made = torch.bmm(correlation.transpose(1, 2).to(sources.dtype), sources)
    return torch.cat([targets, made], dim=1), None
