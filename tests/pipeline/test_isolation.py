"""Which questions an exception of the model costs."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.batching import Asked, Picture
from pipeline.isolation import MOST_IN_A_ROW, Isolation, ModelFailing
from pipeline.prompts import Prompt
from pipeline.records import Question, Rejection, Sample
from pipeline.replica import Row, rejection
from reduction.flops import Flops
from tests.pipeline import output_rows


def pictures(questions: Sequence[int]) -> list[Picture]:
    """One picture for each number of questions; a question's text is its number in the batch."""
    result, count = [], 0
    for order, number in enumerate(questions):
        asked = []
        for index in range(number):
            question = Question(index, "", str(count))
            sample = Sample("s.tar", str(order), b"", (question,))
            asked.append(Asked((order, index), sample, question, Prompt((), ())))
            count += 1
        result.append(Picture(np.zeros((1, 1, 3), np.uint8), asked))
    return result


def answer_to(one: Asked) -> Row:
    asked = {"key": one.sample.key, "question_index": one.question.index, "question": one.question.text}
    return one.order, output_rows.answer(0, one.sample.shard, **asked, answer="done"), Flops()


class Model:
    """Answers unless one of `bad` is in the batch; rejects those in `unanswerable`."""

    def __init__(self, bad: set[int], error: Exception | None = None, unanswerable: set[int] | None = None) -> None:
        self.bad, self.error, self.calls = bad, error or RuntimeError("shape\n mismatch"), 0
        self.unanswerable = unanswerable or set()

    def __call__(self, batch: Sequence[Picture]) -> list[Row]:
        self.calls += 1
        asked = [one for picture in batch for one in picture.asked]
        if any(int(one.question.text) in self.bad for one in asked):
            raise self.error
        return [
            (one.order, rejection(one, "model", "NaN"), Flops())
            if int(one.question.text) in self.unanswerable
            else answer_to(one)
            for one in asked
        ]


def reasons(rows: Sequence[Row]) -> dict[tuple[int, int], str]:
    return {place: f"{row.stage} {row.reason}" if isinstance(row, Rejection) else row.answer for place, row, _ in rows}


@given(questions=st.lists(st.integers(1, 5), min_size=1, max_size=8), bad=st.sets(st.integers(0, 20), max_size=3))
def test_exactly_the_questions_that_raise_are_rejected(questions: list[int], bad: set[int]) -> None:
    batch = pictures(questions)
    rows = list(Isolation(Model(bad)).rows(batch))
    expected = {
        one.order: "model RuntimeError: shape mismatch" if int(one.question.text) in bad else "done"
        for picture in batch
        for one in picture.asked
    }
    assert reasons(rows) == expected
    assert max(Counter(place for place, _, _ in rows).values()) == 1


def test_one_that_raises_costs_few_calls() -> None:
    model = Model({37})
    list(Isolation(model).rows(pictures([1] * 64)))
    assert model.calls == 2 * 6 + 1


def test_a_model_that_fails_whatever_it_is_asked_is_not_the_questions_fault() -> None:
    isolation = Isolation(Model(set(range(200))))
    with pytest.raises(ModelFailing, match="33 samples in a row failed, the last with RuntimeError: shape mismatch"):
        list(isolation.rows(pictures([1] * 200)))
    small = Isolation(Model(set(range(4))))
    assert len(list(small.rows(pictures([1, 1, 1])))) == 3
    small.check()
    list(small.rows(pictures([1])))
    with pytest.raises(ModelFailing, match="answered nothing yet"):
        small.check()


def test_what_is_rejected_without_an_exception_has_failed_too() -> None:
    isolation = Isolation(Model(set(), unanswerable=set(range(200))))
    with pytest.raises(ModelFailing, match="33 samples in a row failed, the last with NaN"):
        list(isolation.rows(pictures([1] * 200)))


def test_what_is_rejected_where_batches_are_answered_together_ends_it_too() -> None:
    model = Model(set(), unanswerable=set(range(40)))

    def together(batches: Sequence[Sequence[Picture]]) -> Iterator[tuple[int, list[Row]]]:
        for index, batch in enumerate(batches):
            yield index, model(batch)

    with pytest.raises(ModelFailing, match="33 samples in a row"):
        list(Isolation(model, together).all_rows([pictures([1] * 40), pictures([1] * 40)]))


def test_one_sample_of_many_questions_does_not_speak_against_the_model() -> None:
    isolation = Isolation(Model(set(), unanswerable=set(range(200))))
    assert len(list(isolation.rows(pictures([200])))) == 200
    isolation.check()


def test_what_has_failed_before_may_fail_again() -> None:
    isolation = Isolation(Model(set(range(200))))
    isolation.forgiving = True
    assert len(list(isolation.rows(pictures([1] * 200)))) == 200
    isolation.check()


def test_failures_with_answers_between_them_do_not_add_up() -> None:
    isolation = Isolation(Model({number for number in range(200) if number % 2}))
    assert len(list(isolation.rows(pictures([1] * 200)))) == 200 > MOST_IN_A_ROW
    isolation.check()


def test_a_broken_device_is_not_searched_for_a_culprit() -> None:
    model = Model({0}, RuntimeError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        list(Isolation(model).rows(pictures([1] * 8)))
    assert model.calls == 1


def test_nothing_of_a_failed_batch_is_held_while_its_halves_are_answered() -> None:
    held: list[weakref.ref[np.ndarray]] = []

    def answer(batch: Sequence[Picture]) -> list[Row]:
        assert all(ref() is None for ref in held)
        activations = np.zeros(1)
        held.append(weakref.ref(activations))
        if len(batch) > 1:
            raise RuntimeError("too many")
        return [answer_to(one) for picture in batch for one in picture.asked]

    assert len(list(Isolation(answer).rows(pictures([1, 1, 1])))) == 3
    assert len(held) == 5
