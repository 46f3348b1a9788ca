"""LLaMA's decoder as the engine runs it: Hugging Face's weights and modules, our own passes over them.

A prompt is text before the image (the same for every row), visual tokens, text after the image (padded on the right:
under the causal mask no real token sees padding, so prefill needs no mask). Rows that ask about the same image share
one pass over everything up to the image's last token, as far as that pass does not depend on the question.
Shapes: q questions, i images, p text before the image, n visual, m text after it, d width, h/g query/key heads, e head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.kv_cache import KVCache
from reduction.block import VisualBlock
from reduction.feed_forward import add_feed_forward
from reduction.language import position_ids, reduce_block
from reduction.norms import normalise
from reduction.schedule import Plan
from reduction.settings import Reduction
from reduction.tensors import Bool, Float, Int


@dataclass(frozen=True, slots=True)
class Prompts:
    """A batch of questions, ready for prefill."""

    prefix: Int[Tensor, " p"]
    visual: Float[Tensor, "i n d"]
    kept: Int[Tensor, "i n"]
    """Where each visual token stood among the unreduced ones."""
    suffix: Int[Tensor, "q m"]
    lengths: Int[Tensor, " q"]
    """Real tokens of each suffix."""
    image: Int[Tensor, " q"]
    """The image that each question is about."""


class Decoder:
    """Prefill and decoding of one LLaVA's language model under one reduction plan."""

    def __init__(self, model: Any, plan: Plan, reduction: Reduction, visual_tokens: int) -> None:
        self.llama = model.model.language_model
        self.head = model.lm_head
        self.plan, self.reduction, self.visual_tokens = plan, reduction, visual_tokens
        attention = self.llama.layers[0].self_attn
        self.head_dim: int = attention.head_dim
        self.kv_heads: int = attention.k_proj.out_features // self.head_dim
        self.grouped = attention.q_proj.out_features != attention.k_proj.out_features
        self.packed = reduction.positions == "packed"

    def base(self, prefix: int) -> tuple[int, ...]:
        """Per layer, the cache's entries that all rows have (`KVCache`), behind `prefix` tokens before the image."""
        return tuple(prefix + n for n in self.plan.decoder_visual_lengths)

    def room(self, text: int) -> int:
        """Entries that a row with `text` tokens behind the image needs at most, behind those that all rows have."""
        return text

    def own_visual(self, prompts: Prompts) -> list[int]:
        """Visual tokens that each row has for itself, behind what all rows have."""
        return [0] * len(prompts.suffix)

    def new_cache(
        self, rows: int, base: tuple[int, ...], room: int, memory: Float[Tensor, " v"] | None = None
    ) -> KVCache:
        """A cache for `rows` rows, in `memory` where it is given, which may hold more values than `cache_values`."""
        needed, weight = self.cache_values(rows, base, room), self.head.weight
        if memory is None:
            memory = torch.zeros(needed, dtype=weight.dtype, device=weight.device)
        return KVCache(rows, self.kv_heads, self.head_dim, base, room, memory[:needed])

    def cache_values(self, rows: int, base: tuple[int, ...], room: int) -> int:
        """How many numbers a cache holds."""
        return 2 * rows * self.kv_heads * self.head_dim * sum(n + room for n in base)

    def prefill(self, prompts: Prompts, cache: KVCache) -> Float[Tensor, "q v"]:
        """Fill the cache and return the logits behind each question's last token."""
        suffix = self.llama.embed_tokens(prompts.suffix)
        shared = self._embed_images(prompts)
        positions = position_ids(
            len(prompts.prefix), prompts.kept, self.visual_tokens, suffix.shape[1], self.reduction.positions
        )
        split = self.plan.first_decoder_drop if len(prompts.visual) < len(prompts.suffix) else 0
        joint = None
        for index, layer in enumerate(self.llama.layers):
            if index < split:
                shared, suffix = self._shared_layer(index, layer, shared, suffix, positions, prompts, cache)
                continue
            if joint is None:
                joint = torch.cat([shared.index_select(0, prompts.image), suffix], 1)
                positions = positions.index_select(0, prompts.image)
            joint, positions = self._joint_layer(index, layer, joint, positions, prompts, cache)
        hidden = suffix if joint is None else joint[:, -suffix.shape[1] :]
        last = (prompts.lengths - 1).view(-1, 1, 1).expand(-1, 1, hidden.shape[-1])
        return self.head(normalise(self.llama.norm, hidden.gather(1, last)))[:, 0]

    def step(
        self, tokens: Int[Tensor, " q"], own: Int[Tensor, " q"], longest: int, cache: KVCache, even: bool = False
    ) -> Tensor:
        """Feed one token per row, behind its `own` text tokens (at most `longest` - 1), and return the next logits.

        `even` says that all rows have `longest` - 1: no row then has entries that it must not see.
        """
        hidden = self.llama.embed_tokens(tokens).unsqueeze(1)
        masks = {} if even else cache.visible(own + 1, longest)
        turns: dict[int, tuple[Tensor, Tensor]] = {}
        for index, layer in enumerate(self.llama.layers):
            base = cache.base[index]
            before = base if self.packed else base - self.plan.decoder_visual_lengths[index] + self.visual_tokens
            if before not in turns:
                turns[before] = self._rotation(hidden, (own + before + cache.gap).unsqueeze(1))
            queries, keys, values = self._project(layer, hidden, turns[before])
            cache.append(index, own, keys, values)
            hidden = self._attend(layer, hidden, queries, *cache.view(index, longest), masks.get(base), causal=False)
            hidden = add_feed_forward(layer.mlp, layer.post_attention_layernorm, hidden)
        return self.head(normalise(self.llama.norm, hidden))[:, 0]

    def _embed_images(self, prompts: Prompts) -> Float[Tensor, "i t d"]:
        prefix = self.llama.embed_tokens(prompts.prefix).to(prompts.visual.dtype)
        return torch.cat([prefix.expand(len(prompts.visual), -1, -1), prompts.visual], 1)

    def _rotation(self, hidden: Tensor, positions: Int[Tensor, "b t"]) -> tuple[Tensor, Tensor]:
        cos, sin = self.llama.rotary_emb(hidden, positions)
        return cos.unsqueeze(1), sin.unsqueeze(1)

    def _project(
        self, layer: Any, hidden: Float[Tensor, "b t d"], rotation: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotated queries, rotated keys and values, heads apart."""
        normed = normalise(layer.input_layernorm, hidden)
        attention = layer.self_attn
        queries, keys, values = (
            project(normed).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        return _rotate(queries, *rotation), _rotate(keys, *rotation), values

    def _look_ahead(
        self, layer: Any, hidden: Float[Tensor, "b t d"], rotation: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the rotated queries and keys that a layer would make of the states."""
        normed, attention = normalise(layer.input_layernorm, hidden), layer.self_attn
        queries, keys = (
            project(normed).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj)
        )
        return _rotate(queries, *rotation), _rotate(keys, *rotation)

    def _attend(
        self,
        layer: Any,
        hidden: Float[Tensor, "b t d"],
        queries: Float[Tensor, "b h t e"],
        keys: Float[Tensor, "b g k e"],
        values: Float[Tensor, "b g k e"],
        mask: Bool[Tensor, "... t k"] | Float[Tensor, "... t k"] | None = None,
        causal: bool = True,
    ) -> Float[Tensor, "b t d"]:
        """Return the attention residual; `causal` holds without a mask, for queries and keys of the same tokens."""
        mixed = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=causal and mask is None, enable_gqa=self.grouped
        )
        return layer.self_attn.o_proj(mixed.transpose(1, 2).flatten(2)).add_(hidden)

    def _joint_layer(
        self, index: int, layer: Any, hidden: Tensor, positions: Tensor, prompts: Prompts, cache: KVCache
    ) -> tuple[Float[Tensor, "q u d"], Int[Tensor, "q u"]]:
        """One layer over whole prompts, with its reduction between attention and MLP where the plan has one."""
        rotation = self._rotation(hidden, positions)
        queries, keys, values = self._project(layer, hidden, rotation)
        cache.put(index, 0, keys, values)
        hidden = self._attend(layer, hidden, queries, keys, values)
        drop = self.plan.decoder_drops[index]
        if drop and not self.plan.decoder_after_mlp:
            hidden, positions = self._reduce(hidden, positions, queries, keys, drop, prompts, index)
        hidden = add_feed_forward(layer.mlp, layer.post_attention_layernorm, hidden)
        if drop and self.plan.decoder_after_mlp:
            if self.plan.decoder_by_next:
                queries, keys = self._look_ahead(self.llama.layers[index + 1], hidden, rotation)
            hidden, positions = self._reduce(hidden, positions, queries, keys, drop, prompts, index)
        return hidden, positions

    def _reduce(
        self, hidden: Tensor, positions: Tensor, queries: Tensor, keys: Tensor, drop: int, prompts: Prompts, index: int
    ) -> tuple[Tensor, Tensor]:
        start = len(prompts.prefix)
        end = start + self.plan.decoder_visual_lengths[index]
        words = torch.arange(prompts.suffix.shape[1], device=hidden.device) < prompts.lengths.unsqueeze(1)
        block = VisualBlock(
            queries[:, :, start:end], queries[:, :, end:], keys, text=words, text_states=hidden[:, end:]
        )
        visual, kept = reduce_block(hidden[:, start:end], block, drop, self.reduction)
        reduced = torch.cat([hidden[:, :start], visual, hidden[:, end:]], 1)
        if self.packed:
            return reduced, positions[:, : positions.shape[1] - drop]
        left = positions[:, start:end].gather(1, kept)
        return reduced, torch.cat([positions[:, :start], left, positions[:, end:]], 1)

    def _shared_layer(
        self,
        index: int,
        layer: Any,
        shared: Float[Tensor, "i t d"],
        suffix: Float[Tensor, "q m d"],
        positions: Int[Tensor, "i u"],
        prompts: Prompts,
        cache: KVCache,
    ) -> tuple[Float[Tensor, "i t d"], Float[Tensor, "q m d"]]:
        """One layer, once per image over text and image, and once per question over its own text."""
        t, m = shared.shape[1], suffix.shape[1]
        queries, keys, values = self._project(layer, shared, self._rotation(shared, positions[:, :t]))
        cache.put(index, 0, keys.index_select(0, prompts.image), values.index_select(0, prompts.image))
        if index + 1 < len(self.llama.layers):
            shared = self._attend(layer, shared, queries, keys, values)
            shared = add_feed_forward(layer.mlp, layer.post_attention_layernorm, shared)
        turned = self._rotation(suffix, positions[:1, t:])
        queries, keys, values = self._project(layer, suffix, turned)
        cache.put(index, t, keys, values)
        mask = torch.ones(m, t + m, dtype=torch.bool, device=suffix.device).tril(t)
        suffix = self._attend(layer, suffix, queries, *cache.view(index, m), mask=mask)
        return shared, add_feed_forward(layer.mlp, layer.post_attention_layernorm, suffix)


def _rotate(states: Float[Tensor, "b h t e"], cos: Tensor, sin: Tensor) -> Float[Tensor, "b h t e"]:
    """Rotary position embedding (Su et al. 2021), LLaMA's half-split form."""
    first, second = states.chunk(2, -1)
    turned, half = states * cos, first.shape[-1]
    turned[..., :half].addcmul_(second, sin[..., :half], value=-1)
    turned[..., half:].addcmul_(first, sin[..., half:])
    return turned


def pad_suffixes(suffixes: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return suffixes padded on the right (q, m) and their lengths (q). What pads is never looked at."""
    longest = max(map(len, suffixes))
    padded = torch.tensor([[*s, *[0] * (longest - len(s))] for s in suffixes], device=device)
    return padded, torch.tensor([len(s) for s in suffixes], device=device)
