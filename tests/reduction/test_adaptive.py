"""A method that decides for each image how many tokens stay: right counts, and rows that do not see each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import reduction
from reduction.schedule import most_outliers, plan
from reduction.settings import Reduction, ReductionError
from reduction.shapes import NAMED, from_config
from reduction.vision import encode_images, real_tokens
from tests.reduction.test_selectors import GRID, Seen
from tests.tiny import EOS_TOKEN, PAD_TOKEN, tiny_images, tiny_llava, tiny_prompts

FULL = GRID * GRID
PREFIX, SUFFIXES = [1, 5], [[3, 4, 5, 6, 7, 8], [9], [10, 11, 12], [13, 14]]
TEXTS = ["prumerge:adaptive", "prumerge:adaptive,compress=prune", "prumerge:adaptive,positions=packed"]


def model(**sizes: Any) -> Any:
    return tiny_llava(1, grid=GRID, dtype=torch.float64, **sizes)


def images(count: int = 4) -> torch.Tensor:
    return tiny_images(count, seed=2, grid=GRID, dtype=torch.float64)


def quartile(values: list[float], share: float) -> float:
    place = share * (len(values) - 1)
    below = int(place)
    above = min(below + 1, len(values) - 1)
    return sorted(values)[below] + (place - below) * (sorted(values)[above] - sorted(values)[below])


def outliers(attention: list[float]) -> int:
    low, high = quartile(attention, 0.25), quartile(attention, 0.75)
    return max(1, sum(value > high + 1.5 * (high - low) for value in attention))


@pytest.mark.parametrize(("compress", "made"), [("add", 1), ("prune", 0)])
@torch.no_grad()
def test_outliers_stay_as_at_that_fixed_count(compress: str, made: int) -> None:
    llava, setting = model(), Reduction("prumerge", "adaptive", compress=compress)
    shape = from_config(llava.config)
    features, kept = encode_images(llava, images(), plan(setting, shape), setting)
    counts = real_tokens(kept, FULL).sum(1).tolist()
    assert counts == [outliers(Seen(llava, image).one_head) + made for image in images()]
    assert len(set(counts)) > 1, "the pictures must differ for this test to say anything"
    for row, count in enumerate(counts):
        fixed = Reduction("prumerge", count, compress=compress)
        alone, left = encode_images(llava, images()[row : row + 1], plan(fixed, shape), fixed)
        torch.testing.assert_close(features[row, :count], alone[0])
        assert kept[row].tolist() == [*left[0].tolist(), *[FULL] * (max(counts) - count)]
        assert count <= plan(setting, shape).visual_tokens_left


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_ragged_batch_is_its_rows(text: str, side: str) -> None:
    for strategy in ("default", "full"):
        llava = model(strategy=strategy)
        count = llava.config.image_seq_length
        inputs = tiny_prompts(PREFIX, SUFFIXES, visual=count, side=side)
        with reduction.install(llava, text):
            logits = llava(**inputs, pixel_values=images()).logits
            for row, suffix in enumerate(SUFFIXES):
                one = tiny_prompts(PREFIX, [suffix], visual=count)
                alone = llava(**one, pixel_values=images()[row : row + 1]).logits
                torch.testing.assert_close(logits[row, inputs["attention_mask"][row].bool()], alone[0])


@pytest.mark.parametrize("text", TEXTS)
@torch.no_grad()
def test_generation_goes_on_from_each_rows_own_tokens(text: str) -> None:
    llava, asked = model(), {"do_sample": False, "max_new_tokens": 8, "pad_token_id": PAD_TOKEN}
    with reduction.install(llava, text):
        together = llava.generate(**tiny_prompts(PREFIX, SUFFIXES, visual=FULL), pixel_values=images(), **asked)
        for row, suffix in enumerate(SUFFIXES):
            one = tiny_prompts(PREFIX, [suffix], visual=FULL)
            alone = llava.generate(**one, pixel_values=images()[row : row + 1], **asked)
            answer = alone[0, one["input_ids"].shape[1] :].tolist()
            got = together[row, len(PREFIX) + FULL + max(map(len, SUFFIXES)) :].tolist()
            assert got[: len(answer)] == answer
            assert EOS_TOKEN in answer or len(answer) == 8


@torch.no_grad()
def test_rows_of_a_ragged_cache_can_be_chosen() -> None:
    llava, token = model(), torch.tensor([[5]] * 4)
    inputs = tiny_prompts(PREFIX, SUFFIXES, visual=FULL)
    with reduction.install(llava, "prumerge:adaptive,positions=packed"):
        every = llava(input_ids=token, past_key_values=llava(**inputs, pixel_values=images()).past_key_values).logits
        cache = llava(**inputs, pixel_values=images()).past_key_values
        cache.reorder_cache(torch.tensor([3, 0, 2, 1]))
        cache.batch_select_indices(torch.tensor([0, 3]))
        torch.testing.assert_close(llava(input_ids=token[:2], past_key_values=cache).logits, every[[3, 1]])


def test_the_plan_is_the_most_there_can_be() -> None:
    schedule = plan(Reduction.parse("prumerge,keep=adaptive"), NAMED["llava-1.5-7b"])
    assert schedule.adaptive
    assert schedule.visual_tokens_left == 145
    for total in range(1, 40):
        values = [float(value) for value in range(total)]
        assert sum(value > quartile(values, 0.75) for value in values) <= most_outliers(total)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ficoco-v:adaptive", "filter=ficoco of ficoco-v keeps as many tokens as it is told to"),
        ("random:adaptive", "use prumerge"),
        ("ficoco-v:adaptive,filter=cls_one_head", "behind the last encoder layer"),
        ("prumerge:adaptive,start=2,layers=2", "behind the last encoder layer"),
        ("dense:adaptive", "takes no number"),
        ("prumerge:adaptiv", "or adaptive"),
    ],
)
def test_what_cannot_decide_says_so(text: str, words: str) -> None:
    with pytest.raises(ReductionError, match=words):
        plan(Reduction.parse(text), NAMED["llava-1.5-7b"])


def test_it_is_written_as_it_is_read() -> None:
    assert str(Reduction.parse("prumerge,keep=adaptive,compress=prune")) == "prumerge:adaptive,compress=prune"
