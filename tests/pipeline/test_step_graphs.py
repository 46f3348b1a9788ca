"""Recorded decoding steps against steps that are run as they come. On a CPU the same shapes run unrecorded."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.engine import Batch, Engine, Request
from pipeline.step_graphs import StepGraphs, recorded_rows
from tests.pipeline.test_engine import PREFIX, make_engine, pictures, suffixes
from tests.tiny import tiny_llava

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]),
]


def pair(device: str, text: str) -> tuple[Engine, Engine]:
    """The same engine with and without recorded steps."""
    model: Any = tiny_llava(2)
    model = model.to(device)
    with_graphs, without = make_engine(model, text), make_engine(model, text)
    with_graphs.graphs, without.graphs = True, False
    return with_graphs, without


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("text", ["dense", "ficoco-v:5", "ficoco-l:5", "ficoco-l:5,positions=packed"])
def test_batches_of_all_sizes_get_the_same_answers(device: str, text: str) -> None:
    with_graphs, without = pair(device, text)
    lengths = set()
    # The larger ones outgrow the cache of those before, the smaller ones use a part of it with stale entries.
    for turn, count in enumerate([3, 7, 2, 5, 7, 1]):
        images, asked = pictures(count, turn), suffixes(count, turn)
        requests = [Request(i, tuple(s)) for i, s in enumerate(asked)]
        expected = without.answer(images, PREFIX, requests)
        got = with_graphs.answer(images, PREFIX, requests)
        assert [g.tokens for g in got] == [g.tokens for g in expected]
        assert [g.mean_logprob for g in got] == pytest.approx([g.mean_logprob for g in expected], abs=1e-4)
        lengths |= {g.generated_tokens for g in got}
    # Rows left their batches at different times, so that others were moved up.
    assert len(lengths) > 2


def test_a_shape_is_recorded_once() -> None:
    engine, _ = pair("cpu", "dense")
    requests = [Request(i, tuple(s)) for i, s in enumerate(suffixes(4))]
    engine.answer(pictures(4), PREFIX, requests)
    first = engine.kept.of(engine.decoder)
    assert isinstance(first, StepGraphs)
    count = len(first._recorded)
    seconds = engine.stopwatch.seconds()
    assert 0 < seconds["recording"] < seconds["decode"]
    engine.stopwatch.clear()
    engine.answer(pictures(4), PREFIX, requests)
    assert "recording" not in engine.stopwatch.seconds()
    assert engine.kept.of(engine.decoder) is first
    assert len(first._recorded) == count


def test_recordings_hold_at_most_half_again_as_many_rows() -> None:
    assert [recorded_rows(count) for count in (1, 2, 3, 4, 5, 7, 9, 13, 65, 96, 97)] == [
        *(1, 2, 3, 4, 6, 8, 12, 16, 96, 96, 128)
    ]


def test_a_batch_is_chosen_by_the_rows_that_the_cache_gets() -> None:
    engine, _ = pair("cpu", "dense")
    batches = [Batch(lambda: pictures(4), [Request(i, tuple(s)) for i, s in enumerate(suffixes(4))])] * 3
    for _ in engine.stream(PREFIX, batches):
        pass
    steps = engine.kept.of(engine.decoder)
    assert steps is not None
    assert steps._whole.rows == engine.rows_held(4)


@pytest.mark.parametrize("device", DEVICES)
def test_nothing_is_left_of_a_recording_that_broke_off(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, without = pair(device, "dense")
    requests = [Request(i, tuple(s)) for i, s in enumerate(suffixes(3))]

    def broken(*_: Any) -> None:
        raise ValueError("planted")

    def answer() -> Any:
        return engine.answer(pictures(3), PREFIX, requests)

    def stream() -> Any:
        return list(engine.stream(PREFIX, [Batch(lambda: pictures(3), requests)]))

    for run in (answer, stream):
        monkeypatch.setattr(engine.decoder, "step", broken)
        with pytest.raises(ValueError, match="planted"):
            run()
        assert engine.kept.of(engine.decoder) is None
        monkeypatch.undo()
        expected = without.answer(pictures(3), PREFIX, requests)
        assert [g.tokens for g in engine.answer(pictures(3), PREFIX, requests)] == [g.tokens for g in expected]
