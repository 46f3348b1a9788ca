"""Installing a reduction in a plain model: what it refuses, and that leaving restores it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import CLIPVisionModel, DynamicCache, StaticCache

import reduction
from reduction.settings import ReductionError
from tests.reduction.installed import TEXTS, generate, inputs
from tests.tiny import IMAGE_TOKEN, tiny_config, tiny_images, tiny_llava


def own_attributes(model: nn.Module) -> list[dict[str, Any]]:
    return [dict(vars(module)) for module in model.modules()]


def same(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> bool:
    return len(before) == len(after) and all(
        old.keys() == new.keys() and all(old[name] is new[name] for name in old)
        for old, new in zip(before, after, strict=True)
    )


# ---- leaving


@pytest.mark.parametrize("text", ["dense", *TEXTS])
def test_leaving_restores_every_attribute_and_output(model: Any, text: str) -> None:
    attributes, answer = own_attributes(model), generate(model)
    with reduction.install(model, text):
        assert same(attributes, own_attributes(model)) == (text == "dense")
        reduced = generate(model)
    assert same(attributes, own_attributes(model))
    assert torch.equal(generate(model), answer)
    assert torch.equal(reduced, answer) == (text == "dense")


def test_leaving_by_an_exception_restores_too(model: Any) -> None:
    attributes = own_attributes(model)
    with pytest.raises(KeyError), reduction.install(model, "ficoco-vl:5"):
        raise KeyError
    assert same(attributes, own_attributes(model))
    with pytest.raises(ReductionError), reduction.install(model, "ficoco-vl:5"):
        model(input_ids=torch.tensor([[1, 2, 3]]))
    assert same(attributes, own_attributes(model))


def test_an_attribute_that_was_there_comes_back(model: Any) -> None:
    with reduction.install(model, "ficoco-v:5"):
        outer, answer = vars(model.model)["forward"], generate(model)
        with reduction.install(model, "ficoco-l:5"):
            inner = generate(model)
        assert vars(model.model)["forward"] is outer
        assert torch.equal(generate(model), answer)
    assert not torch.equal(inner, answer)
    assert "forward" not in vars(model.model)


# ---- refusing


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"pixel_values": None}, "without pixel_values"),
        ({"pixel_values": tiny_images(3, dtype=torch.float64)}, "3 images for 2 rows"),
        ({"output_hidden_states": True}, "output_hidden_states is not available"),
        ({"vision_feature_layer": -1}, "vision_feature_layer must be the model's own"),
        ({"attention_mask": torch.ones(2, 1, 22, 22)}, "has 4 dimensions"),
    ],
)
def test_inputs_it_cannot_reduce(model: Any, change: dict[str, Any], sentence: str) -> None:
    with reduction.install(model, "ficoco-v:5"), pytest.raises(ReductionError, match=sentence):
        model(**{**inputs(), **change})


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        ([12], "row 0 of the batch has 12 image placeholders instead of 16"),
        ([16, 16], "row 0 of the batch has 32 image placeholders instead of 16"),
        ([], "row 0 of the batch has 0 image placeholders instead of 16"),
        ([8, 8], "do not stand together: they must form one block"),
    ],
)
def test_prompts_it_cannot_reduce(model: Any, images: list[int], sentence: str) -> None:
    row = [1, *(token for count in images for token in [*[IMAGE_TOKEN] * count, 7])]
    with reduction.install(model, "ficoco-v:5"), pytest.raises(ReductionError, match=sentence):
        model(input_ids=torch.tensor([row, row]), pixel_values=inputs()["pixel_values"])


def test_caches_it_cannot_use(model: Any) -> None:
    used = DynamicCache(config=model.config.text_config)
    model(**inputs(), past_key_values=used)
    static = StaticCache(config=model.config.text_config, max_cache_len=64)
    with reduction.install(model, "ficoco-v:5"):
        with pytest.raises(ReductionError, match="holds an unreduced prompt"):
            model(**inputs(), past_key_values=used)
        with pytest.raises(ReductionError, match="StaticCache cannot hold"):
            model(**inputs(), past_key_values=static)
        cache = model(**inputs()).past_key_values
        with pytest.raises(ReductionError, match="assisted decoding"):
            cache.crop(-1)
        with pytest.raises(ReductionError, match="covers 5 tokens instead of the 23"):
            model(input_ids=torch.ones(2, 1).long(), attention_mask=torch.ones(2, 5), past_key_values=cache)


def test_decoding_it_cannot_do(model: Any) -> None:
    """By name, though the candidates that come with the first pass would break it in other ways before."""
    row = {name: value[:1] for name, value in inputs().items()}
    # The last word stands before the image as well, so that its placeholders become the first candidates.
    image = int((row["input_ids"][0] == IMAGE_TOKEN).nonzero()[0])
    row["input_ids"][0, -1] = row["input_ids"][0, image - 1]
    for assisted in ({"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1}, {"assistant_model": tiny_llava(1)}):
        with reduction.install(model, "ficoco-v:5"), pytest.raises(ReductionError, match="assisted decoding"):
            model.generate(**row, max_new_tokens=7, **assisted)
    assert "_validate_generation_mode" not in vars(model)


def test_models_it_cannot_reduce(model: Any) -> None:
    config: Any = tiny_config().vision_config
    tower: Any = CLIPVisionModel(config)
    with pytest.raises(ReductionError, match="cannot install a reduction in a CLIPVisionModel"):
        reduction.install(tower, "ficoco-v:5").__enter__()
    with pytest.raises(ReductionError, match="cannot keep 17 visual tokens: the model has 16"):
        reduction.install(model, "ficoco-v:17").__enter__()
    for nothing in (None, 5):
        given: Any = nothing
        with pytest.raises(ReductionError, match=f"cannot install {nothing}: give a reduction such as 'ficoco-v:64'"):
            reduction.install(model, given).__enter__()
    other = tiny_llava(1)
    other.model.language_model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ReductionError, match="attends with 'flash_attention_2'"):
        reduction.install(other, "ficoco-v:5").__enter__()
