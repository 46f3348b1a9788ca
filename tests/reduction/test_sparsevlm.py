"""SparseVLM against loops over full attention maps, and its clustering against loops and a case known by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import reduction
from reduction.clusters import density_peaks
from reduction.drops import counts_for
from reduction.methods import METHODS
from reduction.schedule import plan
from reduction.settings import Reduction
from reduction.shapes import from_config
from reduction.vision import encode_images
from tests.reduction.reference import decoder_layer_inputs, repeat
from tests.reduction.test_decoder_methods import THETA, maps
from tests.tiny import tiny_images, tiny_llava, tiny_prompts

TOLERANCE = 1e-5
GRID, DEPTH = 8, 11
STEPS = (0, 1, 4)
"""Layers of 11 behind which tokens go: those at 2, 6 and 15 of 32, as shares of the depth."""
PREFIX, SUFFIXES = [1, 11, 12], [[21, 22, 23, 24, 25], [31, 32], [41, 42, 43]]
PUBLISHED = METHODS["sparsevlm"]["language"].schedule.counts


def peaks(tokens: Tensor, count: int) -> list[int]:
    """The cluster of each token."""
    total, width = tokens.shape
    rows = tokens.tolist()
    apart = [[math.dist(a, b) / math.sqrt(width) for b in rows] for a in rows]
    density = []
    for i in range(total):
        others = sorted(apart[i][j] ** 2 for j in range(total) if j != i)[:5]
        density.append(math.exp(-sum(others) / max(1, len(others))))
    farthest = max(map(max, apart))
    score = []
    for i in range(total):
        denser = [j for j in range(total) if (density[j], -j) > (density[i], -i)]
        score.append(density[i] * min((apart[i][j] for j in denser), default=farthest))
    centres = sorted(range(total), key=lambda i: -score[i])[:count]
    cluster = [min(range(count), key=lambda c: apart[i][centres[c]]) for i in range(total)]
    for c, centre in enumerate(centres):
        cluster[centre] = c
    return cluster


def rate(layer: Any, entered: Tensor, positions: list[int], visual: list[int], words: list[int]) -> list[float]:
    """What the raters pay each visual token in a layer."""
    weights = maps(layer, entered, positions, THETA)[0].mean(0).tolist()
    queries, keys, _ = decoder_layer_inputs(layer, entered, positions, THETA)
    raw = queries[:, visual] @ repeat(keys, len(queries))[:, words].transpose(1, 2) / math.sqrt(queries.shape[-1])
    paid = raw.softmax(-1).mean(0).mean(0).tolist()
    raters = [words[k] for k in range(len(words)) if paid[k] >= sum(paid) / len(paid)]
    return [sum(weights[k][i] for k in raters) / len(raters) for i in visual]


def cut(hidden: Tensor, rated: list[float], start: int, count: int, keep: int) -> tuple[Tensor, list[int]]:
    """The visual states that go on, and the index, among those before, of the place that each has."""
    order = sorted(range(count), key=lambda i: -rated[i])
    stay, gone = sorted(order[:keep]), order[keep:]
    best = gone[: int(0.3 * len(gone)) + 1]
    number = len(best) // 10 + 1
    cluster = peaks(hidden[[start + i for i in best]], number)
    made, places = [], []
    for c in range(number):
        members = [i for i, own in zip(best, cluster, strict=True) if own == c]
        made.append(torch.stack([hidden[start + i] for i in members]).mean(0))
        places.append(min(members))
    return torch.cat([hidden[[start + i for i in stay]], torch.stack(made)]), [*stay, *places]


def straight(model: Any, features: Tensor, suffix: list[int], counts: tuple[int, ...], packed: bool) -> Tensor:
    """Logits of the text behind the image."""
    decoder, start = model.model.language_model, len(PREFIX)
    embed = decoder.embed_tokens
    hidden = torch.cat([embed(torch.tensor(PREFIX)), features, embed(torch.tensor(suffix))])
    positions, count, steps = list(range(len(hidden))), len(features), dict(zip(STEPS, counts, strict=True))
    for index, layer in enumerate(decoder.layers):
        entered = hidden
        weights, _, values = maps(layer, hidden, positions, THETA)
        mixed = (weights @ repeat(values, len(weights))).transpose(0, 1).flatten(1)
        hidden = hidden + layer.self_attn.o_proj(mixed)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        if index in steps:
            visual, words = range(start, start + count), range(start + count, len(hidden))
            rated = rate(layer, entered, positions, list(visual), list(words))
            states, left = cut(hidden, rated, start, count, steps[index])
            hidden = torch.cat([hidden[:start], states, hidden[start + count :]])
            positions = [*positions[:start], *(positions[start + i] for i in left), *positions[start + count :]]
            count = len(left)
            if packed:
                positions = list(range(len(hidden)))
    return model.lm_head(decoder.norm(hidden))[start + count :]


@pytest.mark.parametrize("positions", ["original", "packed"])
@pytest.mark.parametrize("keep", [8, 30])
@torch.no_grad()
def test_against_loops(keep: int, positions: str) -> None:
    llava = tiny_llava(3, grid=GRID, decoder_layers=DEPTH, dtype=torch.float64)
    images = tiny_images(3, grid=GRID, dtype=torch.float64)
    features, _ = encode_images(llava, images, plan(Reduction(), from_config(llava.config)), Reduction())
    counts = counts_for(keep, GRID * GRID, PUBLISHED)
    inputs = tiny_prompts(PREFIX, SUFFIXES, visual=GRID * GRID)
    with reduction.install(llava, f"sparsevlm:{keep},positions={positions}") as chosen:
        assert tuple(i for i, drop in enumerate(chosen.decoder_drops) if drop) == STEPS
        logits = llava(**inputs, pixel_values=images).logits
    for row, suffix in enumerate(SUFFIXES):
        expected = straight(llava, features[row], suffix, counts, positions == "packed")
        torch.testing.assert_close(logits[row, -len(suffix) :], expected, rtol=TOLERANCE, atol=10 * TOLERANCE)


@pytest.mark.parametrize(("total", "count"), [(1, 1), (2, 1), (4, 2), (17, 3), (40, 5)])
def test_clusters_against_loops(total: int, count: int) -> None:
    tokens = torch.randn(3, total, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(total))
    assert density_peaks(tokens, count).tolist() == [peaks(row, count) for row in tokens]


def test_heaps_of_tokens_become_clusters() -> None:
    centres = torch.tensor([[0.0, 0.0], [30.0, 0.0], [0.0, 30.0]], dtype=torch.float64)
    spread = torch.randn(24, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    heap = torch.arange(24) % 3
    found = density_peaks((centres[heap] + spread)[None], 3)[0]
    assert len(set(zip(heap.tolist(), found.tolist(), strict=True))) == 3


def test_equal_tokens_do_not_stop_it() -> None:
    assert sorted(set(density_peaks(torch.ones(1, 12, 4), 2)[0].tolist())) == [0, 1]


def test_budgets_between_the_published_lie_on_the_line() -> None:
    assert [counts_for(keep, 576, PUBLISHED) for keep in (64, 128, 192)] == [counts for _, counts in PUBLISHED[:3]]
    assert counts_for(96, 576, PUBLISHED) == (184, 70, 26)
    assert counts_for(32, 576, PUBLISHED) == (33, 15, 8)
    assert counts_for(384, 576, PUBLISHED) == (438, 388, 343)
    assert counts_for(16, 144, PUBLISHED) == (16, 8, 4)
    assert counts_for(1, 576, PUBLISHED) == (1, 1, 1)
