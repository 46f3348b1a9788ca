"""Stages timed on a CPU, and on a GPU that exists only as its events."""

from __future__ import annotations

import time
from typing import ClassVar

import pytest
import torch

from pipeline.stopwatch import Stopwatch


class Event:
    """A GPU's event: recorded at once, reached when the GPU has got there."""

    launched: ClassVar[float] = 0.0
    """Milliseconds of work launched so far."""
    done: ClassVar[float] = 0.0
    """Milliseconds of it that the GPU has done."""
    waits: ClassVar[int] = 0

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing
        self.at: float | None = None

    def record(self) -> None:
        self.at = Event.launched

    def query(self) -> bool:
        assert self.at is not None
        return self.at <= Event.done

    def synchronize(self) -> None:
        assert self.at is not None
        Event.waits += 1
        Event.done = max(Event.done, self.at)

    def elapsed_time(self, last: Event) -> float:
        assert last.query(), "not reached yet"
        assert self.at is not None
        assert last.at is not None
        return last.at - self.at


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Stopwatch:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(Event, "launched", 0.0)
    monkeypatch.setattr(Event, "done", 0.0)
    monkeypatch.setattr(Event, "waits", 0)
    return Stopwatch(torch.device("cuda"))


def launch(milliseconds: float) -> None:
    Event.launched += milliseconds


def test_a_stage_lasts_as_long_as_what_it_launches(on_gpu: Stopwatch) -> None:
    with on_gpu.stage("vision"):
        launch(3)
        with on_gpu.stage("reduction"):
            launch(2)
    launch(100)
    for _ in range(4):
        with on_gpu.stage("decode"):
            launch(1)
    assert Event.waits == 0
    assert on_gpu.seconds() == pytest.approx({"vision": 0.005, "reduction": 0.002, "decode": 0.004})
    assert on_gpu.seconds() == pytest.approx({"vision": 0.005, "reduction": 0.002, "decode": 0.004})


def test_what_the_gpu_has_done_is_not_kept(on_gpu: Stopwatch) -> None:
    for _ in range(1000):
        with on_gpu.stage("decode"):
            launch(1)
            Event.done = Event.launched - 5
    assert len(on_gpu._pending) < 10
    assert on_gpu.seconds() == pytest.approx({"decode": 1.0})
    on_gpu.clear()
    assert on_gpu.seconds() == {}


def test_nothing_of_before_counts_after_it_was_cleared(on_gpu: Stopwatch) -> None:
    with on_gpu.stage("vision"):
        launch(3)
    on_gpu.clear()
    with on_gpu.stage("vision"):
        launch(4)
    assert on_gpu.seconds() == pytest.approx({"vision": 0.004})


def test_a_cpu_is_timed_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([1.0, 3.0, 10.0, 10.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    stopwatch = Stopwatch(torch.device("cpu"))
    for _ in range(2):
        with stopwatch.stage("vision"):
            pass
    assert stopwatch.seconds() == {"vision": 2.5}
