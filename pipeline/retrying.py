"""Asking again what stands in a shard's quarantine, while the answers that stand stay as they are."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow.parquet as pq

from pipeline.commit import amend_shard
from pipeline.ledger import Ledger
from pipeline.parquet import clean
from pipeline.records import Answer, Rejection, Sample, ShardRef, ShardReport
from pipeline.shards import ShardEnd
from pipeline.sources import SourceError
from pipeline.storage import Output, StorageError
from pipeline.tasks import LETHAL, Retry

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
    before = Ledger(output).report(ref.name, ref.url)
    if before is None:
        raise StorageError(f"{ref.name} has no report in {output.url} any more; run the same command again")
    remaining = Remaining(output, before, task)
    now, answers, rejections = annotate(remaining.select)
    remaining.check(now.samples >= before.samples)
    rejections = sorted([*rejections, *remaining.spared], key=remaining.position)
    if not answers and set(rejections) == set(remaining.rejections):
        return before
    report = replace(
        before,
        samples=now.samples,
        incomplete=now.incomplete,
        wall_seconds=before.wall_seconds + now.wall_seconds,
        seconds=_sums(before.seconds, now.seconds),
        flops=_sums(before.flops, now.flops),
    )
    return amend_shard(output, report, answers, rejections, provenance)


class Remaining:
    """Which questions of a finished shard have no answer."""

    def __init__(self, output: Output, report: ShardReport, task: Retry) -> None:
        self.rejections = [Rejection(**row) for row in _rows(output, report, "quarantine/", None)]
        columns = ["key", "question_index"]
        answered = {(row["key"], row["question_index"]) for row in _rows(output, report, "data/", columns)}
        self.spared = [row for row in self.rejections if task.spare_lethal and _lethal(row)]
        """Rows that are not asked again, as they have killed replicas."""
        self._ask_not = answered | {(row.key, row.question_index) for row in self.spared}
        self._answered_keys = {key for key, _ in answered}
        self._whole_samples = {row.key for row in self.rejections if row.question_index is None}
        self._places: dict[str, int] = {}
        self._name = report.shard

    def select(self, items: Iterator[Item]) -> Iterator[Item]:
        """Leave out what is answered or spared."""
        for item in items:
            if isinstance(item, ShardEnd):
                yield item
                continue
            key = clean(item.key)
            self._places.setdefault(key, len(self._places))
            if isinstance(item, Sample):
                questions = tuple(one for one in item.questions if (key, one.index) not in self._ask_not)
                if questions:
                    yield replace(item, questions=questions)
            elif not self._settled(item, key):
                yield item

    def check(self, as_much: bool) -> None:
        """Raises SourceError where the shard did not give all that it gave before: nothing may vanish."""
        sampled = {row.key for row in self.rejections if row.stage not in ("open", "read")}
        if not as_much or not sampled <= self._places.keys():
            raise SourceError(f"{self._name} gives less now than when it was first read")

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
