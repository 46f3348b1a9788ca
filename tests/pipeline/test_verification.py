"""Every way in which an output can be wrong is found and named; a right one is not."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.commit import commit_shard
from pipeline.parquet import encode_rows
from pipeline.part_names import data_path, file_stem, report_path
from pipeline.records import ANSWER_SCHEMA, Answer, ShardRef
from pipeline.run_folder import RunFolder, prepare
from pipeline.storage import Output, open_output
from pipeline.verification import verify
from tests.pipeline.output_rows import CONFIG, answer, rejection, report

STEM = file_stem("00000.tar", "/corpus/00000.tar")
REFS = [ShardRef(f"0000{n}.tar", f"/corpus/0000{n}.tar", 100, "100-1") for n in range(2)]


def test_a_sound_output_is_confirmed_with_its_counts(folder: RunFolder) -> None:
    result = verify(folder.output, REFS)
    assert result.findings == []
    summary = result.summary()
    assert summary.pop("bytes") == sum(file.size for file in folder.output.list() if file.path.endswith(".parquet"))
    assert summary == {
        "ok": True,
        "findings": 0,
        "shards": 2,
        "shards_expected": 2,
        "incomplete_shards": 0,
        "samples": 8,
        "questions": 10,
        "answers": 7,
        "quarantined": 3,
        "quarantine_reasons": {"image: cannot decode image: # bytes missing": 3},
        "accuracy": pytest.approx(3 / 7),
        "parts": 4,
        "leftovers": 0,
    }


def rewrite_part(output: Output, rows: list[Answer], **metadata: str) -> None:
    """Replace the first shard's data part, and let the ledger's size and checksum follow."""
    run = {"ficoco.fingerprint": json.loads(output.read("run.json"))["fingerprint"], **metadata}
    data = encode_rows(rows, ANSWER_SCHEMA, run)
    output.put_atomic(data_path(STEM), data)
    digest = hashlib.sha256(data).hexdigest()
    edit_report(output, lambda plain: plain["parts"][0].update(bytes=len(data), sha256=digest, rows=len(rows)))


def edit_report(output: Output, edit: Callable[[dict[str, Any]], object]) -> None:
    plain = json.loads(output.read(report_path(STEM)))
    edit(plain)
    output.put_atomic(report_path(STEM), json.dumps(plain).encode())


def edit_success(output: Output, **changes: object) -> None:
    output.put_atomic("_SUCCESS", json.dumps({**json.loads(output.read("_SUCCESS")), **changes}).encode())


def flip_a_byte(output: Output) -> None:
    data = bytearray(output.read(data_path(STEM)))
    data[100] ^= 1
    output.put_atomic(data_path(STEM), bytes(data))


def other_columns(output: Output) -> None:
    table = pq.read_table(io.BytesIO(output.read(data_path(STEM))))
    buffer = io.BytesIO()
    pq.write_table(table.drop(["meta"]), buffer)
    output.put_atomic(data_path(STEM), buffer.getvalue())


ROWS = [answer(n) for n in range(4)]
DAMAGES: dict[str, tuple[Callable[[Output], object], str]] = {
    "part gone": (lambda output: output.delete(data_path(STEM)), "the ledger names it and it is not there"),
    "byte flipped": (flip_a_byte, "not what was committed (checksum)"),
    "part cut": (lambda output: output.put_atomic(data_path(STEM), b"PAR1"), "not readable as Parquet"),
    "columns": (other_columns, "its columns are not the declared ones"),
    "row lost": (lambda output: rewrite_part(output, ROWS[:3]), "3 answers in the files, the ledger says 4"),
    "row twice": (
        lambda output: rewrite_part(output, [*ROWS[:3], ROWS[0]]),
        "1 questions answered more than once, ('00000', 0)",
    ),
    "other shard's row": (
        lambda output: rewrite_part(output, [*ROWS[:3], answer(3, "00009.tar")]),
        "rows of another shard, 00009.tar",
    ),
    "score changed": (
        lambda output: rewrite_part(output, [*ROWS[:3], answer(3, correct=0.5)]),
        "scores add up to 1.500, the ledger says 2.000",
    ),
    "other run's part": (
        lambda output: rewrite_part(output, ROWS, **{"ficoco.fingerprint": "other"}),
        "written by run other, not by",
    ),
    "rows in the ledger": (
        lambda output: edit_report(output, lambda plain: plain["parts"][0].update(rows=9)),
        "4 rows, the ledger says 9",
    ),
    "question lost": (
        lambda output: edit_report(output, lambda plain: plain.update(questions=7)),
        "7 questions, but 4 answers and 2 in quarantine",
    ),
    "report unreadable": (lambda output: output.put_atomic(report_path(STEM), b"{"), f"ledger/{STEM}.json: "),
    "report gone": (
        lambda output: output.delete(report_path(STEM)),
        "00000.tar: in the input and not in the ledger (/corpus/00000.tar)",
    ),
    "stray part": (
        lambda output: output.put_atomic("data/00007-0123abcd.parquet", b"x"),
        "data/00007-0123abcd.parquet: no report in the ledger names it",
    ),
    "not finished": (lambda output: output.delete("_SUCCESS"), "_SUCCESS is not there: the run has not ended"),
    "totals": (lambda output: edit_success(output, answers=8), "_SUCCESS says answers 8, the files say 7"),
    "other run's totals": (lambda output: edit_success(output, fingerprint="x"), "_SUCCESS and run.json are of"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_named(folder: RunFolder, damage: str) -> None:
    spoil, finding = DAMAGES[damage]
    spoil(folder.output)
    result = verify(folder.output, REFS)
    assert not result.ok
    assert any(finding in line for line in result.findings), result.findings


def test_a_question_both_answered_and_in_quarantine_is_found(tmp_path: Path) -> None:
    folder = prepare(open_output(str(tmp_path)), CONFIG)
    both = [rejection(1, question_index=0, question_id="q1")]
    commit_shard(folder.output, report(), [answer(1)], both, folder.provenance)
    (finding,) = verify(folder.output, finished=False).findings
    assert finding == "00000.tar: 1 questions both answered and in quarantine, ('00001', 0)"


def test_a_changed_shard_and_a_shard_name_used_twice_are_found(folder: RunFolder) -> None:
    changed = [replace(REFS[0], fingerprint="200-2"), REFS[1]]
    assert verify(folder.output, changed).findings == [
        "00000.tar: the shard has changed since it was processed; run the same command again"
    ]
    twin = replace(report(), url="/elsewhere/00000.tar")
    commit_shard(folder.output, twin, [answer(1)], [], folder.provenance)
    findings = verify(folder.output).findings
    assert "00000.tar: 2 shards of this name, so their rows cannot be told apart" in findings


def test_leftovers_count_against_a_run_only_once_it_has_ended(folder: RunFolder) -> None:
    folder.output.put_atomic("data/00007-0123abcd.parquet", b"x")
    folder.output.put_atomic("data/.x.parquet.1-0123abcd.tmp", b"x")
    folder.reopen()
    result = verify(folder.output, finished=False)
    assert result.ok
    assert result.leftovers == 2
