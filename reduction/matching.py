"""Tokens matched with the tokens they are like: ToMe's two sets, VisionZip's contextual tokens, cosines, weights.

Shapes: b batch, n visual tokens, k kept, s dropped, e width of the keys that tokens are compared by.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from reduction.attention import precise, take
from reduction.correlate import from_scores
from reduction.filter import Partition, keep_set
from reduction.settings import Reduction
from reduction.tensors import Float
from reduction.views import View


def unit(tokens: Float[Tensor, "b n e"]) -> Float[Tensor, "b n e"]:
    """Tokens of length 1, at least float32."""
    return functional.normalize(precise(tokens), dim=-1)


def bipartite(view: View, n_drop: int, reduction: Reduction) -> Partition:
    """ToMe (Bolya et al. 2023, section 3): tokens alternate into sets A and B, and the A tokens go that are most like
    a token of B, which alone may take them in.

    CLS is the first token of A and never goes. The order left is A's, then B's, as the next layer alternates anew.
    """
    metric = unit(view.metric)
    count, device = metric.shape[1], metric.device
    index = torch.arange(count, device=device)
    a, b = index[view.first :: 2], index[1 - view.first :: 2]
    best = torch.bmm(metric[:, a], metric[:, b].transpose(1, 2)).amax(-1)
    order = best.argsort(dim=1, descending=True, stable=True)
    left = a[order[:, n_drop:].sort(dim=1).values]
    kept = torch.cat([left, b.expand(len(metric), -1)], dim=1)
    eligible = torch.arange(kept.shape[1], device=device) >= left.shape[1]
    return Partition(kept, a[order[:, :n_drop]], eligible.expand(len(metric), -1))


def contextual_count(n_keep: int, share: float) -> int:
    """How many of the tokens left are contextual: 10 of 64, 20 of 128, 30 of 192 at the default share."""
    return min(n_keep, round(share * n_keep))


def dominant(view: View, n_drop: int, reduction: Reduction) -> Partition:
    """VisionZip (Yang et al. 2025): the most important tokens stay, and of the rest some at equal distances, which
    alone may take in the others."""
    importance = view.importance
    batch, count = importance.shape
    context = contextual_count(count - n_drop, reduction.context_share)
    n_dominant = count - n_drop - context
    chosen = importance.argsort(dim=1, descending=True, stable=True)[:, :n_dominant]
    role = torch.zeros(batch, count, dtype=torch.uint8, device=importance.device).scatter(1, chosen, 1)
    rest = role.argsort(dim=1, stable=True)[:, : count - n_dominant]
    step = max(1, rest.shape[1] // max(1, context))
    targets = rest[:, ::step][:, :context]
    split = keep_set(torch.cat([chosen, targets], dim=1), count)
    eligible = role.scatter(1, targets, 2).gather(1, split.kept) == 2
    return Partition(split.kept, split.dropped, eligible if context else None)


def cosine(view: View, split: Partition, reduction: Reduction) -> Float[Tensor, "b s k"]:
    """Softmax of the cosine between head-mean keys (at the projector: features), over the tokens that may take in."""
    metric = unit(view.metric)
    scores = torch.bmm(take(metric, split.dropped), take(metric, split.kept).transpose(1, 2))
    if split.eligible is not None:
        scores = scores.masked_fill(~split.eligible.unsqueeze(1), -torch.inf)
    return from_scores(scores)


def equal(view: View, split: Partition, reduction: Reduction) -> Float[Tensor, "b s 1"]:
    """The same share of every dropped token: the one token made of them is their mean (TRIM)."""
    batch, count = split.dropped.shape
    dtype = torch.promote_types(view.states.dtype, torch.float32)
    return torch.full((batch, count, 1), 1 / max(1, count), dtype=dtype, device=split.dropped.device)


def importance(view: View, split: Partition, reduction: Reduction) -> Float[Tensor, "b s 1"]:
    """What each dropped token gives to the one token that stands for all of them: its importance (EViT)."""
    return view.importance.gather(1, split.dropped).unsqueeze(-1)
