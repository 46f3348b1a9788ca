"""ToMe, EViT and FastV as rows of the table against straight implementations of each: same sets, same outputs."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

import reduction
from reduction.schedule import plan
from reduction.settings import Reduction
from reduction.shapes import from_config
from reduction.vision import encode_images
from tests.reduction import reference_methods
from tests.tiny import tiny_images, tiny_llava, tiny_prompts

TOLERANCE = 1e-5  # the models' norms and rotations compute in float32 inside
PREFIX, SUFFIXES = [1, 11, 12], [[21, 22, 23, 24, 25], [31, 32], [41, 42, 43]]


@cache
def model(grid: int = 6) -> Any:
    return tiny_llava(3, grid=grid, dtype=torch.float64)


def images(grid: int = 6) -> torch.Tensor:
    return tiny_images(3, seed=5, grid=grid, dtype=torch.float64)


@pytest.mark.parametrize("grid", [4, 5, 6])
@pytest.mark.parametrize("options", ["", ",start=1,layers=3", ",start=2,layers=2"])
@torch.no_grad()
def test_tome(options: str, grid: int) -> None:
    check_tower("tome:12" + options, reference_methods.tome, grid)


@pytest.mark.parametrize("text", ["evit:9", "evit:2", "evit:20,start=0,layers=5", "evit:7,start=4"])
@torch.no_grad()
def test_evit(text: str) -> None:
    check_tower(text, reference_methods.evit, 6)


def check_tower(text: str, straight: Any, grid: int) -> None:
    setting, llava = Reduction.parse(text), model(grid)
    schedule = plan(setting, from_config(llava.config))
    features, kept = encode_images(llava, images(grid), schedule, setting)
    for row, image in enumerate(images(grid)):
        expected, left = straight(llava, image, schedule.vision_drops)
        assert kept[row].tolist() == left
        torch.testing.assert_close(features[row], expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_fastv(k: int, side: str) -> None:
    llava, keep = model(), 7
    setting = Reduction.parse(f"fastv:{keep}" if k == 2 else f"fastv:{keep},start={k - 1}")
    schedule = plan(setting, from_config(llava.config))
    features, _ = encode_images(llava, images(), schedule, setting)
    inputs = tiny_prompts(PREFIX, SUFFIXES, visual=36, side=side)
    with reduction.install(llava, setting):
        logits = llava(**inputs, pixel_values=images()).logits
    for row, suffix in enumerate(SUFFIXES):
        expected, kept = reference_methods.fastv(llava, PREFIX, features[row], suffix, k, keep)
        got = logits[row, inputs["attention_mask"][row].bool()]
        left = [*range(3), *(3 + token for token in kept), *range(39, 39 + len(suffix))]
        torch.testing.assert_close(got[left], expected, rtol=TOLERANCE, atol=10 * TOLERANCE)
        dropped = sorted(set(range(3, 39)) - set(left))
        previous = [max(i for i in left if i < token) for token in dropped]
        torch.testing.assert_close(got[dropped], got[previous])
