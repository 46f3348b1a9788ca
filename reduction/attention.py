"""Attention between chosen tokens, as scores before the softmax or as weights, without an attention map of the model.

Shapes: b batch, h query heads, g key heads (g divides h), d width of a head, w = h d width of all heads,
n, m numbers of tokens. Scores are head means of q k / sqrt(d). The head mean of products is one product of the
concatenated heads, and the mean over keys is one product with the mean key; grouped keys meet the sum of their
group's queries.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from reduction.tensors import Bool, Float, Int

CACHED_VALUES = 2**18
"""Values in float32 that a processor's second-level cache holds beside other things."""


def precise(tensor: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """At least float32: half-precision scores would tie."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def take(tokens: Float[Tensor, "b n w"], index: Int[Tensor, "b k"]) -> Float[Tensor, "b k w"]:
    """Tokens chosen row by row."""
    batch, count, width = tokens.shape
    outer, inner, step = tokens.stride()
    # Whole rows of one matrix are copied several times faster on a CPU than a gather with an expanded index is; a
    # stretch of longer sequences is such a matrix too, with rows between that nothing points at.
    if step == 1 and inner == width > 0 == outer % width and not tokens.requires_grad:
        count = outer // width
        matrix = tokens.as_strided(((batch - 1) * count + tokens.shape[1], width), (width, 1))
    else:
        matrix = tokens.reshape(batch * count, width)
    rows = index + count * torch.arange(batch, device=index.device).unsqueeze(1)
    return matrix.index_select(0, rows.flatten()).view(batch, index.shape[1], width)


def put_(tokens: Float[Tensor, "b n w"], index: Int[Tensor, "b k"], values: Float[Tensor, "b k w"]) -> None:
    """Overwrites tokens chosen row by row, each once."""
    for row, chosen, value in zip(tokens, index, values, strict=True):
        row.index_copy_(0, chosen, value)


def concatenate_heads(heads: Float[Tensor, "b h n d"]) -> Float[Tensor, "b n w"]:
    """Tokens with their heads side by side; a view where the heads were split off by a view."""
    return heads.transpose(1, 2).flatten(2)


def sum_groups(queries: Float[Tensor, "b h n d"], groups: int) -> Float[Tensor, "b g n d"]:
    """Queries of the heads that share a key head, added up."""
    if queries.shape[1] == groups:
        return queries
    batch, heads, count, width = queries.shape
    return queries.reshape(batch, groups, heads // groups, count, width).sum(2)


def score_scale(heads: int, head_width: int) -> float:
    """What turns a product of concatenated heads into a head-mean score."""
    return 1.0 / (heads * math.sqrt(head_width))


def masked_mean(tokens: Float[Tensor, "b m w"], mask: Bool[Tensor, "b m"] | None = None) -> Float[Tensor, "b w"]:
    """Mean over the real tokens, at least float32; zero for a row that has none."""
    if mask is None:
        if tokens.device.type != "cpu":
            return precise(tokens).sum(1) / max(1, tokens.shape[1])
        # Row by row the float32 copy stays in the processor's cache.
        return torch.stack([precise(row).sum(0) for row in tokens]) / max(1, tokens.shape[1])
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    weights = mask.to(dtype)
    weights = weights / weights.sum(1, keepdim=True).clamp_min(1)
    return torch.einsum("bm,bmw->bw", weights, tokens.to(dtype))


def raw_scores(queries: Float[Tensor, "b n w"], keys: Float[Tensor, "b m w"], scale: float) -> Float[Tensor, "b n m"]:
    """Scores of concatenated heads, at least float32."""
    return precise(torch.bmm(queries * scale, keys.transpose(1, 2)))


def chosen_scores(
    queries: Float[Tensor, "b s w"], keys: Float[Tensor, "b n w"], kept: Int[Tensor, "b k"], scale: float
) -> Float[Tensor, "b s k"]:
    """Scores of concatenated heads with the keys chosen, at least float32."""
    # Products with all keys and a choice of the results move less memory than a choice of the keys does.
    if keys.device.type == "cpu" and not keys.is_contiguous():
        # One by one: what is a stretch of longer sequences would be copied first.
        products = torch.stack([key @ query.t() for key, query in zip(keys, queries * scale, strict=True)])
    else:
        products = torch.bmm(keys, (queries * scale).transpose(1, 2))
    return precise(take(products, kept).transpose(1, 2).contiguous())


def mean_score(tokens: Float[Tensor, "b n w"], mean: Float[Tensor, "b w"], scale: float) -> Float[Tensor, "b n"]:
    """Mean score of each token with the other side's tokens, given their mean: linear in n."""
    column = (precise(mean) * scale).unsqueeze(-1)
    if tokens.device.type != "cpu":
        return torch.bmm(precise(tokens), column).squeeze(-1)
    # Piece by piece the float32 copy stays in the processor's cache.
    piece = max(1, CACHED_VALUES // tokens.shape[2])
    rows = [
        torch.cat([precise(part) @ other for part in row.split(piece)])
        for row, other in zip(tokens, column, strict=True)
    ]
    return torch.stack(rows).squeeze(-1)


def _products(queries: Float[Tensor, "b g n d"], keys: Float[Tensor, "b g m d"]) -> Float[Tensor, "b g n m"]:
    """Products of every query with every key of its group."""
    if queries.device.type != "cpu":
        return queries @ keys.transpose(-1, -2)
    # The other way round, and as the heads of one row: keys whose heads lie side by side would otherwise be copied,
    # at many times the product's cost.
    turned = keys.flatten(0, 1) @ queries.flatten(0, 1).transpose(-1, -2)
    return turned.transpose(-1, -2).contiguous().view(*queries.shape[:3], keys.shape[2])


def attention_weights(
    queries: Float[Tensor, "b h n d"], keys: Float[Tensor, "b g m d"], visible: Bool[Tensor, "#b #n m"] | None = None
) -> Float[Tensor, "b n m"]:
    """Head mean of the softmax weights, at least float32. A query that sees no key gets equal weights."""
    if queries.device.type != "cpu":
        return _weights(queries, keys, visible)
    # Row by row the weights of all heads stay in the processor's cache.
    batch = len(queries)
    seen = [None] * batch if visible is None else visible.expand(batch, -1, -1).split(1)
    return torch.cat([_weights(*row) for row in zip(queries.split(1), keys.split(1), seen, strict=True)])


def _weights(
    queries: Float[Tensor, "b h n d"], keys: Float[Tensor, "b g m d"], visible: Bool[Tensor, "#b #n m"] | None
) -> Float[Tensor, "b n m"]:
    (batch, heads, count, width), groups = queries.shape, keys.shape[1]
    grouped = (queries * width**-0.5).reshape(batch, groups, heads // groups * count, width)
    scores = precise(_products(grouped, keys)).reshape(batch, heads, count, keys.shape[2])
    if visible is not None:
        scores = scores.masked_fill_(~visible.unsqueeze(1), torch.finfo(scores.dtype).min)
    return functional.softmax(scores, dim=-1).mean(1)


def one_query_weights(query: Float[Tensor, "b w"], keys: Float[Tensor, "b n w"], heads: int) -> Float[Tensor, "b n"]:
    """Head mean of the softmax weights of one query, at least float32, from heads that lie side by side.

    The query's heads stand in a block-diagonal matrix, so that one product passes over the keys once.
    """
    apart = query.unflatten(-1, (heads, -1)).unsqueeze(-1)
    apart = apart * apart.shape[2] ** -0.5
    blocks = (apart * torch.eye(heads, dtype=query.dtype, device=query.device).unsqueeze(1)).flatten(1, 2)
    return functional.softmax(precise(torch.bmm(keys, blocks)), dim=1).mean(2)
