"""One shard end to end: read, answer, commit. Plain Python: the fleet calls it, and so can a test."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from pipeline.batching import plan_batches
from pipeline.isolation import Isolation
from pipeline.limits import ReadLimits
from pipeline.preparation import Preparation, Window
from pipeline.records import FLOP_PARTS, STAGES, Answer, Rejection, ShardRef, ShardReport, SliceReport
from pipeline.replica import Replica, ReplicaSettings
from pipeline.retrying import Select, assemble_retry, retry_shard, stage_retry
from pipeline.staging import assemble, finish_shard
from pipeline.storage import open_output
from pipeline.tasks import Assembly, Retry, Slice, Task

WINDOW_BATCHES = 8
"""Batches planned together: enough that prompts of like length meet, few enough that pictures fit in memory."""
MOST_PICTURES = 256

Place = tuple[int, int]


class ShardWorker:
    """A replica that answers whole shards and commits them to an output."""

    def __init__(
        self,
        replica: ReplicaSettings,
        output: str,
        provenance: Mapping[str, str] | None = None,
        prompt: str | None = None,
        limits: ReadLimits | None = None,
        image_threads: int | None = None,
    ) -> None:
        self.replica = Replica(replica)
        self.output = open_output(output, (limits or ReadLimits()).timeout)
        self.provenance = dict(provenance or {})
        self.preparation = Preparation(
            self.replica.transform,
            self.replica.prompts,
            prompt=prompt,
            limits=limits,
            window=min(MOST_PICTURES, WINDOW_BATCHES * self.replica.batch_size),
            threads=image_threads or max(2, (os.cpu_count() or 2) // 2),
        )
        self.isolation = Isolation(self.replica.answer, self.replica.answer_together)
        self._answered = 0
        self._taken = 0.0

    def describe(self) -> dict[str, Any]:
        return self.replica.describe()

    def pulse(self) -> int:
        """A number that changes as work gets on."""
        return self._answered + self.preparation.members

    def expect(self, ref: ShardRef) -> None:
        """Read a shard ahead that will probably be asked for next; may be called while another is worked on."""
        if ref.task is None:
            self.preparation.expect(ref)

    def work(self, ref: ShardRef) -> ShardReport | SliceReport:
        """Do the shard's task; without one, answer every question, write the parts and then the report.

        Raises:
            StorageError, SourceError: the output cannot be written, or the shard not be read, now.
            ModelFailing: the model fails, whatever it is asked.
        """
        if isinstance(ref.task, Assembly):
            if ref.again is not None:
                return assemble_retry(self.output, ref, ref.again, ref.task, self.provenance)
            return assemble(self.output, ref, ref.task, self.provenance)
        if ref.again is not None:
            asked = partial(self._annotate, ref)
            return stage_retry(self.output, ref, ref.again, self.provenance, asked, self.preparation.window)
        if isinstance(ref.task, Retry):
            return retry_shard(
                self.output, ref, ref.task, self.provenance, lambda select: self._annotate(ref, select)[:3]
            )
        report, answers, rejections, numbered = self._annotate(ref)
        return finish_shard(
            self.output,
            ref,
            report,
            answers,
            rejections,
            self.provenance,
            numbered=numbered,
            window=self.preparation.window,
        )

    def _annotate(
        self, ref: ShardRef, select: Select | None = None
    ) -> tuple[ShardReport, list[Answer], list[Rejection], int]:
        """The costs and rows of a shard, or of what `select` leaves of it, and how many samples it was to have."""
        self.isolation.forgiving = ref.again is not None or self._suspect(ref.task)
        self._taken = began = time.perf_counter()
        report = ShardReport(ref.name, ref.url, ref.fingerprint)
        self.replica.engine.stopwatch.clear()
        answers: dict[Place, Answer] = {}
        rejections: list[tuple[Place, Rejection]] = []
        numbered = 0
        for window in self.preparation.windows(ref, select):
            self._answer(window, answers, rejections, report)
            for stage, seconds in window.seconds.items():
                report.seconds[stage] += seconds
            if window.end is not None:
                report.samples, numbered = window.end.samples, window.end.numbered
                report.incomplete = None if window.end.complete else window.end.incomplete_reason
        self.isolation.check()
        for stage, seconds in self.replica.engine.stopwatch.seconds().items():
            if stage in STAGES:  # others lie in these
                report.seconds[stage] += seconds
        report.wall_seconds = time.perf_counter() - began
        rejections.sort(key=lambda row: row[0])
        return report, [answers[place] for place in sorted(answers)], [row for _, row in rejections], numbered

    def _suspect(self, task: Task | None) -> bool:
        """Whether so little is asked, after a failure, that all of it may fail though the model works."""
        if isinstance(task, Slice):
            return task.stop is not None and task.stop - task.first < self.preparation.window
        return isinstance(task, Retry)

    def _answer(
        self,
        window: Window,
        answers: dict[Place, Answer],
        rejections: list[tuple[Place, Rejection]],
        report: ShardReport,
    ) -> None:
        rejections += window.rejections
        batches = list(plan_batches(window.pictures, self.replica.batch_size))
        for place, row, flops in self.isolation.all_rows(batches):
            if isinstance(row, Answer):
                answers[place] = row
                report.first_answer_seconds = report.first_answer_seconds or time.perf_counter() - self._taken
            else:
                rejections.append((place, row))
            for part in FLOP_PARTS:
                report.flops[part] += getattr(flops, part)
            self._answered += 1
