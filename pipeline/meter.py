"""What a run has done so far: sums over the whole output, rates over this run's own time."""

from __future__ import annotations

import time
from collections import deque
from copy import deepcopy
from typing import Any

from pipeline.records import FLOP_PARTS, STAGES, ShardReport
from pipeline.totals import Totals

RECENT_SECONDS = 600.0
"""What the rate shown and the time left go by: long enough for several shards of a replica."""


class Meter:
    """Adds up shard reports.

    Args:
        before: sums over what earlier starts of the run left in the output.
        shards: shards of the whole run.
        began: when the run began, by `time.monotonic`; now unless it is given.
        done: how many of `shards` are done; all of `before` unless it is given.
    """

    def __init__(self, before: Totals, shards: int, began: float | None = None, done: int | None = None) -> None:
        self.shards = shards
        self._done_before = before.shards if done is None else done
        self.whole = deepcopy(before)
        """Sums over the whole output."""
        self.now = Totals()
        """Sums over the shards of this run alone."""
        self.batches = 0
        """Answered by replicas that count them, also of shards that are not finished."""
        self.first_answer: float | None = None
        """Seconds from the run's beginning to its first answer."""
        self._began = time.monotonic() if began is None else began
        self.recovered = 0
        """Answers to questions that stood in quarantine."""
        self._retried: dict[str, ShardReport] = {}
        self._first_ready: float | None = None
        self._last_report: float | None = None
        self._recent: deque[tuple[float, int, int]] = deque()
        """(when, shards, samples) of this run, about one a second."""

    def ready(self) -> None:
        """A replica is ready: work begins."""
        if self._first_ready is None:
            self._first_ready = time.monotonic()
            self._recent.append((self._first_ready, 0, 0))

    def retry(self, report: ShardReport) -> None:
        """A finished shard is worked on again: its next report takes the place of this one."""
        self._retried[report.shard] = report

    def redo(self, report: ShardReport) -> None:
        """A shard is done again from its beginning: what was reported of it counts no more."""
        self.whole.add(report, -1)

    def add(self, report: ShardReport) -> None:
        if before := self._retried.pop(report.shard, None):
            self.recovered += report.answers - before.answers
            self.now.add(before, -1)
            self.whole.add(before, -1)
        self.now.add(report)
        self.whole.add(report)
        self._last_report = time.monotonic()
        if self.first_answer is None and report.answers:
            since = report.wall_seconds - report.first_answer_seconds if report.first_answer_seconds else 0.0
            self.first_answer = max(0.0, self.elapsed - since)
        self._remember()

    def _remember(self) -> None:
        now, recent = time.monotonic(), self._recent
        if not recent or now - recent[-1][0] >= 1:
            recent.append((now, self.now.shards, self.now.samples))
        while len(recent) > 2 and now - recent[1][0] >= RECENT_SECONDS:
            recent.popleft()

    @property
    def shards_done(self) -> int:
        """How many of `shards` are done; the output may hold others."""
        return self._done_before + self.now.shards

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._began

    @property
    def working(self) -> float:
        """Seconds from the first replica's being ready to the last report: without starting Ray, loading the model,
        verifying."""
        if self._first_ready is None or self._last_report is None:
            return 0.0
        return self._last_report - self._first_ready

    @property
    def since_report(self) -> float:
        """Seconds since the last report; 0 before the first."""
        return 0.0 if self._last_report is None else time.monotonic() - self._last_report

    def rate(self, amount: float) -> float:
        """Per second of work; 0 before anything is done."""
        return amount / self.working if self.working > 0 else 0.0

    @property
    def images_per_second(self) -> float:
        """Over the last ten minutes of work, or a little more; 0 before anything is done."""
        seconds, _, samples = self._lately()
        return samples / seconds if seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """As long as shards took lately; None while unknown."""
        seconds, shards, _ = self._lately()
        return max(0, self.shards - self.shards_done) * seconds / shards if shards else None

    def _lately(self) -> tuple[float, int, int]:
        """Seconds, shards and samples from the oldest moment remembered to the last report."""
        if not self._recent or self._last_report is None:
            return 0.0, 0, 0
        moment, shards, samples = self._recent[0]
        return self._last_report - moment, self.now.shards - shards, self.now.samples - samples

    def metrics(self) -> dict[str, float]:
        """What is tracked over time."""
        whole, flops = self.whole, self.now.flops_per_answer
        values = {
            "shards_done": whole.shards,
            "samples": whole.samples,
            "questions": whole.questions,
            "answers": whole.answers,
            "quarantined": whole.quarantined,
            "images_per_second": self.rate(self.now.samples),
            "answers_per_second": self.rate(self.now.answers),
            "generated_tokens_per_second": self.rate(self.now.generated_tokens),
            "flops_total": sum(whole.flops.values()),
            "flops_per_answer": sum(flops.values()),
            **{f"flops_per_answer_{part}": flops[part] for part in FLOP_PARTS},
            **{f"seconds_{stage}": self.now.seconds[stage] for stage in STAGES},
            "elapsed_seconds": self.elapsed,
        }
        if whole.accuracy is not None:
            values["accuracy"] = whole.accuracy
        if self.first_answer is not None:
            values["seconds_to_first_answer"] = self.first_answer
        by_kind = {f"accuracy_{kind}": accuracy for kind, accuracy in whole.accuracy_by_kind.items()}
        return {name: float(value) for name, value in {**values, **by_kind}.items()}

    def summary(self, totals: Totals) -> dict[str, Any]:
        """The job's result: `totals` over the whole output, rates and seconds over this run."""
        return {
            "shards": totals.shards,
            "incomplete_shards": totals.incomplete_shards,
            "samples": totals.samples,
            "questions": totals.questions,
            "answers": totals.answers,
            "quarantined": totals.quarantined,
            "images_per_second": round(self.rate(self.now.samples), 3),
            "answers_per_second": round(self.rate(self.now.answers), 3),
            "generated_tokens_per_second": round(self.rate(self.now.generated_tokens), 3),
            "flops_per_answer": {part: totals.flops_per_answer[part] for part in FLOP_PARTS},
            "accuracy": totals.accuracy,
            "accuracy_by_kind": totals.accuracy_by_kind,
            "seconds": {
                "total": round(self.elapsed, 3),
                "to_first_answer": None if self.first_answer is None else round(self.first_answer, 3),
                "working": round(self.working, 3),
                **{stage: round(self.now.seconds[stage], 3) for stage in STAGES},
            },
        }
