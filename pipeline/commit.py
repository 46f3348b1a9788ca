"""Committing one shard: parts first, the report last, and nothing stale left beside them.

A process may die between any two steps. Before the report is there, the shard is not done and its parts are written
again, byte for byte; after it, only files that no report names can be left over, and `sweep` removes them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from pipeline.faults import fault_point
from pipeline.ledger import Ledger, LedgerEntry
from pipeline.parquet import write_part
from pipeline.part_names import data_path, file_stem, is_part, is_staged, is_temporary, quarantine_path
from pipeline.records import ANSWER_SCHEMA, QUARANTINE_SCHEMA, Answer, Rejection, ShardReport
from pipeline.storage import Output


def commit_shard(
    output: Output,
    report: ShardReport,
    answers: Sequence[Answer],
    rejections: Sequence[Rejection],
    provenance: Mapping[str, str],
) -> ShardReport:
    """Write a shard's parts and then its report, replacing whatever an earlier state of the shard left.

    A shard without answers gets no data part, one without rejections no quarantine part. The counts, token sums and
    scores of the report are taken from the rows, so that they cannot differ from them.

    Returns:
        The report as committed; the time that the parts took is added to its `write` and wall seconds.

    Raises:
        StorageError: full, read-only or unreachable storage; the shard is then not done.
    """
    ledger = Ledger(output)
    stem = file_stem(report.shard, report.url)
    before = ledger.report(report.shard, report.url)
    if before is not None and before.fingerprint != report.fingerprint:
        # The old report must not stand over parts of the new content, not even for a moment.
        ledger.retract(report.shard, report.url)
    fault_point("before-data-part")
    began = time.perf_counter()
    parts = []
    if answers:
        parts.append(write_part(output, data_path(stem), answers, ANSWER_SCHEMA, provenance))
    fault_point("after-data-part")
    if rejections:
        parts.append(write_part(output, quarantine_path(stem), rejections, QUARANTINE_SCHEMA, provenance))
    fault_point("after-quarantine-part")
    writing = time.perf_counter() - began
    committed = replace(
        counted(report, answers, rejections),
        parts=parts,
        seconds={**report.seconds, "write": report.seconds.get("write", 0.0) + writing},
        wall_seconds=report.wall_seconds + writing,
    )
    _finish(ledger, committed, {data_path(stem), quarantine_path(stem), *_paths(before)})
    return committed


def amend_shard(
    output: Output,
    report: ShardReport,
    answers: Sequence[Answer],
    rejections: Sequence[Rejection],
    provenance: Mapping[str, str],
) -> ShardReport:
    """Add answers to questions that were in quarantine, without rewriting the answers that stand.

    Args:
        report: the shard's report as it stands in the ledger.
        answers: the questions answered now; they go into a data part of their own.
        rejections: all that remain in quarantine; they replace the quarantine part.
    """
    stem = file_stem(report.shard, report.url)
    retry = 1
    while {data_path(stem, retry), quarantine_path(stem, retry)} & _paths(report):
        retry += 1
    fault_point("before-data-part")
    parts = [part for part in report.parts if str(part["path"]).startswith("data/")]
    if answers:
        parts.append(write_part(output, data_path(stem, retry), answers, ANSWER_SCHEMA, provenance))
    fault_point("after-data-part")
    if rejections:
        parts.append(write_part(output, quarantine_path(stem, retry), rejections, QUARANTINE_SCHEMA, provenance))
    fault_point("after-quarantine-part")
    added = counted(replace(report, scores_by_kind=dict(report.scores_by_kind)), answers, rejections, onto=report)
    amended = replace(added, parts=parts)
    _finish(Ledger(output), amended, _paths(report))
    return amended


def counted(
    report: ShardReport,
    answers: Sequence[Answer],
    rejections: Sequence[Rejection],
    onto: ShardReport | None = None,
) -> ShardReport:
    """`report` with counts, token sums and scores of the rows, added to the answers of `onto` where it is given."""
    start = onto or ShardReport(report.shard, report.url, report.fingerprint)
    by_kind = dict(start.scores_by_kind)
    for answer in answers:
        if answer.correct is not None and answer.kind is not None:
            scored, correct = by_kind.get(answer.kind, (0, 0.0))
            by_kind[answer.kind] = (scored + 1, correct + answer.correct)
    scores = [answer.correct for answer in answers if answer.correct is not None]
    total = start.answers + len(answers)
    return replace(
        report,
        answers=total,
        quarantined=len(rejections),
        questions=total + len(rejections),
        scored=start.scored + len(scores),
        correct=start.correct + sum(scores),
        scores_by_kind=by_kind,
        prompt_tokens=start.prompt_tokens + sum(answer.prompt_tokens for answer in answers),
        generated_tokens=start.generated_tokens + sum(answer.generated_tokens for answer in answers),
    )


def sweep(output: Output, entries: Iterable[LedgerEntry]) -> list[str]:
    """Remove what dead attempts left: temporary files, staged slices, and parts that no report names.

    Only for the lock's holder, when no replica is writing.

    Returns:
        The paths removed.
    """
    named = {path for entry in entries for path, _ in entry.parts}
    leftovers = [
        file.path
        for file in output.list()
        if is_temporary(file.path) or is_staged(file.path) or (is_part(file.path) and file.path not in named)
    ]
    for path in leftovers:
        output.delete(path)
    return leftovers


def _finish(ledger: Ledger, report: ShardReport, maybe_stale: set[str]) -> None:
    fault_point("before-report")
    ledger.commit(report)
    fault_point("after-report")
    for path in sorted(maybe_stale - _paths(report)):
        ledger.output.delete(path)
    fault_point("after-stale-parts")


def _paths(report: ShardReport | None) -> set[str]:
    return {str(part["path"]) for part in report.parts} if report else set()
