"""FiCoCo written a second time, as plain loops over full attention maps: slow, one image, one prompt, no padding.

Nothing of `reduction` is used here but the settings' values. The model's own weights and small modules (norms, MLPs,
projections) are; its attention is computed in full, so every score is read off an N x N map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from reduction.settings import Reduction
from tests.reduction.reference_stages import compress, language_stages, vision_stages


def heads_of(states: Tensor, heads: int) -> Tensor:
    return states.view(len(states), heads, -1).transpose(0, 1)


# ---- the vision tower


def encode(model: Any, image: Tensor, drops: Sequence[int], reduction: Reduction) -> tuple[Tensor, list[int]]:
    """Projected features of one image (3, rows, columns), and the visual tokens left."""
    tower = model.model.vision_tower
    tower = getattr(tower, "vision_model", tower)
    has_cls = hasattr(tower.embeddings, "class_embedding")
    hidden = tower.embeddings(image[None])
    hidden = (tower.pre_layrnorm(hidden) if has_cls else hidden)[0]
    grid = model.config.vision_config.image_size // model.config.vision_config.patch_size
    cells = list(range(grid * grid))
    first = int(has_cls)
    for layer, n_drop in zip(tower.encoder.layers, drops, strict=False):
        attention = layer.self_attn
        normed = layer.layer_norm1(hidden)
        queries, keys, values = (
            heads_of(project(normed), attention.num_heads)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        raw = queries @ keys.transpose(1, 2) / math.sqrt(attention.head_dim)
        weights = raw.softmax(-1)
        hidden = hidden + attention.out_proj((weights @ values).transpose(0, 1).flatten(1))
        if n_drop:
            kept, rows, dropped = vision_stages(raw, weights, keys, cells, first, grid, n_drop, reduction)
            patches = compress(hidden[first:], kept, dropped, rows, reduction)
            hidden = torch.cat([hidden[:first], patches])
            cells = [cells[index] for index in kept]
        hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
    if has_cls and model.config.vision_feature_select_strategy == "full":
        cells = [0, *(cell + 1 for cell in cells)]
    else:
        hidden = hidden[first:]
    return model.model.multi_modal_projector(hidden), cells


# ---- the decoder


@dataclass
class Cache:
    """Keys and values of each layer, and what its new tokens must subtract from their position."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    closed_up: list[int] = field(default_factory=list)
    next_position: int = 0


def rotate(states: Tensor, positions: list[int], theta: float) -> Tensor:
    """Rotary embedding, pairs (i, i + d/2), of states (heads, tokens, d)."""
    half = states.shape[-1] // 2
    result = torch.empty_like(states)
    for token, position in enumerate(positions):
        for pair in range(half):
            # The model computes its angles in float32.
            frequency = torch.tensor(1 / theta ** (2 * pair / states.shape[-1]), dtype=torch.float32)
            angle = float(position * frequency)
            cosine, sine = math.cos(angle), math.sin(angle)
            a, b = states[:, token, pair], states[:, token, pair + half]
            result[:, token, pair] = a * cosine - b * sine
            result[:, token, pair + half] = b * cosine + a * sine
    return result


def decoder_layer_inputs(
    layer: Any, hidden: Tensor, positions: list[int], theta: float
) -> tuple[Tensor, Tensor, Tensor]:
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    heads = attention.config.num_attention_heads
    groups = attention.config.num_key_value_heads
    return (
        rotate(heads_of(attention.q_proj(normed), heads), positions, theta),
        rotate(heads_of(attention.k_proj(normed), groups), positions, theta),
        heads_of(attention.v_proj(normed), groups),
    )


def repeat(states: Tensor, heads: int) -> Tensor:
    return torch.stack([states[head * len(states) // heads] for head in range(heads)])


def prompt(
    model: Any, prefix: list[int], image: Tensor, suffix: list[int], plan: Any, reduction: Reduction
) -> tuple[Tensor, list[int], Cache]:
    """Logits of every token left after the prompt, the visual tokens left, and the cache."""
    decoder = model.model.language_model
    theta = float(decoder.config.rope_parameters["rope_theta"])
    features, kept = encode(model, image, plan.vision_drops, reduction)
    full = model.config.image_seq_length
    embed = decoder.embed_tokens
    hidden = torch.cat(
        [embed(torch.tensor(prefix, dtype=torch.long)), features, embed(torch.tensor(suffix, dtype=torch.long))]
    )
    start, words = len(prefix), len(suffix)
    cache = Cache(next_position=start + full + words)
    for layer, n_drop in zip(decoder.layers, plan.decoder_drops, strict=True):
        count = len(kept)
        packed = reduction.positions == "packed"
        closed_up = full - count if packed else 0
        positions = [
            *range(start),
            *(start + (index if packed else token) for index, token in enumerate(kept)),
            *range(start + full - closed_up, start + full - closed_up + words),
        ]
        queries, keys, values = decoder_layer_inputs(layer, hidden, positions, theta)
        cache.keys.append(keys)
        cache.values.append(values)
        cache.closed_up.append(closed_up)
        raw = queries @ repeat(keys, len(queries)).transpose(1, 2) / math.sqrt(queries.shape[-1])
        causal = torch.ones(len(hidden), len(hidden), dtype=torch.bool).tril()
        weights = raw.masked_fill(~causal, -math.inf).softmax(-1)
        mixed = (weights @ repeat(values, len(queries))).transpose(0, 1).flatten(1)
        hidden = hidden + layer.self_attn.o_proj(mixed)
        if n_drop:
            stay, rows, dropped = language_stages(raw, weights, start, count, n_drop, reduction)
            block = compress(hidden[start : start + count], stay, dropped, rows, reduction)
            hidden = torch.cat([hidden[:start], block, hidden[start + count :]])
            kept = [kept[index] for index in stay]
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return model.lm_head(decoder.norm(hidden)), kept, cache


def next_logits(model: Any, token: int, cache: Cache) -> Tensor:
    """Logits after one more token; nothing is dropped."""
    decoder = model.model.language_model
    theta = float(decoder.config.rope_parameters["rope_theta"])
    hidden = decoder.embed_tokens(torch.tensor([token]))
    for index, layer in enumerate(decoder.layers):
        position = cache.next_position - cache.closed_up[index]
        queries, keys, values = decoder_layer_inputs(layer, hidden, [position], theta)
        cache.keys[index] = torch.cat([cache.keys[index], keys], dim=1)
        cache.values[index] = torch.cat([cache.values[index], values], dim=1)
        raw = queries @ repeat(cache.keys[index], len(queries)).transpose(1, 2) / math.sqrt(queries.shape[-1])
        mixed = (raw.softmax(-1) @ repeat(cache.values[index], len(queries))).transpose(0, 1).flatten(1)
        hidden = hidden + layer.self_attn.o_proj(mixed)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    cache.next_position += 1
    return model.lm_head(decoder.norm(hidden))[0]


def greedy(model: Any, logits: Tensor, cache: Cache, count: int, eos: int) -> list[int]:
    """`count` tokens at most, the end token included."""
    tokens: list[int] = []
    while len(tokens) < count and (not tokens or tokens[-1] != eos):
        if tokens:
            logits = next_logits(model, tokens[-1], cache)
        tokens.append(int(logits.argmax()))
    return tokens
