"""FiCoCo in the vision tower: CLIP's own layers run up to the feature layer, some of them with fewer tokens after.

A layer drops between its attention residual and its MLP. Queries and keys are computed once, for the attention kernel
and for the scores. The CLS token always stays, stays first, and takes part in no merge.
Shapes: b batch, n patches left, t tokens (CLS and patches), w width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from reduction.attention import attention_weights, masked_mean, mean_score, raw_scores, score_scale, take
from reduction.compress import MERGES
from reduction.correlate import from_scores, from_weights
from reduction.filter import (
    Partition,
    drop_highest,
    drop_random,
    drop_stride,
    key_distinctness,
    redundancy,
    take_both,
)
from reduction.grid import local_penalty
from reduction.schedule import Plan
from reduction.settings import Reduction, ReductionError
from reduction.tensors import Float, Int


class Tower(NamedTuple):
    """The parts of a vision tower, CLIP's or SigLIP's, whichever way transformers nests them."""

    embeddings: nn.Module
    first_norm: nn.Module | None
    layers: nn.ModuleList
    has_cls: bool
    grid: int


def tower_parts(model: nn.Module) -> Tower:
    """The tower of a `LlavaForConditionalGeneration` or `LlavaModel`."""
    outer: Any = getattr(model, "model", model).vision_tower
    inner = getattr(outer, "vision_model", outer)
    embeddings = inner.embeddings
    return Tower(
        embeddings=embeddings,
        first_norm=getattr(inner, "pre_layrnorm", None),
        layers=inner.encoder.layers,
        has_cls=hasattr(embeddings, "class_embedding"),
        grid=outer.config.image_size // outer.config.patch_size,
    )


class Patches(NamedTuple):
    """What the stages may look at in one layer: its queries and keys, heads side by side, and where patches lie."""

    queries: Float[Tensor, "b t w"]
    keys: Float[Tensor, "b t w"]
    first: int
    """Index of the first patch: 1 behind a CLS token, else 0."""
    heads: int
    cells: Int[Tensor, "b n"]
    grid: int

    @property
    def scale(self) -> float:
        return score_scale(self.heads, self.queries.shape[-1] // self.heads)

    def by_head(self, tokens: Float[Tensor, "b t w"]) -> Float[Tensor, "b h t d"]:
        return tokens.view(*tokens.shape[:2], self.heads, -1).transpose(1, 2)


def _importance(patches: Patches, cls_scores: str) -> Float[Tensor, "b n"]:
    """The second term of Eq. 1: the attention that CLS pays each patch, or Eq. 9-13 where that is chosen or needed."""
    keys = patches.keys[:, patches.first :]
    if cls_scores == "keys" or patches.first == 0:
        return key_distinctness(keys, patches.heads)
    cls_query = patches.queries[:, :1]
    if cls_scores == "raw":
        return mean_score(keys, cls_query.squeeze(1), patches.scale)
    return attention_weights(patches.by_head(cls_query), patches.by_head(patches.keys))[:, 0, 1:]


def _patch_weights(patches: Patches) -> Float[Tensor, "b n n"]:
    """Attention weights among all patches: quadratic, for `patch_scores=softmax` only."""
    queries = patches.queries[:, patches.first :]
    return attention_weights(patches.by_head(queries), patches.by_head(patches.keys))[..., patches.first :]


def patch_redundancy(patches: Patches, reduction: Reduction) -> Float[Tensor, "b n"]:
    """Eq. 1 with the local penalty: s_i = λ mean_j A[i, j] - (1 - λ) A[CLS, i] over the patches j."""
    if reduction.patch_scores == "softmax":
        visual = _patch_weights(patches).mean(-1)
    else:
        mean_key = masked_mean(patches.keys[:, patches.first :])
        visual = mean_score(patches.queries[:, patches.first :], mean_key, patches.scale)
    scores = redundancy(visual, _importance(patches, reduction.cls_scores), reduction.lam, reduction.normalise)
    if not reduction.local_penalty:
        return scores
    return local_penalty(scores, patches.cells, patches.grid, reduction.window, reduction.penalty)


def partition_patches(patches: Patches, n_drop: int, reduction: Reduction) -> Partition:
    """The filter stage: which patches stay."""
    name, (batch, count), device = reduction.stages("vision")[0], patches.cells.shape, patches.cells.device
    if name == "random":
        return drop_random(batch, count, n_drop, reduction.seed, device)
    if name == "stride":
        return drop_stride(batch, count, n_drop, device)
    return drop_highest(patch_redundancy(patches, reduction), n_drop)


def correlate_patches(patches: Patches, split: Partition, reduction: Reduction) -> Float[Tensor, "b s k"]:
    """The correlate stage: C[i, j] = A[i, j], dropped patches by kept ones."""
    queries = take(patches.queries, split.dropped + patches.first)
    if reduction.patch_scores == "softmax":
        weights = attention_weights(patches.by_head(queries), patches.by_head(patches.keys))
        columns = (split.kept + patches.first).unsqueeze(1).expand(-1, weights.shape[1], -1)
        return from_weights(weights.gather(2, columns))
    return from_scores(raw_scores(queries, take(patches.keys, split.kept + patches.first), patches.scale))


def reduce_patches(
    hidden: Float[Tensor, "b t w"], patches: Patches, n_drop: int, reduction: Reduction
) -> tuple[Float[Tensor, "b u w"], Int[Tensor, "b k"]]:
    """One layer's reduction: the tokens that go on (CLS first where there is one) and the indices of kept patches."""
    split = partition_patches(patches, n_drop, reduction)
    compress = reduction.stages("vision")[2]
    if compress == "prune":
        kept = take(hidden, split.kept + patches.first)
    else:
        targets, sources = take_both(hidden, split, patches.first)
        kept = MERGES[compress](targets, sources, correlate_patches(patches, split, reduction), reduction.epsilon)
    return torch.cat([hidden[:, : patches.first], kept], dim=1), split.kept


def _reducing_layer(
    layer: Any,
    hidden: Float[Tensor, "b t w"],
    cells: Int[Tensor, "b n"],
    tower: Tower,
    n_drop: int,
    reduction: Reduction,
) -> tuple[Float[Tensor, "b u w"], Int[Tensor, "b k"]]:
    """One encoder layer with a reduction between its attention residual and its MLP."""
    attention = layer.self_attn
    normed = layer.layer_norm1(hidden)
    queries, keys, values = attention.q_proj(normed), attention.k_proj(normed), attention.v_proj(normed)
    patches = Patches(queries, keys, int(tower.has_cls), attention.num_heads, cells, tower.grid)
    mixed = functional.scaled_dot_product_attention(
        patches.by_head(queries), patches.by_head(keys), patches.by_head(values), scale=attention.scale
    )
    hidden = hidden + attention.out_proj(mixed.transpose(1, 2).flatten(2))
    hidden, kept = reduce_patches(hidden, patches, n_drop, reduction)
    return hidden + layer.mlp(layer.layer_norm2(hidden)), cells.gather(1, kept)


def feature_layers(model: nn.Module) -> list[int]:
    """Which states LLaVA reads, as the number of encoder layers run before them."""
    config: Any = getattr(model, "model", model).config
    depth = len(tower_parts(model).layers)
    chosen = config.vision_feature_layer
    return [index if index >= 0 else depth + 1 + index for index in ([chosen] if isinstance(chosen, int) else chosen)]


def run_tower(
    model: nn.Module, pixel_values: Float[Tensor, "b 3 rows columns"], plan: Plan, reduction: Reduction
) -> tuple[list[Float[Tensor, "b t w"]], Int[Tensor, "b n"]]:
    """The states of each feature layer and the raster indices of the patches left, CLS included in the states."""
    tower, wanted = tower_parts(model), feature_layers(model)
    if len(set(wanted)) > 1 and plan.reduces_vision:
        raise ReductionError(
            f"the model reads {len(wanted)} feature layers, and {reduction.method} leaves them with different tokens: "
            "use dense or ficoco-l."
        )
    hidden = tower.embeddings(pixel_values)
    if tower.first_norm is not None:
        hidden = tower.first_norm(hidden)
    cells = torch.arange(tower.grid**2, device=hidden.device).expand(len(hidden), -1)
    states = {0: hidden}
    for index, n_drop in enumerate(plan.vision_drops):
        layer: Any = tower.layers[index]
        if n_drop:
            hidden, cells = _reducing_layer(layer, hidden, cells, tower, n_drop, reduction)
        else:
            hidden = layer(hidden, None)
        states[index + 1] = hidden
    return [states[index] for index in wanted], cells


def encode_images(
    model: nn.Module, pixel_values: Float[Tensor, "b 3 rows columns"], plan: Plan, reduction: Reduction
) -> tuple[Float[Tensor, "b t d"], Int[Tensor, "b t"]]:
    """Projected features of the visual tokens left, and the index each had among the unreduced visual tokens.

    `pixel_values` are normalised. With `vision_feature_select_strategy="default"` the visual tokens are the patches in
    raster order; with "full" CLS is visual token 0 and patch i is token i + 1. No drops: Hugging Face's features, bit
    for bit. Raises ReductionError where a reduced tower is read at several layers.
    """
    core: Any = getattr(model, "model", model)
    states, cells = run_tower(model, pixel_values, plan, reduction)
    if core.config.vision_feature_select_strategy == "default":
        states = [state[:, 1:] for state in states]
    elif tower_parts(model).has_cls:
        cells = torch.cat([torch.zeros_like(cells[:, :1]), cells + 1], dim=1)
    return core.multi_modal_projector(states[0] if len(states) == 1 else torch.cat(states, dim=-1)), cells
