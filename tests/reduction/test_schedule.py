"""Budgets become drops and lengths: the published schedule, shares, starts, splits, and what is refused."""

import dataclasses
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reduction.drops import spread
from reduction.errors import ReductionError
from reduction.schedule import plan
from reduction.settings import Reduction
from reduction.shapes import NAMED, ModelShape

SEVEN_B = NAMED["llava-1.5-7b"]


def with_vision(**changes: Any) -> ModelShape:
    return dataclasses.replace(SEVEN_B, vision=dataclasses.replace(SEVEN_B.vision, **changes))


def test_vision_spreads_576_to_64_as_six_of_47_and_five_of_46():
    schedule = plan(Reduction.parse("ficoco-v:64"), SEVEN_B)
    assert schedule.vision_drops == (0,) * 12 + (47,) * 6 + (46,) * 5
    assert schedule.vision_lengths == (576,) * 13 + (529, 482, 435, 388, 341, 294, 248, 202, 156, 110, 64)
    assert schedule.decoder_visual_lengths == (64,) * 32
    assert (schedule.visual_tokens, schedule.visual_tokens_left) == (64, 64)
    assert schedule.reduces_vision
    assert not schedule.reduces_language


def test_language_drops_show_from_the_layer_after():
    schedule = plan(Reduction.parse("ficoco-l:64,start=4,layers=4"), SEVEN_B)
    assert schedule.decoder_drops == (0,) * 4 + (128,) * 4 + (0,) * 24
    assert schedule.decoder_visual_lengths == (576,) * 5 + (448, 320, 192) + (64,) * 24
    assert schedule.visual_tokens_left == 64
    assert schedule.vision_lengths == (576,) * 24
    assert schedule.decoder_lengths(60)[:6] == (636,) * 5 + (508,)


@pytest.mark.parametrize(("split", "entering"), [(0.0, 576), (0.25, 448), (0.5, 320), (1.0, 64)])
def test_split_is_the_share_of_the_drop_done_in_the_encoder(split: float, entering: int):
    schedule = plan(Reduction.parse(f"ficoco-vl:64,split={split}"), SEVEN_B)
    assert schedule.visual_tokens == schedule.vision_lengths[-1] == entering
    assert schedule.visual_tokens_left == 64


def test_dense_drops_nothing():
    schedule = plan(Reduction.parse("dense"), SEVEN_B)
    assert not schedule.reduces
    assert schedule.decoder_lengths(60) == (636,) * 32


@pytest.mark.parametrize("method", ["ficoco-v", "ficoco-l", "ficoco-vl"])
def test_keeping_everything_is_allowed_and_drops_nothing(method: str):
    assert not plan(Reduction.parse(f"{method}:576"), SEVEN_B).reduces


def test_a_share_is_of_the_visual_tokens_rounded():
    assert plan(Reduction.parse("ficoco-v:11%"), SEVEN_B).visual_tokens_left == 63
    assert plan(Reduction.parse("ficoco-l:100%"), SEVEN_B).visual_tokens_left == 576


def test_default_starts_scale_with_depth():
    small = dataclasses.replace(
        with_vision(layers=6, layers_run=5), decoder=dataclasses.replace(SEVEN_B.decoder, layers=8)
    )
    schedule = plan(Reduction.parse("ficoco-vl:64"), small)
    assert [bool(drop) for drop in schedule.vision_drops] == [False] * 3 + [True] * 2
    assert schedule.decoder_drops[0] == 0 < schedule.decoder_drops[1]


def test_cls_counts_as_a_visual_token_where_it_goes_to_the_decoder():
    schedule = plan(Reduction.parse("ficoco-v:64"), with_vision(keeps_cls=True))
    assert schedule.vision_lengths[-1] == 63
    assert schedule.visual_tokens == schedule.visual_tokens_left == 64


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("ficoco-v:577", ["577", "576"]),
        ("ficoco-l:9999", ["9999", "576"]),
        ("ficoco-v:64,start=23", ["23", "0 to 22"]),
        ("ficoco-v:64,start=20,layers=4", ["4 layers", "layer 20", "0 to 22"]),
        ("ficoco-l:64,start=32", ["32", "0 to 31"]),
        ("ficoco-l:64,start=30,layers=4", ["4 layers", "layer 30"]),
        ("ficoco-v:0.01%", ["0 of 576"]),
    ],
)
def test_what_the_model_cannot_do_is_refused_naming_the_numbers(setting: str, words: list[str]):
    with pytest.raises(ReductionError) as error:
        plan(Reduction.parse(setting), SEVEN_B)
    assert all(word in str(error.value) for word in words), str(error.value)


@given(drop=st.integers(0, 5000), layers=st.integers(1, 60))
def test_spread_is_complete_even_and_larger_first(drop: int, layers: int):
    drops = spread(drop, layers)
    assert len(drops) == layers
    assert sum(drops) == drop
    assert max(drops) - min(drops) <= 1
    assert list(drops) == sorted(drops, reverse=True)


@given(
    method=st.sampled_from(["ficoco-v", "ficoco-l", "ficoco-vl"]),
    keep=st.integers(1, 576),
    split=st.floats(0, 1),
    layers=st.integers(1, 28),
)
def test_every_budget_ends_at_its_count_and_lengths_add_up(method: str, keep: int, split: float, layers: int):
    setting = dataclasses.replace(Reduction.parse(f"{method}:{keep}"), split=split, language_layers=layers)
    schedule = plan(setting, SEVEN_B)
    assert schedule.visual_tokens_left == keep
    assert sum(schedule.vision_drops) + sum(schedule.decoder_drops) == 576 - keep
    for drops, lengths in (
        (schedule.vision_drops, schedule.vision_lengths),
        (schedule.decoder_drops, (*schedule.decoder_visual_lengths, schedule.visual_tokens_left)),
    ):
        assert [before - after for before, after in pairwise(lengths)] == list(drops)
        assert min(lengths) >= 1
