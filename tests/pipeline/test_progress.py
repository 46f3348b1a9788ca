"""Lines where nobody watches, a bar on a terminal; rates and the time left."""

from __future__ import annotations

import io
import os
import pty
from contextlib import suppress

import pytest

from pipeline import meter as meter_module
from pipeline.meter import Meter
from pipeline.progress import Progress
from pipeline.records import ShardReport
from pipeline.totals import Totals


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(meter_module, "time", clock)
    return clock


def report(samples: int = 10) -> ShardReport:
    made = ShardReport("0.tar", "/0.tar", "", samples=samples, questions=samples, answers=samples - 1, quarantined=1)
    made.generated_tokens = 5 * samples
    made.flops["prefill"] = 2.0 * (samples - 1)
    made.scored, made.correct = samples - 1, (samples - 1) / 2
    made.scores_by_kind = {"count": (samples - 1, (samples - 1) / 2)}
    return made


def test_rates_are_of_this_run_and_totals_of_the_whole(clock: Clock) -> None:
    before = Totals()
    before.add(report(100))
    meter = Meter(before, shards=4)
    clock.now += 30
    meter.ready()
    clock.now += 5
    meter.add(report())
    clock.now += 60
    metrics = meter.metrics()
    assert metrics["images_per_second"] == 2.0
    assert metrics["generated_tokens_per_second"] == 10.0
    assert (metrics["samples"], metrics["answers"], metrics["quarantined"]) == (110, 108, 2)
    assert (metrics["flops_per_answer"], metrics["flops_per_answer_prefill"]) == (2.0, 2.0)
    assert (metrics["accuracy"], metrics["accuracy_count"]) == (0.5, 0.5)
    assert metrics["elapsed_seconds"] == 95
    assert meter.seconds_left == 10
    assert before.shards == 1


def test_a_shard_that_is_done_again_counts_once_and_others_in_the_output_not_at_all(clock: Clock) -> None:
    before = Totals()
    for _ in range(3):
        before.add(report(100))
    meter = Meter(before, shards=2, done=1)
    meter.redo(report(100))
    meter.ready()
    assert (meter.shards_done, meter.whole.shards, meter.whole.samples) == (1, 2, 200)
    clock.now += 5
    meter.add(report(100))
    assert (meter.shards_done, meter.whole.shards, meter.whole.samples) == (2, 3, 300)
    assert meter.metrics()["images_per_second"] == 20.0
    assert meter.seconds_left == 0


def test_nothing_done_has_no_rate_and_no_accuracy(clock: Clock) -> None:
    meter = Meter(Totals(), shards=4)
    assert meter.metrics()["images_per_second"] == 0.0
    assert "accuracy" not in meter.metrics()
    assert meter.seconds_left is None
    assert meter.summary(meter.whole)["accuracy"] is None


def test_the_rate_shown_and_the_time_left_go_by_the_last_ten_minutes(clock: Clock) -> None:
    before = Totals(shards=4000)
    meter = Meter(before, shards=10_000)
    meter.ready()
    for _ in range(1000):  # small shards come first: a shard a second
        clock.now += 1
        meter.add(report())
    assert (meter.images_per_second, meter.seconds_left) == (10.0, 5000)
    for _ in range(200):
        clock.now += 10
        meter.add(report())
    assert (meter.images_per_second, meter.seconds_left) == (1.0, 48_000)
    assert meter.metrics()["images_per_second"] == 4.0
    assert len(meter._recent) < 700


def test_the_first_answer_is_timed_from_the_beginning_of_the_run(clock: Clock) -> None:
    meter = Meter(Totals(), shards=4, began=clock.now - 20)
    clock.now += 100
    empty = report()
    empty.answers = 0
    meter.add(empty)
    assert "seconds_to_first_answer" not in meter.metrics()
    late = report()
    late.wall_seconds, late.first_answer_seconds = 50.0, 5.0
    meter.add(late)
    clock.now += 100
    meter.add(report())
    assert meter.metrics()["seconds_to_first_answer"] == 120 - (50 - 5)
    assert meter.summary(meter.whole)["seconds"]["to_first_answer"] == 75.0


def test_lines_come_at_their_interval_where_there_is_no_terminal(clock: Clock) -> None:
    stream = io.StringIO()
    meter = Meter(Totals(), shards=4)
    meter.ready()
    progress = Progress(meter, every=1000, stream=stream)
    progress.show()
    clock.now += 10
    meter.add(report())
    progress.show()
    progress.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("shards 0/4")
    assert "shards 1/4  images 10  1.0 images/s  answers 9  quarantined 1  accuracy 0.500  left 0:00:30" in lines[1]


def test_the_time_left_runs_down_and_is_left_out_once_it_is_not_known(clock: Clock) -> None:
    stream = io.StringIO()
    meter = Meter(Totals(), shards=3)
    meter.ready()
    progress = Progress(meter, every=10, stream=stream)
    for done, seconds in [(False, 10), (True, 0), (False, 15), (False, 10), (True, 0), (True, 0)]:
        clock.now += seconds
        if done:
            meter.add(report())
        progress.show(now=True)
    left = [line.partition("  left ")[2] for line in stream.getvalue().splitlines()]
    assert left == ["", "0:00:20", "0:00:05", "", "0:00:18", ""]


def test_batches_of_shards_under_way_are_shown_until_all_are_done(clock: Clock) -> None:
    stream = io.StringIO()
    meter = Meter(Totals(), shards=1)
    progress = Progress(meter, every=10, stream=stream)
    progress.show(now=True)
    meter.batches += 1200
    progress.show(now=True)
    meter.add(report())
    progress.close()
    first, second, last = stream.getvalue().splitlines()
    assert first.startswith("shards 0/1  images 0")
    assert second.startswith("shards 0/1  batches 1,200  images 0")
    assert last.startswith("shards 1/1  images 10")


def everything(master: int) -> str:
    """What the terminal got; it comes in pieces, and after the last an error."""
    shown = b""
    with suppress(OSError):
        while piece := os.read(master, 10_000):
            shown += piece
    return shown.decode()


def test_a_terminal_gets_a_bar(clock: Clock) -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stream:
        meter = Meter(Totals(), shards=4)
        progress = Progress(meter, every=10, stream=stream)
        meter.add(report())
        progress.say("a line of its own")
        progress.close()
    shown = everything(master)
    os.close(master)
    assert "1/4" in shown
    assert "\r" in shown
    assert "a line of its own" in shown


def test_a_run_goes_on_when_nobody_reads_its_progress_any_more() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "w")
    progress = Progress(Meter(Totals(), 1), 10.0, stream)
    progress.say("one")
    progress.say("another")
    with suppress(BrokenPipeError):
        stream.close()
