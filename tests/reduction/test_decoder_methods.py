"""PyramidDrop and DART against loops over full maps, and what every decoder method costs in a whole prefill."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import reduction
from reduction import flops
from reduction.drops import spread
from reduction.schedule import plan
from reduction.settings import Reduction, ReductionError
from reduction.shapes import NAMED, from_config
from reduction.vision import encode_images
from tests.reduction.counted import operations
from tests.reduction.reference import decoder_layer_inputs, repeat
from tests.tiny import tiny_images, tiny_llava, tiny_prompts

TOLERANCE = 1e-5
PREFIX, SUFFIXES = [1, 11, 12], [[21, 22, 23, 24, 25], [31, 32], [41, 42, 43]]
GRID = 6
Choose = Callable[[Tensor, Any, Any, list[int], int, int], list[int]]
"""(states before a layer, the layer before, the layer, positions, visual tokens, how many stay) -> which stay."""


def maps(layer: Any, hidden: Tensor, positions: list[int], theta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Causal attention weights (heads, t, t), keys and values of a layer."""
    queries, keys, values = decoder_layer_inputs(layer, hidden, positions, theta)
    raw = queries @ repeat(keys, len(queries)).transpose(1, 2) / math.sqrt(queries.shape[-1])
    causal = torch.ones(len(hidden), len(hidden), dtype=torch.bool).tril()
    return raw.masked_fill(~causal, -math.inf).softmax(-1), keys, values


def pruned(
    model: Any, features: Tensor, suffix: list[int], lengths: dict[int, int], choose: Choose
) -> tuple[Tensor, list[int]]:
    """Logits of all tokens left where tokens are cut before some layers, and the visual tokens left."""
    decoder, start = model.model.language_model, len(PREFIX)
    embed, kept = decoder.embed_tokens, list(range(len(features)))
    hidden = torch.cat([embed(torch.tensor(PREFIX)), features, embed(torch.tensor(suffix))])
    positions, entered = list(range(len(hidden))), hidden
    for index, layer in enumerate(decoder.layers):
        if index in lengths:
            stay = choose(hidden, (decoder.layers[index - 1], entered), layer, positions, len(kept), lengths[index])
            left = [*range(start), *(start + i for i in stay), *range(start + len(kept), len(hidden))]
            hidden, positions, kept = hidden[left], [positions[i] for i in left], [kept[i] for i in stay]
        entered = hidden
        weights, _, values = maps(layer, hidden, positions, THETA)
        mixed = (weights @ repeat(values, len(weights))).transpose(0, 1).flatten(1)
        hidden = hidden + layer.self_attn.o_proj(mixed)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return model.lm_head(decoder.norm(hidden)), kept


THETA = 10000.0


def by_next_layer(hidden: Tensor, before: Any, layer: Any, positions: list[int], count: int, keep: int) -> list[int]:
    """PyramidDrop: the last token's attention, from the queries and keys of the layer to come."""
    score = maps(layer, hidden, positions, THETA)[0].mean(0)[-1].tolist()
    return sorted(sorted(range(count), key=lambda i: -score[3 + i])[:keep])


def by_pivots(hidden: Tensor, before: Any, layer: Any, positions: list[int], count: int, keep: int) -> list[int]:
    """DART: pivots by the keys of the layer behind, likeness by its states."""
    keys = maps(before[0], before[1], positions, THETA)[1]
    norm = keys.abs().sum((0, 2)).tolist()
    visual, words = list(range(3, 3 + count)), list(range(3 + count, len(hidden)))
    pivots = sorted(visual, key=lambda i: -norm[i])[:4]
    heard = sorted(words, key=lambda i: -norm[i])
    chosen = list(pivots)
    for pivot, share in zip([*pivots, *(heard[i % len(heard)] for i in range(4))], spread(keep - 4, 8), strict=True):
        cosine = {i: float(torch.cosine_similarity(hidden[pivot], hidden[i], dim=0)) for i in visual}
        chosen += sorted((i for i in visual if i not in chosen), key=cosine.__getitem__)[:share]
    return sorted(i - 3 for i in chosen)


@pytest.mark.parametrize(
    ("text", "lengths", "choose"),
    [
        ("pyramiddrop:9", {1: 23, 2: 14, 3: 9}, by_next_layer),
        ("dart:17", {2: 17}, by_pivots),
        ("dart:15,start=2", {3: 15}, by_pivots),
    ],
)
@torch.no_grad()
def test_against_loops(text: str, lengths: dict[int, int], choose: Choose) -> None:
    llava, images = tiny_llava(3, grid=GRID, dtype=torch.float64), tiny_images(3, grid=GRID, dtype=torch.float64)
    assert float(llava.model.language_model.config.rope_parameters["rope_theta"]) == THETA
    features, _ = encode_images(llava, images, plan(Reduction(), from_config(llava.config)), Reduction())
    inputs = tiny_prompts(PREFIX, SUFFIXES, visual=GRID * GRID)
    with reduction.install(llava, text):
        logits = llava(**inputs, pixel_values=images).logits
    for row, suffix in enumerate(SUFFIXES):
        expected, kept = pruned(llava, features[row], suffix, lengths, choose)
        got = logits[row, inputs["attention_mask"][row].bool()]
        left = [*range(3), *(3 + token for token in kept), *range(39, 39 + len(suffix))]
        torch.testing.assert_close(got[left], expected, rtol=TOLERANCE, atol=10 * TOLERANCE)


@pytest.mark.parametrize(
    "text", ["fastv:5", "pyramiddrop:5", "dart:5", "pyramiddrop:5,positions=packed", "divprune:5", "evit:5", "tome:5"]
)
def test_a_whole_prefill_costs_what_is_counted(text: str) -> None:
    model, setting = tiny_llava(), Reduction.parse(text)
    shape, inputs = from_config(model.config), tiny_prompts(PREFIX, SUFFIXES[:1])
    with reduction.install(model, setting):
        seen = operations(lambda: model(**inputs, pixel_values=tiny_images(1), logits_to_keep=1))
    assert sum(seen.values()) == flops.count(shape, plan(setting, shape), 3, 8, 1, setting).total


def test_published_lengths() -> None:
    schedule = plan(Reduction.parse("pyramiddrop:12.5%"), NAMED["llava-1.5-7b"])
    assert schedule.decoder_visual_lengths == (*[576] * 8, *[288] * 8, *[144] * 8, *[72] * 8)
    with pytest.raises(ReductionError, match="the last layer has none"):
        plan(Reduction.parse("pyramiddrop:64,start=31,layers=1"), NAMED["llava-1.5-7b"])
