"""Recorded steps of several engines in one stretch of memory. On a CPU the same shapes run unrecorded."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.engine import Engine, Request
from pipeline.generation import Generation
from pipeline.kept_steps import KeptSteps
from tests.pipeline.test_engine import PREFIX, make_engine, pictures, suffixes
from tests.tiny import tiny_llava

SETTINGS = ["dense", "ficoco-v:5", "ficoco-l:5", "prumerge:adaptive"]


def sharing(*settings: str) -> tuple[KeptSteps, list[Engine]]:
    kept, model = KeptSteps(), tiny_llava(2)
    engines = [make_engine(model, text) for text in settings]
    for engine in engines:
        engine.kept, engine.graphs = kept, True
    return kept, engines


def asked(engine: Engine, count: int, seed: int) -> list[Generation]:
    requests = [Request(i, tuple(s)) for i, s in enumerate(suffixes(count, seed))]
    return engine.answer(pictures(count, seed), PREFIX, requests)


def test_engines_that_take_turns_answer_as_if_alone() -> None:
    _, engines = sharing(*SETTINGS)
    alone = [make_engine(tiny_llava(2), text) for text in SETTINGS]
    # The third batch outgrows the memory, with the recordings of all engines in it.
    for turn, count in enumerate([3, 2, 7, 4]):
        for engine, other in zip(engines, alone, strict=True):
            got, expected = asked(engine, count, turn), asked(other, count, turn)
            assert [g.tokens for g in got] == [g.tokens for g in expected]
            assert [g.mean_logprob for g in got] == pytest.approx([g.mean_logprob for g in expected], abs=1e-4)


def test_all_work_in_the_memory_that_the_largest_needs() -> None:
    kept, (dense, reduced) = sharing("dense", "ficoco-v:5")
    for engine in (dense, reduced, dense, reduced):
        asked(engine, 4, 0)
    steps: list[Any] = [kept.of(engine.decoder) for engine in (dense, reduced)]
    first, second = (each.cache.keys[0].untyped_storage() for each in steps)
    assert first.data_ptr() == second.data_ptr()
    assert first.nbytes() == steps[0].bytes > steps[1].bytes
    assert kept.spare_bytes(dense.decoder) == 0
    assert kept.spare_bytes(reduced.decoder) == steps[0].bytes - steps[1].bytes


def test_recordings_stay_until_the_memory_is_outgrown() -> None:
    kept, (dense, reduced) = sharing("dense", "ficoco-v:5")
    for engine in (dense, reduced):
        asked(engine, 4, 0)
    before = [kept.of(engine.decoder) for engine in (dense, reduced)]
    for engine in (dense, reduced):
        asked(engine, 3, 0)
    assert [kept.of(engine.decoder) for engine in (dense, reduced)] == before
    asked(dense, 20, 0)
    # What was recorded in the old memory would hold it beside the new.
    assert kept.of(reduced.decoder) is None


def test_a_smaller_engine_that_outgrows_its_cache_stays_in_the_memory() -> None:
    kept, (dense, reduced) = sharing("dense", "ficoco-v:5")
    asked(dense, 8, 0)
    asked(reduced, 2, 0)
    steps = kept.of(dense.decoder)
    asked(reduced, 8, 0)
    assert kept.of(dense.decoder) is steps


def test_nothing_is_kept_by_engines_without_recordings() -> None:
    kept, (dense, _) = sharing("dense", "ficoco-v:5")
    dense.graphs = False
    asked(dense, 2, 0)
    assert kept.of(dense.decoder) is None
    assert kept.spare_bytes(dense.decoder) == 0
