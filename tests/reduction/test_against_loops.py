"""The whole reduced forward against the plain loops of `reference`, for V, L and VL under every option."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reduction
from reduction.schedule import plan
from reduction.settings import Reduction
from reduction.shapes import from_config
from reduction.vision import encode_images
from tests.reduction import reference
from tests.tiny import EOS_TOKEN, tiny_images, tiny_llava, tiny_prompts

PREFIX = [1, 11, 12]
SUFFIXES = [[21, 22, 23, 24, 25], [31, 32], [41, 42, 43]]
TOLERANCE = 1e-5  # the models' norms and rotations compute in float32 inside

OPTIONS = st.fixed_dictionaries(
    {
        "keep": st.integers(2, 14),
        "split": st.sampled_from([0.0, 0.3, 0.5, 1.0]),
        "lam": st.sampled_from([0.0, 0.35, 0.65, 1.0]),
        "beta": st.sampled_from([0.0, 0.6, 1.0]),
        "gamma": st.sampled_from([0.0, 0.6, 1.0]),
        "epsilon": st.sampled_from([0.0, 0.5, 0.75, 0.9, 0.998, 1.0]),
        "local_penalty": st.booleans(),
        "window": st.integers(1, 3),
        "penalty": st.sampled_from([0.5, 2.0, 3.0]),
        "cls_scores": st.sampled_from(["softmax", "raw", "keys"]),
        "patch_scores": st.sampled_from(["raw", "softmax"]),
        "text_scores": st.sampled_from(["softmax", "raw"]),
        "text_direction": st.sampled_from(["text_to_vision", "vision_to_text"]),
        "normalise": st.sampled_from(["l2", "zscore", "none"]),
        "positions": st.sampled_from(["original", "packed"]),
        "compress": st.sampled_from(["merge", "mean", "prune"]),
        "vision_start": st.integers(0, 3),
        "vision_layers": st.integers(1, 2),
        "language_start": st.integers(0, 3),
        "language_layers": st.integers(1, 2),
    }
)


@cache
def model(**sizes: Any) -> Any:
    return tiny_llava(3, dtype=torch.float64, **sizes)


def images(count: int) -> torch.Tensor:
    return tiny_images(count, seed=5, dtype=torch.float64)


@given(OPTIONS)
@settings(max_examples=60)
def test_vision_tower(options: dict[str, Any]) -> None:
    setting = Reduction("ficoco-v", **options)
    check_features(model(), setting)


@pytest.mark.parametrize("text", ["ficoco-v:6", "ficoco-v:9,patch_scores=softmax"])
@pytest.mark.parametrize(
    "sizes",
    [{"strategy": "full"}, {"tower": "siglip", "strategy": "full"}, {"feature_layer": -1}, {"feature_layer": 4}],
    ids=str,
)
def test_vision_tower_of_another_form(text: str, sizes: dict[str, Any]) -> None:
    check_features(model(**sizes), Reduction.parse(f"{text},vision_start=1"))


def check_features(llava: Any, setting: Reduction) -> None:
    chosen = plan(setting, from_config(llava.config))
    with torch.no_grad():
        features, kept = encode_images(llava, images(2), chosen, setting)
        for row, image in enumerate(images(2)):
            expected, left = reference.encode(llava, image, chosen.vision_drops, setting)
            assert kept[row].tolist() == left
            torch.testing.assert_close(features[row], expected, rtol=TOLERANCE, atol=TOLERANCE)


@given(OPTIONS, st.sampled_from(["ficoco-v", "ficoco-l", "ficoco-vl"]), st.sampled_from(["left", "right"]))
@settings(max_examples=40)
def test_padded_batch_through_the_whole_model(options: dict[str, Any], method: str, side: str) -> None:
    check_logits(model(), Reduction(method, **options), side)


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_other_groupings_of_keys(kv_heads: int) -> None:
    check_logits(model(kv_heads=kv_heads), Reduction.parse("ficoco-vl:5,text_direction=vision_to_text"), "left")


def check_logits(llava: Any, setting: Reduction, side: str) -> None:
    inputs = tiny_prompts(PREFIX, SUFFIXES, side=side)
    with torch.no_grad(), reduction.install(llava, setting) as chosen:
        logits = llava(**inputs, pixel_values=images(3)).logits
    for row, suffix in enumerate(SUFFIXES):
        with torch.no_grad():
            expected, kept, _ = reference.prompt(llava, PREFIX, images(3)[row], suffix, chosen, setting)
        got = logits[row, inputs["attention_mask"][row].bool()]
        left = [*range(3), *(3 + token for token in kept), *range(19, 19 + len(suffix))]
        torch.testing.assert_close(got[left], expected, rtol=TOLERANCE, atol=10 * TOLERANCE)


@pytest.mark.parametrize("positions", ["original", "packed"])
@pytest.mark.parametrize("method", ["ficoco-v", "ficoco-l", "ficoco-vl"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_generated_text(method: str, positions: str, side: str) -> None:
    setting = Reduction.parse(f"{method}:5,positions={positions}")
    inputs = tiny_prompts(PREFIX, SUFFIXES, side=side)
    with reduction.install(model(), setting) as chosen:
        got = model().generate(**inputs, pixel_values=images(3), max_new_tokens=8, do_sample=False)
    for row, suffix in enumerate(SUFFIXES):
        with torch.no_grad():
            logits, _, kept = reference.prompt(model(), PREFIX, images(3)[row], suffix, chosen, setting)
            expected = reference.greedy(model(), logits[-1], kept, 8, EOS_TOKEN)
        answer = got[row, inputs["input_ids"].shape[1] :].tolist()
        assert answer[: len(expected)] == expected
        assert not any(answer[len(expected) :])
