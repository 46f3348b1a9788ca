"""Correlate: where does the information of each dropped token go? A matrix C of what is dropped by what is kept.

Shapes: b batch, s dropped tokens, t kept tokens, m text tokens. Every C is non-negative, so that the shares of Eq. 2
can be proportional to it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from reduction.tensors import Bool, Float


def from_scores(scores: Float[Tensor, "b s t"]) -> Float[Tensor, "b s t"]:
    """Scores, which may be negative, as a softmax over each dropped token's row: the order in a row stays."""
    return functional.softmax(scores, dim=-1)


def from_weights(weights: Float[Tensor, "b s t"]) -> Float[Tensor, "b s t"]:
    """Attention weights with each row summing to 1; a row of zeros stays one."""
    return weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)


def through_text(
    dropped: Float[Tensor, "b m s"], kept: Float[Tensor, "b m t"], text: Bool[Tensor, "b m"] | None
) -> Float[Tensor, "b s t"]:
    """The second term of Eq. 4, (1/M) Σ_k A[k, i] A[k, j] over the M real text tokens k, before normalisation."""
    if text is not None:
        dropped = dropped * text.unsqueeze(-1)
        count = text.sum(1).clamp_min(1).to(dropped.dtype).view(-1, 1, 1)
    else:
        count = dropped.new_full((1, 1, 1), max(1, dropped.shape[1]))
    return torch.bmm(dropped.transpose(1, 2), kept) / count


def mixed(direct: Float[Tensor, "b s t"], indirect: Float[Tensor, "b s t"], gamma: float) -> Float[Tensor, "b s t"]:
    """Eq. 4: C = γ direct + (1 - γ) indirect, both with rows that sum to 1."""
    return gamma * direct + (1 - gamma) * indirect
