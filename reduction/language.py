"""Reduction in the decoder: one layer's visual tokens are reduced between its attention residual and its MLP.

A sequence is a prefix (everything before the image), the visual block and a suffix (everything after it). Only the
suffix can look at the image under the causal mask, so it alone is the text of Eq. 3 and 4. Rows of a batch share the
three lengths; masks tell real tokens from padding. Prefill only: decoding never reduces.
Shapes: b batch, h query heads, g key heads, n visual, m suffix, p prefix, t all keys = p + n + m, w width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reduction.attention import chosen_scores, masked_mean, mean_score, raw_scores, take
from reduction.block import VisualBlock as VisualBlock
from reduction.correlate import from_scores, from_weights, mixed, through_text
from reduction.filter import Partition, drop_highest, redundancy
from reduction.settings import Reduction
from reduction.stages import reduce_tokens, reorders, sort_raster
from reduction.tensors import Bool, Float, Int


def text_importance(block: VisualBlock, reduction: Reduction) -> Float[Tensor, "b n"]:
    """The second term of Eq. 3: mean attention between a visual token and the words after the image."""
    receives = reduction.text_direction == "text_to_vision"
    if reduction.text_scores == "raw":
        tokens, words = (block.visual_keys, block.words_queries) if receives else (block.queries, block.words_keys)
        return mean_score(tokens, masked_mean(words, block.text), block.scale)
    if receives:
        return masked_mean(block.text_weights, block.text)
    return masked_mean(block.visual_weights[..., block.start + block.count :].transpose(1, 2), block.text)


def visual_redundancy(block: VisualBlock, reduction: Reduction) -> Float[Tensor, "b n"]:
    """Eq. 3: s_i = β mean_j A[i, j] - (1 - β) mean_k A[k, i] over visual tokens j and words k."""
    if reduction.patch_scores == "softmax":
        visual = block.causal_weights.mean(-1)
    else:
        visual = mean_score(block.queries, masked_mean(block.visual_keys), block.scale)
    return redundancy(visual, text_importance(block, reduction), reduction.beta, reduction.normalise)


def ficoco_visual(block: VisualBlock, n_drop: int, reduction: Reduction) -> Partition:
    """FiCoCo's filter: the most redundant visual tokens by Eq. 3 go."""
    return drop_highest(visual_redundancy(block, reduction), n_drop)


def _direct(block: VisualBlock, split: Partition, reduction: Reduction) -> Float[Tensor, "b s k"]:
    """The first term of Eq. 4, A[i, j], each row summing to 1."""
    if reduction.patch_scores == "softmax":
        rows = take(block.causal_weights, split.dropped)
        return from_weights(rows.gather(2, split.kept.unsqueeze(1).expand(-1, rows.shape[1], -1)))
    return from_scores(chosen_scores(take(block.queries, split.dropped), block.visual_keys, split.kept, block.scale))


def _indirect(block: VisualBlock, split: Partition, reduction: Reduction) -> Float[Tensor, "b s k"]:
    """The second term of Eq. 4, each row summing to 1: attention handed on by the words.

    With `text_to_vision` both factors are what the words pay the visual tokens; with `vision_to_text` the first is what
    the dropped token pays the words.
    """
    raw = reduction.text_scores == "raw"
    paid = raw_scores(block.words_queries, block.visual_keys, block.scale) if raw else block.text_weights
    received = paid
    if reduction.text_direction == "vision_to_text":
        if raw:
            received = raw_scores(block.queries, block.words_keys, block.scale).transpose(1, 2)
        else:
            received = block.visual_weights[..., block.start + block.count :].transpose(1, 2)

    def columns(weights: Float[Tensor, "b m n"], index: Int[Tensor, "b k"]) -> Float[Tensor, "b m k"]:
        return weights.gather(2, index.unsqueeze(1).expand(-1, weights.shape[1], -1))

    product = through_text(columns(received, split.dropped), columns(paid, split.kept), block.text)
    return from_scores(product) if raw else from_weights(product)


def attention_visual(block: VisualBlock, split: Partition, reduction: Reduction) -> Float[Tensor, "b s k"]:
    """C[i, j] = A[i, j], dropped visual tokens by kept ones: Eq. 4 at γ = 1."""
    return _direct(block, split, reduction)


def attention_and_text(block: VisualBlock, split: Partition, reduction: Reduction) -> Float[Tensor, "b s k"]:
    """FiCoCo's correlate stage, Eq. 4."""
    direct = _direct(block, split, reduction)
    if reduction.gamma == 1:
        return direct
    return mixed(direct, _indirect(block, split, reduction), reduction.gamma)


def reduce_block(
    visual: Float[Tensor, "b n w"], block: VisualBlock, n_drop: int, reduction: Reduction
) -> tuple[Float[Tensor, "b k w"], Int[Tensor, "b k"]]:
    """One layer's L step on the visual hidden states alone.

    `visual` are the states after the attention residual. Returns the states of the tokens kept, the others merged into
    them, and their ascending indices in the block. No drop: the block itself.
    """
    if n_drop == 0:
        return visual, torch.arange(visual.shape[1], device=visual.device).expand(len(visual), -1)
    block.states = visual
    left = reduce_tokens(block, visual, n_drop, reduction)
    if reorders(reduction.stages("language")):
        left = sort_raster(left, left.kept)
    return left.states, left.kept


def reduce_visual(
    hidden: Float[Tensor, "b t w"],
    queries: Float[Tensor, "b h t d"],
    keys: Float[Tensor, "b g t d"],
    *,
    start: int,
    count: int,
    n_drop: int,
    reduction: Reduction,
    text: Bool[Tensor, "b m"] | None = None,
    prefix: Bool[Tensor, "b p"] | None = None,
) -> tuple[Float[Tensor, "b u w"], Int[Tensor, "b k"]]:
    """One layer's L step on whole sequences.

    `hidden` are the states after the attention residual, `queries` and `keys` the layer's own after rotation. The
    visual block is tokens `start` to `start + count`; `text` and `prefix` mark the real tokens after and before it,
    None where all are.
    Returns the sequence without the `n_drop` dropped tokens and the ascending indices, in the block, of those kept.
    """
    end = start + count
    block = VisualBlock(queries[:, :, start:end], queries[:, :, end:], keys, text, prefix, hidden[:, end:])
    kept, index = reduce_block(hidden[:, start:end], block, n_drop, reduction)
    return torch.cat([hidden[:, :start], kept, hidden[:, end:]], dim=1), index


def position_ids(prefix: int, kept: Int[Tensor, "b n"], full: int, suffix: int, mode: str) -> Int[Tensor, "b t"]:
    """Position ids of a prefix, the visual tokens kept of `full`, and a suffix.

    "original": each token keeps the id of the unreduced prompt. "packed": ids count over what is left.
    """
    batch, left = kept.shape
    visual = kept if mode == "original" else torch.arange(left, device=kept.device).expand(batch, -1)
    before = torch.arange(prefix, device=kept.device).expand(batch, -1)
    after = torch.arange(suffix, device=kept.device).expand(batch, -1)
    return torch.cat([before, visual + prefix, after + prefix + (full if mode == "original" else left)], dim=1)
