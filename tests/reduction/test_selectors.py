"""VisionZip, VisPruner, DivPrune, PruMerge, HiRED and pooling, each against loops over one image's tokens."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from reduction.schedule import plan
from reduction.settings import Reduction
from reduction.shapes import from_config
from reduction.vision import encode_images
from tests.reduction.reference import heads_of
from tests.reduction.reference_methods import embedded, layers_of
from tests.tiny import tiny_images, tiny_llava

TOLERANCE = 1e-5
GRID = 9
"""81 patches: enough that VisPruner removes 8 at a time and PruMerge's 32 nearest are not all."""


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


class Seen:
    """What the methods read off the feature layer of one image: states, attention of CLS, keys."""

    def __init__(self, model: Any, image: Tensor) -> None:
        hidden, layers = embedded(model, image), layers_of(model)
        for layer in layers[: len(layers) - 1]:
            entering, hidden = hidden, layer(hidden[None], None)[0]
        attention = layers[len(layers) - 2].self_attn
        normed = layers[len(layers) - 2].layer_norm1(entering)
        queries, keys = attention.q_proj(normed), attention.k_proj(normed)
        by_head = heads_of(queries, attention.num_heads), heads_of(keys, attention.num_heads)
        weights = (by_head[0] @ by_head[1].transpose(1, 2) / math.sqrt(attention.head_dim)).softmax(-1)
        self.states = hidden[1:]
        self.attention = weights.mean(0)[0, 1:].tolist()
        self.one_head = (queries @ keys.T / math.sqrt(queries.shape[1])).softmax(-1)[0, 1:].tolist()
        self.keys, self.mean_keys = keys[1:], by_head[1].mean(0)[1:]


def top(scores: list[float], count: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda i: -scores[i])[:count]


def hired(seen: Seen, keep: int) -> dict[int, Tensor]:
    return {i: seen.states[i] for i in top(seen.attention, keep)}


def visionzip(seen: Seen, keep: int) -> dict[int, Tensor]:
    context = round(10 / 64 * keep)
    dominant = top(seen.attention, keep - context)
    rest = [i for i in range(len(seen.states)) if i not in dominant]
    step = len(rest) // context
    groups = {target: [target] for target in rest[::step][:context]}
    for i in rest:
        if i not in groups:
            groups[max(groups, key=lambda j: cosine(seen.mean_keys[i], seen.mean_keys[j]))].append(i)
    means = {target: seen.states[members].mean(0) for target, members in groups.items()}
    return {i: seen.states[i] for i in dominant} | means


def vispruner(seen: Seen, keep: int) -> dict[int, Tensor]:
    important = top(seen.attention, round(keep / 2))
    left = [i for i in range(len(seen.states)) if i not in important]
    while len(left) > keep - len(important):
        even, odd = left[::2], left[1::2]
        removed = min(8, len(left) - (keep - len(important)))
        closest = [max(cosine(seen.states[i], seen.states[j]) for j in odd) for i in even]
        left = [even[i] for i in top(closest, len(even))[removed:]] + odd
    return {i: seen.states[i] for i in [*important, *left]}


def prumerge(seen: Seen, keep: int) -> dict[int, Tensor]:
    kept = top(seen.one_head, keep - 1)
    dropped = [i for i in range(len(seen.states)) if i not in kept]
    result = {}
    for j in kept:
        nearest = sorted(dropped, key=lambda i: -cosine(seen.keys[i], seen.keys[j]))[:32]
        result[j] = seen.states[j] + sum(seen.one_head[i] * seen.states[i] for i in nearest)
    heaviest = max(dropped, key=lambda i: seen.one_head[i])
    return result | {heaviest: sum(seen.one_head[i] * seen.states[i] for i in dropped)}


@pytest.mark.parametrize("keep", [20, 33])
@pytest.mark.parametrize("straight", [hired, visionzip, vispruner, prumerge])
@torch.no_grad()
def test_methods_at_the_towers_output(straight: Any, keep: int) -> None:
    model, images = tiny_llava(4, grid=GRID, dtype=torch.float64), tiny_images(2, grid=GRID, dtype=torch.float64)
    setting = Reduction.parse(f"{straight.__name__}:{keep}")
    features, kept = encode_images(model, images, plan(setting, from_config(model.config)), setting)
    for row, image in enumerate(images):
        expected = straight(Seen(model, image), keep)
        assert kept[row].tolist() == sorted(expected)
        states = torch.stack([expected[cell] for cell in sorted(expected)])
        projected = model.model.multi_modal_projector(states)
        torch.testing.assert_close(features[row], projected, rtol=TOLERANCE, atol=TOLERANCE)


@torch.no_grad()
def test_divprune() -> None:
    model, images = tiny_llava(4, grid=GRID, dtype=torch.float64), tiny_images(2, grid=GRID, dtype=torch.float64)
    setting, shape = Reduction.parse("divprune:14"), from_config(model.config)
    dense, _ = encode_images(model, images, plan(Reduction(), shape), Reduction())
    features, kept = encode_images(model, images, plan(setting, shape), setting)
    for row in range(2):
        distance = [[1 - cosine(a, b) for b in dense[row]] for a in dense[row]]
        everything = range(GRID * GRID)
        chosen = [max(everything, key=lambda i: min(distance[i][j] for j in everything if j != i))]
        while len(chosen) < 14:
            rest = [i for i in everything if i not in chosen]
            chosen.append(max(rest, key=lambda i: min(distance[i][j] for j in chosen)))
        assert kept[row].tolist() == sorted(chosen)
        assert torch.equal(features[row], dense[row][sorted(chosen)])


@pytest.mark.parametrize(("keep", "window"), [(16, (1, 1)), (8, (2, 1)), (4, (2, 2))])
@torch.no_grad()
def test_average_pool(keep: int, window: tuple[int, int]) -> None:
    model, images = tiny_llava(4, dtype=torch.float64), tiny_images(2, dtype=torch.float64)
    setting, shape = Reduction.parse(f"average-pool:{keep}"), from_config(model.config)
    dense, _ = encode_images(model, images, plan(Reduction(), shape), Reduction())
    features, kept = encode_images(model, images, plan(setting, shape), setting)
    board = dense.transpose(1, 2).unflatten(2, (4, 4))
    expected = torch.nn.functional.avg_pool2d(board, window).flatten(2).transpose(1, 2)
    torch.testing.assert_close(features, expected)
    corners = [row * 4 + column for row in range(0, 4, window[0]) for column in range(0, 4, window[1])]
    assert kept[0].tolist() == corners
