"""The reduced paths agree with PyTorch's counter to the last product, for every option that changes it."""

import itertools

import pytest
import torch

from reduction import flops
from reduction.language import reduce_visual
from reduction.overhead import language_terms, vision_terms
from reduction.schedule import plan
from reduction.settings import Reduction
from reduction.shapes import NAMED, ModelShape, from_config
from reduction.vision import encode_images
from tests.reduction.counted import counting
from tests.tiny import tiny_images, tiny_llava

PREFIX, WORDS = 3, 5


def counted(run) -> int:
    with counting() as counter:
        run()
    return counter.get_total_flops()


def combinations(**options: list[str]) -> list[str]:
    return [
        ",".join(f"{name}={value}" for name, value in zip(options, values, strict=True) if value)
        for values in itertools.product(*options.values())
    ]


VISION_OPTIONS = combinations(
    filter=["ficoco", "random", "stride"],
    compress=["merge", "mean", "prune"],
    cls_scores=["softmax", "raw", "keys"],
    patch_scores=["raw", "softmax"],
)


@pytest.mark.parametrize("options", VISION_OPTIONS)
def test_tower_with_reduction(options: str):
    model = tiny_llava()
    shape, reduction = from_config(model.config), Reduction.parse(f"ficoco-v:5,start=2,layers=3,{options}")
    schedule, images = plan(reduction, shape), tiny_images(1)
    parts = flops.count_image(shape, schedule, reduction)
    assert counted(lambda: encode_images(model, images, schedule, reduction)) == parts.total


@pytest.mark.parametrize(("tower", "strategy"), [("clip", "full"), ("siglip", "full")])
def test_tower_with_all_its_tokens(tower: str, strategy: str):
    model = tiny_llava(tower=tower, strategy=strategy)
    shape, reduction = from_config(model.config), Reduction.parse("ficoco-v:5,start=2")
    schedule = plan(reduction, shape)
    parts = flops.count_image(shape, schedule, reduction)
    assert counted(lambda: encode_images(model, tiny_images(1), schedule, reduction)) == parts.total


LANGUAGE_OPTIONS = combinations(
    filter=["ficoco", "random"],
    correlate=["attention_and_text", "attention"],
    compress=["merge", "prune"],
    patch_scores=["raw", "softmax"],
    text_scores=["softmax", "raw"],
    text_direction=["text_to_vision", "vision_to_text"],
    gamma=["0.6", "1"],
)


def reduce_every_layer(shape: ModelShape, reduction: Reduction) -> int:
    """FLOPs that the counter sees in the L steps of all layers."""
    schedule, decoder, total = plan(reduction, shape), shape.decoder, 0
    for count, n_drop in zip(schedule.decoder_visual_lengths, schedule.decoder_drops, strict=True):
        tokens = PREFIX + count + WORDS
        queries = torch.randn(1, decoder.heads, tokens, decoder.head_dim)
        keys, hidden = torch.randn(1, decoder.kv_heads, tokens, decoder.head_dim), torch.randn(1, tokens, decoder.width)
        step = {"start": PREFIX, "count": count, "n_drop": n_drop, "reduction": reduction}
        total += counted(lambda q=queries, k=keys, x=hidden, step=step: reduce_visual(x, q, k, **step))
    return total


@pytest.mark.parametrize("options", LANGUAGE_OPTIONS)
def test_reduction_in_the_decoder(options: str):
    shape = from_config(tiny_llava().config)
    reduction = Reduction.parse(f"ficoco-l:5,start=1,layers=3,{options}")
    terms = language_terms(shape, plan(reduction, shape), PREFIX, WORDS, reduction)
    assert reduce_every_layer(shape, reduction) == sum(terms.values())
    parts = flops.count_text(shape, plan(reduction, shape), PREFIX, PREFIX + WORDS, 4, reduction)
    assert parts.reduction == sum(terms.values())


def test_prefill_and_cache_of_a_reduced_decoder():
    # The model's own layers, each dropping the plan's count between its attention and its MLP.
    model = tiny_llava()
    shape, reduction = from_config(model.config), Reduction.parse("ficoco-l:5,start=1,layers=3")
    schedule, decoder = plan(reduction, shape), model.model.language_model
    lengths, cached = schedule.decoder_lengths(PREFIX + WORDS), []

    def run() -> None:
        hidden = torch.randn(1, lengths[0], shape.decoder.width)
        for layer, n_drop in zip(decoder.layers, schedule.decoder_drops, strict=True):
            angles = torch.ones(1, hidden.shape[1], shape.decoder.head_dim)
            cached.append(hidden.shape[1])
            mixed, _ = layer.self_attn(hidden, position_embeddings=(angles, angles), attention_mask=None)
            hidden = (hidden + mixed)[:, n_drop:]
            hidden = hidden + layer.mlp(hidden)
        model.lm_head(hidden[:, -1:])

    assert counted(run) == sum(flops.prefill(shape, schedule, PREFIX + WORDS).values())
    per_token = 2 * shape.decoder.kv_heads * shape.decoder.head_dim * 2
    assert flops.kv_bytes(shape, schedule, PREFIX + WORDS) == per_token * sum(cached)


@pytest.mark.parametrize("setting", ["ficoco-v:100%", "ficoco-l:100%", "ficoco-vl:100%", "dense"])
def test_dropping_nothing_costs_nothing(setting: str):
    shape, reduction = from_config(tiny_llava().config), Reduction.parse(setting)
    schedule = plan(reduction, shape)
    assert vision_terms(shape, schedule, reduction) == language_terms(shape, schedule, 3, 5, reduction) == {}


@pytest.mark.parametrize(("setting", "most"), [("ficoco-v:64", 0.001), ("ficoco-l:64", 0.01), ("ficoco-vl:64", 0.01)])
def test_the_reduction_is_a_small_part_of_what_is_left(setting: str, most: float):
    shape, reduction = NAMED["llava-1.5-7b"], Reduction.parse(setting)
    parts = flops.count(shape, plan(reduction, shape), 35, 60, 1, reduction)
    assert 0 < parts.reduction < most * (parts.vision + parts.prefill)
