"""Recounting one shard from its Parquet parts, and comparing it with its report."""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.parquet import clean
from pipeline.provenance import FINGERPRINT_KEY
from pipeline.records import ANSWER_SCHEMA, QUARANTINE_SCHEMA, ShardReport
from pipeline.storage import Output

Identity = tuple[str, int | None]
"""(key, question_index) within a shard; the index is None where a whole sample is meant."""
SHOWN = 3
"""Examples named in a finding."""


@dataclass
class ShardAudit:
    """What the files of one shard really hold."""

    report: ShardReport
    findings: list[str] = field(default_factory=list)
    answers: int = 0
    quarantined: int = 0
    scored: int = 0
    correct: float = 0.0
    generated_tokens: int = 0
    prompt_tokens: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """`stage: reason` with its numbers and names left out -> rows."""
    answered: Counter[Identity] = field(default_factory=Counter)
    rejected: Counter[Identity] = field(default_factory=Counter)


def audit_shard(output: Output, report: ShardReport, fingerprint: str | None) -> ShardAudit:
    """Read every part the report names and say where report and rows differ. Holds one part in memory at a time.

    Args:
        fingerprint: the run's, which every part must carry; None when it is not known.
    """
    audit = ShardAudit(report)
    for part in report.parts:
        _audit_part(output, part, fingerprint, audit)
    _compare(audit)
    return audit


def compare_with_input(audit: ShardAudit, expected: Iterable[Identity]) -> Iterator[str]:
    """Findings about questions of the shard itself that are neither answered nor in quarantine, and the reverse."""
    wanted = {(clean(key), index) for key, index in expected}
    whole_samples = {key for key, index in audit.rejected if index is None}
    lost = [identity for identity in wanted if identity not in audit.answered and identity not in audit.rejected]
    lost = [identity for identity in lost if identity[0] not in whole_samples]
    if lost:
        yield f"{audit.report.shard}: {len(lost)} questions of the input are not in the output, {_examples(lost)}"
    if strange := [identity for identity in audit.answered if identity not in wanted]:
        yield f"{audit.report.shard}: {len(strange)} answers to questions not in the input, {_examples(strange)}"


def _audit_part(output: Output, part: dict[str, object], fingerprint: str | None, audit: ShardAudit) -> None:
    path = str(part["path"])
    try:
        data = output.read(path)
    except FileNotFoundError:
        audit.findings.append(f"{path}: the ledger names it and it is not there")
        return
    if len(data) != part["bytes"] or hashlib.sha256(data).hexdigest() != part["sha256"]:
        audit.findings.append(f"{path}: its content is not what was committed (checksum)")
    quarantine = path.startswith("quarantine/")
    try:
        table = pq.read_table(io.BytesIO(data))
    except (pa.ArrowException, OSError) as error:
        audit.findings.append(f"{path}: not readable as Parquet ({str(error).splitlines()[0]})")
        return
    if not table.schema.equals(QUARANTINE_SCHEMA if quarantine else ANSWER_SCHEMA):
        audit.findings.append(f"{path}: its columns are not the declared ones")
        return
    if table.num_rows != part["rows"]:
        audit.findings.append(f"{path}: {table.num_rows} rows, the ledger says {part['rows']}")
    written_by = (table.schema.metadata or {}).get(FINGERPRINT_KEY.encode(), b"").decode()
    if fingerprint is not None and written_by != fingerprint:
        audit.findings.append(f"{path}: written by run {written_by or 'unknown'}, not by {fingerprint}")
    if other := set(table["shard"].unique().to_pylist()) - {clean(audit.report.shard)}:
        audit.findings.append(f"{path}: rows of another shard, {_examples(other)}")
    (_count_quarantine if quarantine else _count_answers)(table, audit)


def _count_answers(table: pa.Table, audit: ShardAudit) -> None:
    audit.answers += table.num_rows
    audit.answered.update(_identities(table))
    scores = table["correct"].drop_null().to_pylist()
    audit.scored += len(scores)
    audit.correct += sum(scores)
    audit.generated_tokens += sum(table["generated_tokens"].to_pylist())
    audit.prompt_tokens += sum(table["prompt_tokens"].to_pylist())


def _count_quarantine(table: pa.Table, audit: ShardAudit) -> None:
    audit.quarantined += table.num_rows
    audit.rejected.update(_identities(table))
    pairs = zip(table["stage"].to_pylist(), table["reason"].to_pylist(), strict=True)
    audit.reasons.update(f"{stage}: {_reason_kind(reason)}" for stage, reason in pairs)


def _compare(audit: ShardAudit) -> None:
    report, name = audit.report, audit.report.shard
    for what in ("answers", "quarantined", "scored", "generated_tokens", "prompt_tokens"):
        counted, reported = getattr(audit, what), getattr(report, what)
        if counted != reported:
            audit.findings.append(f"{name}: {counted} {what} in the files, the ledger says {reported}")
    if not math.isclose(audit.correct, report.correct, rel_tol=1e-5, abs_tol=1e-5):
        audit.findings.append(f"{name}: scores add up to {audit.correct:.3f}, the ledger says {report.correct:.3f}")
    if report.questions != audit.answers + audit.quarantined:
        audit.findings.append(
            f"{name}: {report.questions} questions, but {audit.answers} answers and {audit.quarantined} in quarantine"
        )
    for rows, what in ((audit.answered, "answered"), (audit.rejected, "in quarantine")):
        if twice := [identity for identity, times in rows.items() if times > 1 and identity[1] is not None]:
            audit.findings.append(f"{name}: {len(twice)} questions {what} more than once, {_examples(twice)}")
    if both := [identity for identity in audit.answered if identity in audit.rejected]:
        audit.findings.append(f"{name}: {len(both)} questions both answered and in quarantine, {_examples(both)}")


def _identities(table: pa.Table) -> Iterator[Identity]:
    return zip(table["key"].to_pylist(), table["question_index"].to_pylist(), strict=True)


def _reason_kind(reason: str) -> str:
    """The reason without what differs from row to row, so that like cases are counted together."""
    plain = re.sub(r"'[^']*'|\"[^\"]*\"", "'...'", reason)
    return re.sub(r"\d[\d.,]*", "#", plain)[:100]


def _examples(things: Iterable[object]) -> str:
    chosen = sorted(map(str, things))
    return "such as " + ", ".join(chosen[:SHOWN]) if len(chosen) > SHOWN else ", ".join(chosen)
