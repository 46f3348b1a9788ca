"""Batches hold every question once, keep an image's questions together and are as large as allowed."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.batching import Asked, Picture, fitting_batch, plan_batches
from pipeline.prompts import Prompt
from pipeline.records import Question, Sample


def picture(number: int, lengths: list[int]) -> Picture:
    sample = Sample("a.tar", str(number), b"", ())
    asked = [
        Asked((number, i), sample, Question(i, f"{number}-{i}", "?"), Prompt((1,), (5,) * length))
        for i, length in enumerate(lengths)
    ]
    return Picture(np.full((2, 2, 3), number, np.uint8), asked)


shapes = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=9), max_size=30)


@given(shapes, st.integers(1, 8))
def test_every_question_is_in_exactly_one_batch_of_at_most_the_size(lengths: list[list[int]], size: int) -> None:
    pictures = [picture(number, row) for number, row in enumerate(lengths)]
    batches = list(plan_batches(pictures, size))
    orders = [one.order for batch in batches for part in batch for one in part.asked]
    assert sorted(orders) == [(n, i) for n, row in enumerate(lengths) for i in range(len(row))]
    assert all(1 <= sum(len(part.asked) for part in batch) <= size for batch in batches)
    for batch in batches:
        for part in batch:
            assert {one.order[0] for one in part.asked} == {int(part.pixels[0, 0, 0])}


@given(shapes, st.integers(1, 8))
def test_an_image_is_split_only_where_its_questions_exceed_a_batch(lengths: list[list[int]], size: int) -> None:
    batches = list(plan_batches([picture(number, row) for number, row in enumerate(lengths)], size))
    parts = [part.asked[0].order[0] for batch in batches for part in batch]
    for number, row in enumerate(lengths):
        assert parts.count(number) == -(-len(row) // size)


def test_prompts_of_like_length_meet() -> None:
    pictures = [picture(number, [length]) for number, length in enumerate([9, 2, 8, 3, 9, 2])]
    batches = list(plan_batches(pictures, 2))
    assert [[part.asked[0].order[0] for part in batch] for batch in batches] == [[1, 5], [3, 2], [0, 4]]


def test_images_with_one_question_are_not_mixed_with_those_with_several() -> None:
    batches = list(plan_batches([picture(0, [4]), picture(1, [4, 4]), picture(2, [4])], 8))
    assert [[part.asked[0].order[0] for part in batch] for batch in batches] == [[0, 2], [1]]


def test_the_batch_that_fits_counts_the_rows_held_beside_it() -> None:
    def held(batch: int) -> int:
        return batch + batch // 2

    assert fitting_batch(96, 64, held) == 64
    assert fitting_batch(95, 64, held) == 63
    assert fitting_batch(0, 64, held) == 1
