"""Proof that nothing was lost: everything is recounted from the files and compared with what the run says of itself."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import UserError
from pipeline.ledger import decode_report
from pipeline.part_audit import Identity, ShardAudit, audit_shard, compare_with_input
from pipeline.part_names import is_part, is_staged, is_temporary, shard_id
from pipeline.records import ShardRef, ShardReport
from pipeline.run_folder import read_run, read_success
from pipeline.storage import Output
from pipeline.totals import Totals

MOST_REASONS = 50
"""Kinds of quarantine reasons listed; the rest is summed up as `other`."""
REASONS_TOLD, LONGEST_REASON = 3, 120
"""What a remark tells of them: how many, and characters of each."""
FROM_ROWS = ("answers", "quarantined", "scored", "correct", "prompt_tokens", "generated_tokens")
"""Totals recounted from the rows; the others are summed over the reports."""

LOCAL_WORKERS, REMOTE_WORKERS = 2, 16
"""Shards read at the same time; as many parts are in memory."""

QuestionsOf = Callable[[ShardRef], Iterable[Identity]]
"""Reads a shard again and gives (key, question index) of everything in it."""


@dataclass
class Verification:
    findings: list[str] = field(default_factory=list)
    """One sentence for each thing that is off."""
    totals: Totals = field(default_factory=Totals)
    """Recounted."""
    parts: int = 0
    bytes: int = 0
    leftovers: int = 0
    """Files of attempts that died; no report names them."""
    quarantine_reasons: Counter[str] = field(default_factory=Counter)
    shards_expected: int | None = None

    @property
    def ok(self) -> bool:
        return not self.findings

    def remarks(self) -> list[str]:
        """Sentences on what is in order and yet no answer."""
        totals, reasons, remarks = self.totals, self.quarantine_reasons, []
        if totals.quarantined:
            told = [f"{reason[:LONGEST_REASON]} ({count})" for reason, count in reasons.most_common(REASONS_TOLD)]
            more = [f"{len(reasons) - REASONS_TOLD} kinds more"] if len(reasons) > REASONS_TOLD else []
            remarks.append(
                f"{totals.quarantined} of {totals.questions} questions are quarantined: {'; '.join([*told, *more])}"
            )
        if totals.incomplete_shards:
            remarks.append(
                f"{totals.incomplete_shards} of {totals.shards} shards are not whole, and each counts as one question "
                "without an answer, however many it lacks; once they are, the same command reads them again"
            )
        return remarks

    def summary(self) -> dict[str, Any]:
        """Plain values for one JSON line."""
        most = dict(self.quarantine_reasons.most_common(MOST_REASONS))
        if (other := self.quarantine_reasons.total() - sum(most.values())) > 0:
            most["other"] = other
        totals = self.totals
        return {
            "ok": self.ok,
            "findings": len(self.findings),
            "shards": totals.shards,
            "shards_expected": self.shards_expected,
            "incomplete_shards": totals.incomplete_shards,
            "samples": totals.samples,
            "questions": totals.questions,
            "answers": totals.answers,
            "quarantined": totals.quarantined,
            "quarantine_reasons": most,
            "accuracy": totals.accuracy,
            "parts": self.parts,
            "bytes": self.bytes,
            "leftovers": self.leftovers,
        }


def verify(
    output: Output,
    shards: Sequence[ShardRef] | None = None,
    questions_of: QuestionsOf | None = None,
    finished: bool = True,
) -> Verification:
    """Recount an output from its files, part by part.

    Args:
        shards: what the input lists now; without it, missing shards cannot be found.
        questions_of: given, every shard is read again and compared question by question.
        finished: whether `_SUCCESS` must be there; False for the job itself, just before it writes it.

    Raises:
        UserError: the folder is not an output of this program.
        StorageError: unreachable storage.
    """
    record = read_run(output)
    if record is None:
        raise UserError(f"{output.url} has no run.json, so it is no output of a run; check --output")
    result = Verification()
    named = _audit_shards(output, record.get("fingerprint"), _by_id(shards), questions_of, result)
    _find_leftovers(output, named, result, finished)
    success = read_success(output)
    if success is not None:
        _compare_totals(success, record, result)
    elif finished:
        result.findings.append("_SUCCESS is not there: the run has not ended; run the same command again to continue")
    return result


def _audit_shards(
    output: Output,
    fingerprint: str | None,
    expected: Mapping[str, ShardRef] | None,
    questions_of: QuestionsOf | None,
    result: Verification,
) -> set[str]:
    """Go through the ledger; returns the paths of all parts that it names."""
    named: set[str] = set()
    seen: set[str] = set()
    names: Counter[str] = Counter()
    for audit in _audits(output, fingerprint, result):
        report = audit.report
        _add(audit, result)
        named.update(str(part["path"]) for part in report.parts)
        seen.add(shard_id(report.url))
        names[report.shard] += 1
        if expected is not None and (ref := expected.get(shard_id(report.url))):
            result.findings.extend(_compare_with_shard(audit, ref, questions_of))
    for name in [name for name, times in names.items() if times > 1]:
        result.findings.append(f"{name}: {names[name]} shards of this name, so their rows cannot be told apart")
    if expected is not None:
        result.shards_expected = len(expected)
        for url in expected.keys() - seen:
            result.findings.append(f"{expected[url].name}: in the input and not in the ledger ({url})")
    return named


def _audits(output: Output, fingerprint: str | None, result: Verification) -> Iterator[ShardAudit]:
    """The audit of every readable report, in the ledger's order, a few shards read at the same time."""
    workers = REMOTE_WORKERS if output.local_root is None else LOCAL_WORKERS
    paths = [file.path for file in output.list("ledger") if file.path.endswith(".json")]
    under_way: deque[Future[ShardAudit]] = deque()
    with ThreadPoolExecutor(workers, "verify") as pool:
        for path, content in output.read_many(paths):
            try:
                report = decode_report(content)
            except ValueError as error:
                result.findings.append(f"{path}: {error}")
                continue
            under_way.append(pool.submit(audit_shard, output, report, fingerprint))
            if len(under_way) > workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


def _compare_with_shard(audit: ShardAudit, ref: ShardRef, questions_of: QuestionsOf | None) -> Iterable[str]:
    if ref.missing:
        return
    if ref.fingerprint != audit.report.fingerprint:
        yield f"{ref.name}: the shard has changed since it was processed; run the same command again"
    elif questions_of is not None:
        yield from compare_with_input(audit, questions_of(ref))


def _add(audit: ShardAudit, result: Verification) -> None:
    result.findings.extend(audit.findings)
    result.quarantine_reasons.update(audit.reasons)
    result.parts += len(audit.report.parts)
    result.bytes += sum(int(str(part["bytes"])) for part in audit.report.parts)
    recounted = ShardReport(**{**vars(audit.report), **{name: getattr(audit, name) for name in FROM_ROWS}})
    result.totals.add(recounted)


def _find_leftovers(output: Output, named: set[str], result: Verification, finished: bool) -> None:
    for file in output.list():
        if is_part(file.path) and file.path not in named:
            result.leftovers += 1
            if finished:
                result.findings.append(f"{file.path}: no report in the ledger names it, yet readers would take it up")
        elif is_temporary(file.path) or is_staged(file.path):
            result.leftovers += 1


def _compare_totals(success: Mapping[str, Any], record: Mapping[str, Any], result: Verification) -> None:
    if success.get("fingerprint") != record.get("fingerprint"):
        result.findings.append("_SUCCESS and run.json are of different runs")
    for name in ("shards", "samples", "questions", *FROM_ROWS):
        recounted, stated = getattr(result.totals, name), success.get(name)
        if not isinstance(stated, int | float) or not math.isclose(recounted, stated, rel_tol=1e-5, abs_tol=1e-5):
            result.findings.append(f"_SUCCESS says {name} {stated}, the files say {recounted}")


def _by_id(shards: Sequence[ShardRef] | None) -> dict[str, ShardRef] | None:
    return None if shards is None else {shard_id(ref.url): ref for ref in shards}
