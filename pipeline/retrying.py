"""Asking again what stands in a shard's quarantine, while the answers that stand stay as they are."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow.parquet as pq

from pipeline.commit import amend_shard
from pipeline.ledger import Ledger
from pipeline.parquet import clean
from pipeline.records import Answer, Rejection, Sample, ShardRef, ShardReport, SliceReport
from pipeline.shards import ShardEnd
from pipeline.sources import SourceError
from pipeline.staging import finish_shard, gather, remove_staged
from pipeline.storage import Output, StorageError
from pipeline.tasks import LETHAL, Assembly, Retry

Item = Sample | Rejection | ShardEnd
Select = Callable[[Iterator[Item]], Iterator[Item]]
"""Passes on the part of a shard's items that is to be worked on."""
Annotate = Callable[[Select], tuple[ShardReport, Sequence[Answer], Sequence[Rejection]]]
"""Reads the shard and answers what `Select` lets through."""
Identity = tuple[str, int | None]


def retry_shard(
    output: Output, ref: ShardRef, task: Retry, provenance: Mapping[str, str], annotate: Annotate
) -> ShardReport:
    """Ask every question of a finished shard that has no answer, and add the answers to it.

    Also asks what the shard's first reading never came to. What fails again stays in quarantine, with today's reason.
    Nothing is written where nothing has changed.

    Raises:
        StorageError, SourceError: the output or the shard cannot be read now, or the shard gives less than it did.
    """
    remaining = Remaining(output, ref, task)
    return remaining.amended(*annotate(remaining.select), provenance)


def stage_retry(
    output: Output,
    ref: ShardRef,
    task: Retry,
    provenance: Mapping[str, str],
    annotate: Callable[[Select], tuple[ShardReport, Sequence[Answer], Sequence[Rejection], int]],
    window: int = 1,
) -> ShardReport | SliceReport:
    """Ask again what the slice that is the shard's task holds of the quarantine, and stage what comes of it.

    Raises as `retry_shard`.
    """
    remaining = Remaining(output, ref, task)
    now, answers, rejections, numbered = annotate(remaining.select)
    seen = remaining.seen
    return finish_shard(output, ref, now, answers, rejections, provenance, numbered=numbered, window=window, seen=seen)


def assemble_retry(
    output: Output, ref: ShardRef, retry: Retry, task: Assembly, provenance: Mapping[str, str]
) -> ShardReport:
    """What `retry_shard` does, from staged slices.

    Raises as `retry_shard`.
    """
    remaining = Remaining(output, ref, retry)
    now, answers, rejections, seen = gather(output, ref, task, provenance)
    remaining.meet(seen)
    amended = remaining.amended(now, answers, rejections, provenance)
    remove_staged(output, ref, task, provenance)
    return amended


class Remaining:
    """Which questions of a finished shard have no answer."""

    def __init__(self, output: Output, ref: ShardRef, task: Retry) -> None:
        report = Ledger(output).report(ref.name, ref.url)
        if report is None:
            raise StorageError(f"{ref.name} has no report in {output.url} any more; run the same command again")
        self._output, self._report = output, report
        self.rejections = [Rejection(**row) for row in _rows(output, report, "quarantine/", None)]
        columns = ["key", "question_index"]
        answered = {(row["key"], row["question_index"]) for row in _rows(output, report, "data/", columns)}
        self.spared = [row for row in self.rejections if task.spare_lethal and _lethal(row)]
        """Rows that are not asked again, as they have killed replicas."""
        self._ask_not = answered | {(row.key, row.question_index) for row in self.spared}
        self._answered_keys = {key for key, _ in answered}
        self._whole_samples = {row.key for row in self.rejections if row.question_index is None}
        self._places: dict[str, int] = {}

    def select(self, items: Iterator[Item]) -> Iterator[Item]:
        """Leave out what is answered or spared."""
        for item in items:
            if isinstance(item, ShardEnd):
                yield item
                continue
            key = clean(item.key)
            self.meet([key])
            if isinstance(item, Sample):
                questions = tuple(one for one in item.questions if (key, one.index) not in self._ask_not)
                if questions:
                    yield replace(item, questions=questions)
            elif not self._settled(item, key):
                yield item

    @property
    def seen(self) -> list[str]:
        """Keys met so far, in the shard's order."""
        return list(self._places)

    def meet(self, keys: Iterable[str]) -> None:
        """Take note of keys in the shard's order."""
        for key in keys:
            self._places.setdefault(key, len(self._places))

    def amended(
        self,
        now: ShardReport,
        answers: Sequence[Answer],
        rejections: Sequence[Rejection],
        provenance: Mapping[str, str],
    ) -> ShardReport:
        """The shard's report once the answers are added to it; as it was where nothing has changed.

        Raises:
            SourceError: the shard did not give all that it gave before: nothing may vanish.
            StorageError: the output cannot be written.
        """
        before = self._report
        sampled = {row.key for row in self.rejections if row.stage not in ("open", "read")}
        if now.samples < before.samples or not sampled <= self._places.keys():
            raise SourceError(f"{before.shard} gives less now than when it was first read")
        rejections = sorted([*rejections, *self.spared], key=self.position)
        if not answers and set(rejections) == set(self.rejections):
            return before
        report = replace(
            before,
            samples=now.samples,
            incomplete=now.incomplete,
            wall_seconds=before.wall_seconds + now.wall_seconds,
            seconds=_sums(before.seconds, now.seconds),
            flops=_sums(before.flops, now.flops),
        )
        return amend_shard(self._output, report, answers, rejections, provenance)

    def position(self, row: Rejection) -> tuple[int, int]:
        """Where a row stands in the shard."""
        return self._places.get(clean(row.key), len(self._places)), row.question_index or 0

    def _settled(self, item: Rejection, key: str) -> bool:
        """Whether a rejection is of something that has an answer, or is spared."""
        if item.question_index is not None or item.stage in ("open", "read"):
            return (key, item.question_index) in self._ask_not
        return key in self._answered_keys and key not in self._whole_samples


def _lethal(row: Rejection) -> bool:
    return row.stage == "model" and row.reason.startswith(LETHAL)


def _rows(output: Output, report: ShardReport, folder: str, columns: list[str] | None) -> Iterator[dict[str, Any]]:
    for part in report.parts:
        if str(part["path"]).startswith(folder):
            yield from pq.read_table(io.BytesIO(output.read(str(part["path"]))), columns=columns).to_pylist()


def _sums(left: Mapping[str, float], right: Mapping[str, float]) -> dict[str, float]:
    return {name: left.get(name, 0.0) + right.get(name, 0.0) for name in {**left, **right}}
