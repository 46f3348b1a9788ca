"""What must not change anything: no drop, another batch, more padding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import reduction
from reduction import feed_forward
from reduction.installation import ReducedForward, _replaced
from reduction.language import reduce_visual
from reduction.schedule import plan
from reduction.settings import Reduction, ReductionError
from reduction.shapes import from_config
from reduction.vision import encode_images, tower_parts
from tests.tiny import tiny_images, tiny_llava, tiny_prompts

METHODS = ["ficoco-v", "ficoco-l", "ficoco-vl"]
OPTIONS = ["", ",text_scores=raw", ",text_direction=vision_to_text", ",patch_scores=softmax", ",positions=packed"]


def features_of(model: Any, text: str, images: torch.Tensor) -> torch.Tensor:
    setting = Reduction.parse(text)
    return encode_images(model, images, plan(setting, from_config(model.config)), setting)[0]


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"strategy": "full"},
        {"feature_layer": -1},
        {"feature_layer": 1},
        {"feature_layer": [1, -2]},
        {"tower": "siglip", "strategy": "full"},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_dense_features_are_hugging_faces_bit_for_bit(sizes: dict[str, Any], dtype: torch.dtype) -> None:
    model = tiny_llava(1, dtype=dtype, **sizes)
    images = tiny_images(3, dtype=dtype)
    expected = torch.stack(list(model.get_image_features(images).pooler_output))
    for text in ("dense", "ficoco-v:100%,start=0", "ficoco-l:4"):
        assert torch.equal(features_of(model, text, images), expected)


@pytest.mark.parametrize("at_once", [1, 2, 3])
@torch.no_grad()
def test_a_layer_in_parts_is_the_whole_layer(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[int] = []
    model, images = tiny_llava(1, dtype=torch.float64), tiny_images(5, dtype=torch.float64)
    expected = features_of(model, "ficoco-v:4", images)
    first: Any = tower_parts(model).layers[0]
    layer = first.mlp.fc1
    monkeypatch.setattr(feed_forward, "INNER_BYTES", at_once * 17 * layer.out_features * images.element_size() + 1)
    layer.register_forward_hook(lambda module, args, result: parts.append(len(args[0])))
    torch.testing.assert_close(features_of(model, "ficoco-v:4", images), expected)
    assert parts == [at_once] * (5 // at_once) + [5 % at_once] * (5 % at_once > 0)


@torch.no_grad()
def test_several_feature_layers_cannot_be_reduced() -> None:
    with pytest.raises(ReductionError, match="reads 2 feature layers"):
        features_of(tiny_llava(1, feature_layer=[1, -2]), "ficoco-v:4", tiny_images(1))


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_no_drop_installed_changes_no_bit(method: str) -> None:
    model = tiny_llava(1)
    inputs = tiny_prompts([1, 5], [[3, 4, 5], [6, 7, 8]])
    expected = model(**inputs, pixel_values=tiny_images(2)).logits
    with reduction.install(model, f"{method}:100%"):
        assert torch.equal(model(**inputs, pixel_values=tiny_images(2)).logits, expected)


@torch.no_grad()
def test_the_reduced_forward_without_a_drop_changes_no_bit() -> None:
    model = tiny_llava(1)
    setting = Reduction("ficoco-vl")
    inputs = tiny_prompts([1, 5], [[3, 4, 5], [6, 7, 8]])
    expected = model(**inputs, pixel_values=tiny_images(2)).logits
    forward = ReducedForward(model.model, plan(setting, from_config(model.config)), setting)
    with _replaced(model.model, "forward", forward):
        assert torch.equal(model(**inputs, pixel_values=tiny_images(2)).logits, expected)


def test_decoder_step_without_a_drop_changes_no_bit() -> None:
    hidden, queries, keys = torch.randn(2, 30, 8), torch.randn(2, 4, 30, 2), torch.randn(2, 2, 30, 2)
    got, kept = reduce_visual(hidden, queries, keys, start=3, count=16, n_drop=0, reduction=Reduction("ficoco-l"))
    assert torch.equal(got, hidden)
    assert kept.tolist() == [list(range(16))] * 2


@pytest.mark.parametrize("text", ["ficoco-v:6", "ficoco-v:6,cls_scores=keys", "ficoco-v:6,patch_scores=softmax"])
@torch.no_grad()
def test_a_batch_of_images_is_its_rows(text: str) -> None:
    model, images, setting = (
        tiny_llava(1, dtype=torch.float64),
        tiny_images(5, dtype=torch.float64),
        Reduction.parse(text),
    )
    chosen = plan(setting, from_config(model.config))
    features, kept = encode_images(model, images, chosen, setting)
    for row in range(5):
        alone, left = encode_images(model, images[row : row + 1], chosen, setting)
        assert torch.equal(kept[row], left[0])
        torch.testing.assert_close(features[row], alone[0])


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_padded_batch_is_its_rows(method: str, options: str, side: str) -> None:
    model, images = tiny_llava(1, dtype=torch.float64), tiny_images(3, dtype=torch.float64)
    suffixes = [[3, 4, 5, 6, 7, 8], [9], [10, 11, 12]]
    inputs = tiny_prompts([1, 5], suffixes, side=side)
    with reduction.install(model, f"{method}:5{options}"):
        logits = model(**inputs, pixel_values=images).logits
        for row, suffix in enumerate(suffixes):
            alone = model(**tiny_prompts([1, 5], [suffix]), pixel_values=images[row : row + 1]).logits
            torch.testing.assert_close(logits[row, inputs["attention_mask"][row].bool()], alone[0])


@pytest.mark.parametrize("options", OPTIONS)
def test_padding_changes_nothing_that_is_kept(options: str) -> None:
    """The tokens in padded places are arbitrary: they must not be looked at."""
    setting = Reduction.parse(f"ficoco-l:5{options}")
    hidden, queries, keys = torch.randn(2, 32, 8), torch.randn(2, 4, 32, 2), torch.randn(2, 2, 32, 2)
    expected, kept = reduce_visual(
        hidden[:, 2:28], queries[:, :, 2:28], keys[:, :, 2:28], start=4, count=16, n_drop=7, reduction=setting
    )
    for _ in range(3):
        for tensor, axis in ((hidden, 1), (queries, 2), (keys, 2)):
            for span in (slice(0, 2), slice(28, 32)):
                noise = torch.randn_like(tensor.movedim(axis, 0)[span]) * 50
                tensor.movedim(axis, 0)[span] = noise
        text = (torch.arange(10) < 6).expand(2, -1)
        prefix = (torch.arange(6) >= 2).expand(2, -1)
        got, left = reduce_visual(
            hidden, queries, keys, start=6, count=16, n_drop=7, reduction=setting, text=text, prefix=prefix
        )
        assert torch.equal(left, kept)
        torch.testing.assert_close(got[:, 2:-4], expected)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_calls_leave_no_trace(method: str) -> None:
    model, setting = tiny_llava(1), replace(Reduction.parse(f"{method}:5"))
    inputs = tiny_prompts([1, 5], [[3, 4, 5]])
    with reduction.install(model, setting):
        first = model(**inputs, pixel_values=tiny_images(1)).logits
        model(**inputs, pixel_values=tiny_images(1, seed=9))
        assert torch.equal(model(**inputs, pixel_values=tiny_images(1)).logits, first)
