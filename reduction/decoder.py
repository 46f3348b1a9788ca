"""LLaMA's own layers over a reduced prompt, and over the tokens that follow it.

Each layer has its own number of visual tokens, hence its own mask, and with packed positions its own rotation.
Shapes: b batch, t tokens of the arranged prompt, q new tokens, n visual tokens left, w width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

from reduction.cache import ReducedCache
from reduction.language import reduce_visual
from reduction.layout import Layout
from reduction.schedule import Plan
from reduction.settings import Reduction


def as_attention_mask(allowed: Tensor, decoder: Any) -> Tensor:
    """(b, queries, keys) of bool in the form that the decoder's attention takes."""
    allowed = allowed.unsqueeze(1)
    if decoder.config._attn_implementation == "sdpa":
        return allowed
    dtype = decoder.embed_tokens.weight.dtype
    return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)


def prompt_mask(real: Tensor, decoder: Any, *, padded: bool) -> Tensor | None:
    """Causal mask over a prompt whose real tokens are `real` (b, t); None where the kernel's own causal mask does."""
    if not padded and decoder.config._attn_implementation == "sdpa":
        return None
    place = torch.arange(real.shape[1], device=real.device)
    causal = place <= place[:, None]
    # A padding query sees itself: with nothing to see its state would be undefined, and spread.
    return as_attention_mask(causal & (real.unsqueeze(1) | (place == place[:, None])), decoder)


def step_mask(real: Tensor, queries: int, decoder: Any, *, padded: bool) -> Tensor | None:
    """Mask of the last `queries` of the keys `real` (b, keys) over all of them; None where everything is seen."""
    if not padded and queries == 1 and decoder.config._attn_implementation == "sdpa":
        return None
    place = torch.arange(real.shape[1], device=real.device)
    own = place[-queries:, None]
    return as_attention_mask((place <= own) & (real.unsqueeze(1) | (place == own)), decoder)


def _attend(
    layer: Any, hidden: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None, cache: ReducedCache | None
) -> tuple[Tensor, Tensor, Tensor]:
    """A layer up to its attention residual: the states, and the rotated queries and keys."""
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    heads = (*hidden.shape[:2], -1, attention.head_dim)
    queries, keys, values = (
        project(normed).view(heads).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    queries, keys = apply_rotary_pos_emb(queries, keys, *rotation)
    if cache is not None:
        keys, values = cache.update(keys, values, attention.layer_idx)
    groups = attention.num_key_value_groups
    mixed = functional.scaled_dot_product_attention(
        queries,
        repeat_kv(keys, groups),
        repeat_kv(values, groups),
        attn_mask=mask,
        is_causal=mask is None,
        scale=attention.scaling,
    )
    return hidden + attention.o_proj(mixed.transpose(1, 2).flatten(2)), queries, keys


def look_ahead(layer: Any, hidden: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The rotated queries and keys that a layer would make of the states."""
    attention, normed = layer.self_attn, layer.input_layernorm(hidden)
    heads = (*hidden.shape[:2], -1, attention.head_dim)
    queries, keys = (project(normed).view(heads).transpose(1, 2) for project in (attention.q_proj, attention.k_proj))
    return apply_rotary_pos_emb(queries, keys, *rotation)


def prefill(
    decoder: Any,
    hidden: Tensor,
    kept: Tensor,
    layout: Layout,
    position_ids: Tensor,
    plan: Plan,
    reduction: Reduction,
    cache: ReducedCache | None,
) -> tuple[Tensor, Tensor]:
    """The arranged prompt (b, t, w) through all layers and the last norm.

    `kept` (b, n) are the visual tokens that enter, `position_ids` the source's. Returns the states and tokens left.
    """
    rotation, mask = None, None
    real: dict[str, Tensor] = {"text": layout.suffix, "prefix": layout.prefix} if layout.padded else {}
    for place, (layer, n_drop) in enumerate(zip(decoder.layers, plan.decoder_drops, strict=True)):
        if rotation is None:
            positions = layout.positions(position_ids, kept, reduction.positions)
            rotation = decoder.rotary_emb(hidden, position_ids=positions)
            mask = prompt_mask(layout.real(kept.shape[1]), decoder, padded=layout.padded)
        if n_drop == 0:
            hidden = layer(hidden, attention_mask=mask, position_embeddings=rotation, past_key_values=cache)
            continue
        hidden, queries, keys = _attend(layer, hidden, rotation, mask, cache)
        if plan.decoder_after_mlp:
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        if plan.decoder_by_next:
            queries, keys = look_ahead(decoder.layers[place + 1], hidden, rotation)
        hidden, index = reduce_visual(
            hidden, queries, keys, start=layout.start, count=kept.shape[1], n_drop=n_drop, reduction=reduction, **real
        )
        if not plan.decoder_after_mlp:
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        kept, rotation = kept.gather(1, index), None
    return decoder.norm(hidden), kept


def step(
    decoder: Any, hidden: Tensor, real: Tensor | None, position_ids: Tensor, reduction: Reduction, cache: ReducedCache
) -> Tensor:
    """New tokens (b, q, w) after a reduced prompt through all layers and the last norm; nothing is dropped.

    `real` (b, generated + q) tells real tokens after the prompt from padding, None: all. `position_ids` (b, q) are in
    the unreduced numbering.
    """
    batch, queries = hidden.shape[:2]
    padded = cache.padded or real is not None
    if real is None:
        real = torch.ones(batch, cache.generated + queries, dtype=torch.bool, device=hidden.device)
    known: dict[int, tuple[Any, Tensor | None]] = {}
    for index, layer in enumerate(decoder.layers):
        visual = cache.visual_lengths[index]
        if visual not in known:
            closed_up = cache.dropped(index) if reduction.positions == "packed" else 0
            keys = torch.cat([cache.prompt_real(index), real], dim=1)
            known[visual] = (
                decoder.rotary_emb(hidden, position_ids=position_ids - closed_up),
                step_mask(keys, queries, decoder, padded=padded),
            )
        rotation, mask = known[visual]
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rotation, past_key_values=cache)
    return decoder.norm(hidden)
