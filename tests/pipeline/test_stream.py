"""Batches answered together, where the next begins as the last ends, against each batch alone."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch

from pipeline.decoding import Decoding
from pipeline.engine import Batch, Engine, Request
from tests.pipeline.test_engine import PREFIX, make_engine, pictures, suffixes
from tests.tiny import tiny_llava

SIZES = [5, 4, 6, 1, 3]


def batches() -> list[tuple[torch.Tensor, list[Request]]]:
    planned = []
    for turn, size in enumerate(SIZES):
        asked = suffixes(size, turn)
        # In the third batch two questions share a picture.
        images = [max(0, i - 1) if turn == 2 else i for i in range(size)]
        named = [Request(i, tuple(s), f"{turn}/{s}") for i, s in zip(images, asked, strict=True)]
        planned.append((pictures(size, turn), named))
    return planned


def streamed(engine: Engine) -> dict[int, Any]:
    planned = [Batch(partial(torch.clone, images), requests) for images, requests in batches()]
    return dict(engine.stream(PREFIX, planned))


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("text", ["dense", "ficoco-v:5", "ficoco-l:5", "ficoco-vl:5,positions=packed"])
@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_every_batch_gets_its_own_answers(
    text: str, graphs: bool, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llava(2)
    engine = make_engine(model, text, temperature=temperature)
    engine.graphs = graphs
    alone = [engine.answer(images, PREFIX, requests) for images, requests in batches()]
    rows_when_joined = []
    join = Decoding.join

    def joined(self: Decoding, *rest: Any) -> None:
        rows_when_joined.append(len(self))
        join(self, *rest)

    monkeypatch.setattr(Decoding, "join", joined)
    together = streamed(engine)
    assert sorted(together) == list(range(len(SIZES)))
    for number, expected in enumerate(alone):
        assert [g.tokens for g in together[number]] == [g.tokens for g in expected]
        assert [g.finish_reason for g in together[number]] == [g.finish_reason for g in expected]
        got = [g.mean_logprob for g in together[number]]
        assert got == pytest.approx([g.mean_logprob for g in expected], abs=1e-4)
    # Batches joined while others were under way: otherwise nothing has been tested.
    assert any(rows_when_joined)


def test_too_little_memory_is_said_once_and_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(tiny_llava(2), "dense")

    def short(*_: Any) -> None:
        raise torch.OutOfMemoryError("planted")

    monkeypatch.setattr(engine.decoder, "prefill", short)
    with pytest.raises(torch.OutOfMemoryError):
        streamed(engine)
    assert not engine.streams


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("text", ["dense", "ficoco-l:5", "prumerge:adaptive"])
@torch.no_grad()
def test_an_answer_without_numbers_leaves_nothing_to_those_that_take_its_place(text: str, graphs: bool) -> None:
    poison, poisoned, model = 96, tiny_llava(2), tiny_llava(2)
    poisoned.model.language_model.embed_tokens.weight[poison] = float("nan")
    for each in (poisoned, model):
        # Never chosen: as likely as another token before it.
        each.lm_head.weight[poison] = each.lm_head.weight[3]
    engine, sound = make_engine(poisoned, text), make_engine(model, text)
    engine.graphs = graphs
    planned = []
    for turn, size in enumerate((6, 6, 6)):
        asked = suffixes(size, turn)
        # The last one: where others have left it moves up, and leaves its place to those that join.
        asked[-1] = [*asked[-1], poison] if turn == 0 else asked[-1]
        planned.append(Batch(partial(pictures, size, turn), [Request(i, tuple(s)) for i, s in enumerate(asked)]))
    for turns in (planned, planned[1:]):
        expected = dict(sound.stream(PREFIX, turns))
        for number, got in engine.stream(PREFIX, turns):
            for generation, true in zip(got, expected[number], strict=True):
                poisoned_one = turns is planned and number == 0 and generation is got[-1]
                assert math.isnan(generation.mean_logprob) == poisoned_one
                assert poisoned_one or generation.tokens == true.tokens
