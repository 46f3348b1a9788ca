"""Every row of the table: it installs, its rows do not see each other, its cost is counted, its stages exchange."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

import reduction
from reduction import flops
from reduction.language import reduce_visual
from reduction.methods import COMPRESSIONS, CORRELATIONS, FILTERS, METHODS, Place
from reduction.overhead import language_terms, question_terms
from reduction.schedule import plan
from reduction.settings import Reduction, ReductionError
from reduction.shapes import NAMED, ModelShape, from_config
from reduction.text_tower import Asked
from reduction.vision import encode_images
from tests.clip_checkpoint import QUESTIONS, installed, text_tower
from tests.reduction.counted import counting
from tests.tiny import tiny_images, tiny_llava, tiny_prompts

NEW = [name for name in METHODS if name != "dense" and not name.startswith("ficoco")]
KEEP = 9
HOSTS: dict[Place, str] = {"vision": "ficoco-v", "projector": "random", "language": "ficoco-l"}
"""A method of each place, to put stages into."""
TOWERS: list[dict[str, Any]] = [{}, {"strategy": "full"}, {"tower": "siglip", "strategy": "full"}]


def valid(place: Place) -> list[str]:
    """Every combination of stages that makes sense at a place."""
    texts = []
    for names in product(
        *([name for name in table if place in table[name]] for table in (FILTERS, CORRELATIONS, COMPRESSIONS))
    ):
        more = "" if place == "projector" else ",start=1,layers=2"
        text = f"{HOSTS[place]}:{KEEP}{more}," + ",".join(
            f"{what}={name}" for what, name in zip(("filter", "correlate", "compress"), names, strict=True)
        )
        try:
            Reduction.parse(text)
        except ReductionError:
            continue
        texts.append(text)
    return texts


def shape_of(model: Any) -> ModelShape:
    return from_config(model.config, text_tower=text_tower().shape)


def possible(text: str, model: Any) -> bool:
    try:
        plan(Reduction.parse(text), shape_of(model))
    except ReductionError:
        return False
    return True


@pytest.mark.parametrize("method", NEW)
@torch.no_grad()
def test_a_padded_batch_is_its_rows(method: str) -> None:
    suffixes = [[3, 4, 5, 6, 7, 8], [9], [10, 11, 12]]
    for sizes in TOWERS:
        model, images = tiny_llava(1, dtype=torch.float64, **sizes), tiny_images(3, dtype=torch.float64)
        if not possible(f"{method}:{KEEP}", model):
            assert sizes, f"{method} must work on the usual model"
            continue
        count = model.config.image_seq_length
        inputs = tiny_prompts([1, 5], suffixes, visual=count)
        with installed(model, f"{method}:{KEEP}", QUESTIONS[:3]) as chosen:
            assert chosen.visual_tokens_left == KEEP or method == "sparsevlm"
            logits = model(**inputs, pixel_values=images).logits
            for row, suffix in enumerate(suffixes):
                one = tiny_prompts([1, 5], [suffix], visual=count)
                reduction.ask(model, QUESTIONS[row : row + 1])
                alone = model(**one, pixel_values=images[row : row + 1]).logits
                torch.testing.assert_close(logits[row, inputs["attention_mask"][row].bool()], alone[0])


@pytest.mark.parametrize("text", [*valid("vision"), *valid("projector")])
def test_every_combination_on_an_image_and_its_cost(text: str) -> None:
    check_image(text)


@pytest.mark.parametrize("method", NEW)
def test_every_method_on_an_image_and_its_cost(method: str) -> None:
    for sizes in TOWERS:
        check_image(f"{method}:{KEEP}", **sizes)


def check_image(text: str, **sizes: Any) -> None:
    model, setting = tiny_llava(**sizes), Reduction.parse(text)
    shape, tower = shape_of(model), text_tower()
    if not possible(text, model):
        assert sizes
        return
    schedule = plan(setting, shape)
    words = tower.tokenise(QUESTIONS[:1])
    with counting() as counter:
        asked = Asked(tower, tower.embed_ids(words)) if schedule.by_question else None
        features, kept = encode_images(model, tiny_images(1), schedule, setting, asked)
    with torch.no_grad():
        usual = encode_images(model, tiny_images(1), schedule, setting, asked)
    torch.testing.assert_close(usual, (features, kept), rtol=1e-4, atol=1e-4)
    own = sum(question_terms(shape, schedule, setting, len(words[0])).values())
    assert counter.get_total_flops() == flops.count_image(shape, schedule, setting).total + own
    assert (own > 0) == setting.by_question
    assert features.shape[1] == schedule.visual_tokens
    assert kept[0].tolist() == sorted(set(kept[0].tolist()))
    assert bool(features.isfinite().all())


@pytest.mark.parametrize("text", [*valid("language"), "fastv:9"])
def test_every_combination_in_the_decoder_and_its_cost(text: str) -> None:
    shape, setting = from_config(tiny_llava().config), Reduction.parse(text)
    schedule, decoder, prefix, words = plan(setting, shape), shape.decoder, 3, 5
    total = 0
    for count, n_drop in zip(schedule.decoder_visual_lengths, schedule.decoder_drops, strict=True):
        tokens = prefix + count + words
        queries = torch.randn(1, decoder.heads, tokens, decoder.head_dim)
        keys, hidden = torch.randn(1, decoder.kv_heads, tokens, decoder.head_dim), torch.randn(1, tokens, decoder.width)
        block: dict[str, Any] = {"start": prefix, "count": count, "n_drop": n_drop, "reduction": setting}
        with counting() as counter:
            left, kept = reduce_visual(hidden, queries, keys, **block)
        torch.testing.assert_close(reduce_visual(hidden, queries, keys, **block), (left, kept))
        total += counter.get_total_flops()
        assert left.shape[1] == tokens - n_drop
        assert len(set(kept[0].tolist())) == count - n_drop
        if setting.stages("language")[2] != "recycle":
            assert kept[0].tolist() == sorted(kept[0].tolist())
    assert total == sum(language_terms(shape, schedule, prefix, words, setting).values())


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("fastv:64,compress=merge", "correlate=none does not say into which: add correlate=cosine"),
        (
            "ficoco-v:64,compress=fuse",
            "correlate=attention gives none that it can take: add correlate=importance",
        ),
        ("evit:64,compress=merge", "correlate=importance does not say into which"),
        ("average-pool:64,filter=random", "filter=random does not keep one in each: use filter=windows"),
        ("random:64,filter=cls", "made for the vision model only, and random reduces in the projector's output"),
        ("divprune:64,start=3", "at the projector's output, without layers: leave 'start' out"),
        ("average-pool:127", "keep 121, or 144"),
        ("tome:64,layers=2", "at most half of the tokens in a layer"),
        ("evit:1", "keep 2 at least"),
    ],
)
def test_what_makes_no_sense_says_why(text: str, sentence: str) -> None:
    with pytest.raises(ReductionError) as error:
        plan(Reduction.parse(text), NAMED["llava-1.5-7b"])
    assert sentence in str(error.value)


def test_stages_are_exchanged_as_they_are_written() -> None:
    assert Reduction.parse("ficoco-v,compress=prune,keep=64") == Reduction("ficoco-v", 64, compress="prune")
    setting = Reduction.parse("fastv,filter=random,keep=128")
    assert setting.stages("language") == ("random", "none", "prune")
    assert plan(setting, NAMED["llava-1.5-7b"]).decoder_visual_lengths == (576, 576, *[128] * 30)


@pytest.mark.parametrize(
    ("keep", "lengths", "mean"),
    [(192, (309, 204, 113), 206.5), (128, (312, 117, 39), 145.4), (64, (82, 32, 18), 82.25)],
)
def test_sparsevlm_keeps_what_its_labels_mean(keep: int, lengths: tuple[int, ...], mean: float) -> None:
    """Published mean tokens per layer: 206, 145 and 82. What is left counts the tokens made anew."""
    schedule = plan(Reduction("sparsevlm", keep), NAMED["llava-1.5-7b"])
    visual = schedule.decoder_visual_lengths
    assert visual == (*[576] * 3, *[lengths[0]] * 4, *[lengths[1]] * 9, *[lengths[2]] * 16)
    assert sum(visual) / 32 == pytest.approx(mean, abs=0.01)


def test_published_lengths() -> None:
    shape = NAMED["llava-1.5-7b"]
    assert plan(Reduction.parse("visionzip:64"), shape).vision_lengths == (576,) * 23 + (64,)
    pooled = plan(Reduction.parse("average-pool:144"), shape)
    assert (pooled.projector_tokens, pooled.visual_tokens) == (576, 144)
    assert plan(Reduction.parse("tome:64"), shape).vision_drops == (23,) * 6 + (22,) * 17
