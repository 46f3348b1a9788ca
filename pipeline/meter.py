"""What a run has done so far: sums over the whole output, rates over this run's own time."""

from __future__ import annotations

import time
from copy import deepcopy
from typing import Any

from pipeline.records import FLOP_PARTS, STAGES, ShardReport
from pipeline.totals import Totals


class Meter:
    """Adds up shard reports.

    Args:
        before: sums over the shards that earlier starts of the run finished.
        shards: shards of the whole run.
    """

    def __init__(self, before: Totals, shards: int) -> None:
        self.shards = shards
        self.whole = deepcopy(before)
        """Sums over the whole output."""
        self.now = Totals()
        """Sums over the shards of this run alone."""
        self._began = time.monotonic()
        self._first_ready: float | None = None
        self._last_report: float | None = None

    def ready(self) -> None:
        """A replica is ready: work begins."""
        if self._first_ready is None:
            self._first_ready = time.monotonic()

    def add(self, report: ShardReport) -> None:
        self.now.add(report)
        self.whole.add(report)
        self._last_report = time.monotonic()

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

    def rate(self, amount: float) -> float:
        """Per second of work; 0 before anything is done."""
        return amount / self.working if self.working > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """By the shards' mean; None while unknown."""
        left = self.shards - self.whole.shards
        return left * self.working / self.now.shards if self.now.shards else None

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
        by_kind = {f"accuracy_{kind}": accuracy for kind, accuracy in whole.accuracy_by_kind.items()}
        return {name: float(value) for name, value in {**values, **by_kind}.items()}

    def summary(self, totals: Totals) -> dict[str, Any]:
        """The job's result: `totals` over the whole output, rates and seconds over this run."""
        return {
            "shards": totals.shards,
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
                "working": round(self.working, 3),
                **{stage: round(self.now.seconds[stage], 3) for stage in STAGES},
            },
        }
