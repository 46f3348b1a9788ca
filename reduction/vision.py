"""Reduction in the vision tower: CLIP's own layers run up to the feature layer, some of them with fewer tokens after.

A layer drops between its attention residual and its MLP, or behind it. Queries and keys are computed once, for the
attention kernel and for the scores. The CLS token always stays, stays first, and takes part in no merge.
Shapes: b batch, n patches left, t tokens (CLS and patches), w width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from reduction.feed_forward import add_feed_forward
from reduction.patches import Patches
from reduction.schedule import Plan
from reduction.settings import Reduction, ReductionError
from reduction.stages import Reduced, reduce_tokens, reorders, sort_raster
from reduction.tensors import Bool, Float, Int
from reduction.text_tower import Asked
from reduction.views import Features, behind


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


def reduce_patches(
    hidden: Float[Tensor, "b t w"],
    patches: Patches,
    n_drop: int,
    reduction: Reduction,
    sizes: Float[Tensor, "b n"] | None = None,
) -> Reduced:
    """One layer's reduction: the tokens that go on (CLS first where there is one) and the indices of kept patches."""
    patches.states = hidden[:, patches.first :]
    return reduce_tokens(patches, hidden, n_drop, reduction, sizes)


class _Run(NamedTuple):
    """What goes from layer to layer: states, where the patches lie, and how many each stands for (None: one)."""

    hidden: Float[Tensor, "b t w"]
    cells: Int[Tensor, "b n"]
    sizes: Float[Tensor, "b n"] | None


def _proportional(run: _Run) -> Float[Tensor, "b 1 1 t"] | None:
    """ToMe's proportional attention: the logarithm of a token's size is added to what is paid to it."""
    if run.sizes is None:
        return None
    cls = run.hidden.shape[1] - run.sizes.shape[1]
    return functional.pad(run.sizes.log(), (cls, 0))[:, None, None].to(run.hidden.dtype)


def _reducing_layer(layer: Any, run: _Run, tower: Tower, n_drop: int, plan: Plan, reduction: Reduction) -> _Run:
    """One encoder layer with a reduction between its attention residual and its MLP, or behind it."""
    attention, hidden = layer.self_attn, run.hidden
    normed = layer.layer_norm1(hidden)
    queries, keys, values = attention.q_proj(normed), attention.k_proj(normed), attention.v_proj(normed)
    patches = Patches(queries, keys, int(tower.has_cls), attention.num_heads, run.cells, tower.grid)
    mixed = functional.scaled_dot_product_attention(
        patches.by_head(queries),
        patches.by_head(keys),
        patches.by_head(values),
        attn_mask=_proportional(run),
        scale=attention.scale,
    )
    run = run._replace(hidden=hidden + attention.out_proj(mixed.transpose(1, 2).flatten(2)))
    if n_drop and not plan.vision_after_mlp:
        run = _dropped(run, patches, n_drop, reduction)
    run = run._replace(hidden=add_feed_forward(layer.mlp, layer.layer_norm2, run.hidden))
    return _dropped(run, patches, n_drop, reduction) if n_drop and plan.vision_after_mlp else run


def _plain_layer(layer: Any, hidden: Float[Tensor, "b t w"]) -> Float[Tensor, "b t w"]:
    """The layer as Hugging Face runs it."""
    hidden = hidden + layer.self_attn(layer.layer_norm1(hidden), None)[0]
    return add_feed_forward(layer.mlp, layer.layer_norm2, hidden)


def _dropped(run: _Run, patches: Patches, n_drop: int, reduction: Reduction) -> _Run:
    left = reduce_patches(run.hidden, patches, n_drop, reduction, run.sizes)
    return _Run(left.states, _padded(run.cells.gather(1, left.kept), left, patches.grid**2), left.sizes)


def _padded(cells: Int[Tensor, "b k"], left: Reduced, past: int) -> Int[Tensor, "b k"]:
    """The tokens' places, with one past the last for padding: there it sorts behind all real tokens."""
    if left.counts is None:
        return cells
    place = torch.arange(cells.shape[1], device=cells.device)
    return cells.masked_fill(place >= left.counts.unsqueeze(1), past)


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
    run, states = _Run(hidden, cells, None), {0: hidden}
    for index, n_drop in enumerate(plan.vision_drops):
        layer: Any = tower.layers[index]
        if n_drop or run.sizes is not None:
            run = _reducing_layer(layer, run, tower, n_drop, plan, reduction)
        else:
            run = run._replace(hidden=_plain_layer(layer, run.hidden))
        states[index + 1] = run.hidden
    if plan.reduces_vision and reorders(reduction.stages("vision")):
        run = _in_raster_order(run)
        states[wanted[0]] = run.hidden
    return [states[index] for index in wanted], run.cells


def _in_raster_order(run: _Run) -> _Run:
    first = run.hidden.shape[1] - run.cells.shape[1]
    left = sort_raster(Reduced(run.hidden[:, first:], run.cells), run.cells)
    return _Run(torch.cat([run.hidden[:, :first], left.states], dim=1), left.kept, None)


def encode_images(
    model: nn.Module,
    pixel_values: Float[Tensor, "b 3 rows columns"],
    plan: Plan,
    reduction: Reduction,
    asked: Asked | None = None,
) -> tuple[Float[Tensor, "q t d"], Int[Tensor, "q t"]]:
    """Projected features of the visual tokens left, and the index each had among the unreduced visual tokens.

    `pixel_values` are normalised. With `vision_feature_select_strategy="default"` the visual tokens are the patches in
    raster order; with "full" CLS is visual token 0 and patch i is token i + 1. Where each image keeps as many as it
    needs, rows are padded to the longest by tokens whose index is one past the last (`real_tokens`). No drops: Hugging
    Face's features, bit for bit (on a CPU as far as `add_feed_forward` keeps them). A row per image, or where the plan
    is `by_question` per question of `asked`.
    Raises ReductionError where a reduced tower is read at several layers, or questions are needed and not given.
    """
    core: Any = getattr(model, "model", model)
    states, cells = run_tower(model, pixel_values, plan, reduction)
    if core.config.vision_feature_select_strategy == "default":
        states = [state[:, 1:] for state in states]
    elif tower_parts(model).has_cls:
        cells = behind(1, cells)
    features = core.multi_modal_projector(states[0] if len(states) == 1 else torch.cat(states, dim=-1))
    view = Features(features, tower_parts(model).grid)
    if plan.by_question:
        if asked is None:
            raise ReductionError(f"{reduction} chooses by the question, and none was given with the images.")
        view = asked.view(view, states[0])
        cells = cells[:1].expand(len(view.states), -1)
    return reduce_features(view, cells, plan, reduction)


def real_tokens(kept: Int[Tensor, "b t"], full: int) -> Bool[Tensor, "b t"]:
    """Which of the tokens that `encode_images` gives are no padding; `full` is the unreduced number."""
    return kept < full


def reduce_features(
    view: Features, cells: Int[Tensor, "b t"], plan: Plan, reduction: Reduction
) -> tuple[Float[Tensor, "b u d"], Int[Tensor, "b u"]]:
    """The reduction at the projector's output, where the plan has one."""
    if not plan.projector_drop:
        return view.states, cells
    left = reduce_tokens(view, view.states, plan.projector_drop, reduction)
    cells = _padded(cells.gather(1, left.kept), left, plan.full_visual_tokens)
    if reorders(reduction.stages("projector")):
        left = sort_raster(left, cells)
        cells = cells.sort(dim=1).values
    return left.states, cells
