"""Every method of the table through the engine: answers as `model.generate` gives them, whatever the batch."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.engine import Batch, Engine, Request
from reduction.methods import METHODS
from reduction.settings import Reduction, ReductionError
from tests.clip_checkpoint import QUESTIONS
from tests.pipeline.test_engine import MEAN, PREFIX, STD, generated_by_transformers, make_engine, pictures, suffixes
from tests.tiny import tiny_llava

TEXTS = [f"{method}:9" for method in METHODS if method != "dense" and not method.startswith("ficoco")]


def requests(suffixes: list[list[int]], first: int = 0) -> list[Request]:
    """One for each picture, with the questions from number `first` on."""
    return [Request(i, tuple(s), question=QUESTIONS[first + i]) for i, s in enumerate(suffixes)]


@pytest.mark.parametrize("text", [*TEXTS, "sparsevlm:9,positions=packed", "pyramiddrop:9,positions=packed"])
def test_greedy_answers_are_those_of_generate_alone_and_together(text: str) -> None:
    model, images, asked = tiny_llava(3), pictures(4), suffixes(4)
    engine = make_engine(model, text)
    together = engine.answer(images, PREFIX, requests(asked))
    assert [one.tokens for one in together] == generated_by_transformers(model, text, images, asked)
    for row, suffix in enumerate(asked):
        (alone,) = engine.answer(images[row : row + 1], PREFIX, requests([suffix], row))
        assert alone.tokens == together[row].tokens


ADAPTIVE = [
    *("prumerge:adaptive", "prumerge:adaptive,compress=prune", "prumerge:adaptive,positions=packed"),
    *("trim:adaptive", "trim:adaptive,compress=prune", "trim:adaptive,positions=packed"),
]


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("text", ADAPTIVE)
def test_images_with_unequal_numbers_of_tokens_share_a_batch(text: str, graphs: bool) -> None:
    model, images, asked = tiny_llava(14), pictures(6), suffixes(6)
    engine = make_engine(model, text)
    engine.graphs = graphs
    together = engine.answer(images, PREFIX, requests(asked))
    assert [one.tokens for one in together] == generated_by_transformers(model, text, images, asked)
    assert len({one.visual_tokens for one in together}) > 1
    assert len({one.generated_tokens for one in together}) > 1, "rows must leave the batch for this to say anything"
    for row, suffix in enumerate(asked):
        (alone,) = engine.answer(images[row : row + 1], PREFIX, requests([suffix], row))
        assert (alone.tokens, alone.visual_tokens) == (together[row].tokens, together[row].visual_tokens)
        assert engine.plan_of(alone).visual_tokens_left == alone.visual_tokens


@pytest.mark.parametrize("text", ADAPTIVE)
def test_questions_about_one_image_among_unequal_ones(text: str) -> None:
    model, images, asked = tiny_llava(14), pictures(3), suffixes(6)
    engine = make_engine(model, text)
    owner = [2, 0, 0, 1, 2, 0]
    batch = [Request(i, tuple(s), question=q) for i, s, q in zip(owner, asked, QUESTIONS, strict=False)]
    got = engine.answer(images, PREFIX, batch)
    assert [one.tokens for one in got] == generated_by_transformers(model, text, images[owner], asked)


@pytest.mark.parametrize("graphs", [False, True])
def test_batches_of_unequal_images_follow_each_other_in_one_cache(graphs: bool) -> None:
    model, asked = tiny_llava(14), suffixes(6)
    engine = make_engine(model, "prumerge:adaptive")
    engine.graphs = graphs
    batch = requests(asked)
    pages = [pictures(6, seed=seed) for seed in range(3)]
    alone = [engine.answer(images, PREFIX, batch) for images in pages]
    streamed = dict(engine.stream(PREFIX, [Batch(lambda images=images: images, batch) for images in pages]))  # type: ignore[misc]
    for number, answers in enumerate(alone):
        assert [(one.tokens, one.visual_tokens) for one in streamed[number]] == [
            (one.tokens, one.visual_tokens) for one in answers
        ]


BY_QUESTION = ["cdpruner:9", "trim:9", "trim:adaptive", "cdpruner:9,positions=packed"]


@pytest.mark.parametrize("text", BY_QUESTION)
def test_questions_about_one_image_choose_each_for_itself(text: str) -> None:
    model, images, asked = tiny_llava(14), pictures(3), suffixes(6)
    engine = make_engine(model, text)
    owner = [2, 0, 0, 1, 2, 0]
    batch = [Request(i, tuple(s), question=q) for i, s, q in zip(owner, asked, QUESTIONS, strict=False)]
    together = engine.answer(images, PREFIX, batch)
    assert [one.tokens for one in together] == generated_by_transformers(model, text, images[owner], asked)
    for request, one in zip(batch, together, strict=True):
        (alone,) = engine.answer(images[[request.image]], PREFIX, [replace(request, image=0)])
        assert (alone.tokens, alone.visual_tokens) == (one.tokens, one.visual_tokens)
        assert one.question_tokens == min(24, len(request.question or "") + 2)


@pytest.mark.parametrize("text", BY_QUESTION)
def test_half_a_batch_asks_its_own_questions(text: str) -> None:
    model, images = tiny_llava(14), pictures(3)
    batch = [
        Request(i, tuple(s), question=q) for i, s, q in zip([2, 0, 0, 1, 2, 0], suffixes(6), QUESTIONS, strict=False)
    ]
    whole = make_engine(model, text).answer(images, PREFIX, batch)
    halving = make_engine(model, text)
    halving.rows_limit = 2
    assert [one.tokens for one in halving.answer(images, PREFIX, batch)] == [one.tokens for one in whole]


def test_what_the_engine_lacks_for_choosing_by_the_question() -> None:
    model = tiny_llava(14)
    with pytest.raises(ReductionError, match="trim:9 chooses by the question: give every Request its question's text"):
        make_engine(model, "trim:9").answer(pictures(1), PREFIX, [Request(0, (5, 6))])
    with pytest.raises(ReductionError, match="which a LLaVA checkpoint does not carry"):
        Engine(model, Reduction.parse("trim:9"), mean=MEAN, std=STD, stop_tokens=frozenset())
