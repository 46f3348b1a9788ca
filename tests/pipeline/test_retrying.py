"""Asking again what stands in quarantine, through the whole job and, with a real (tiny) model, for one shard."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.division import Division
from pipeline.errors import UserError
from pipeline.generation import GenerationSettings
from pipeline.ledger import Ledger
from pipeline.limits import ReadLimits
from pipeline.records import ShardRef, ShardReport
from pipeline.replica import ReplicaSettings
from pipeline.retrying import retry_shard
from pipeline.shard_work import ShardWorker
from pipeline.sources import SourceError
from pipeline.storage import Output, open_output
from pipeline.tasks import END, LETHAL, Assembly, Retry, Slice
from pipeline.verification import verify
from tests.checkpoint import save_checkpoint
from tests.pipeline.echo_job import EchoWorker, run_echo
from tests.pipeline.shard_bytes import JPEG, encoded, noise, numbered, tar_bytes

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = str(len(JPEG) + 100)
LARGE = encoded(noise(60, 60, 1), "PNG")


@pytest.fixture
def folder(tmp_path: Path, store_in: Callable[[Path], str]) -> Path:
    """Three shards; in two of them, one image is above the limit `SMALL` and one is damaged for ever."""
    store_in(tmp_path)
    (tmp_path / "corpus").mkdir()
    for number in range(3):
        members = numbered(4)
        if number:
            members += [("large.png", LARGE), ("large.json", {"questions": ["One?", 5, "Three?"]}), ("none.json", {})]
        (tmp_path / "corpus" / f"{number}.tar").write_bytes(tar_bytes(members))
    return tmp_path


def rows(folder: Path, kind: str = "data") -> list[dict[str, Any]]:
    return [row for path in sorted((folder / "out" / kind).iterdir()) for row in pq.read_table(path).to_pylist()]


def states(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in (folder / "out").rglob("*.parquet")}


def test_answers_are_added_and_what_stands_is_left_alone(folder: Path) -> None:
    first = run_echo(folder, "--max-image-bytes", SMALL)
    assert (first.exit_code, first.summary["answers"], first.summary["quarantined"]) == (0, 12, 8)
    standing = states(folder)
    result = run_echo(folder, "--retry-quarantined")
    assert result.exit_code == 0
    assert (result.summary["answers"], result.summary["quarantined"], result.summary["recovered"]) == (16, 4, 4)
    kept = {path: time for path, time in standing.items() if "/data/" in path}
    assert len(kept) == 3
    assert kept.items() <= states(folder).items()
    identities = [(row["shard"], row["key"], row["question_index"]) for row in rows(folder)]
    assert len(set(identities)) == len(identities) == 16
    assert sorted({(row["key"], row["question_index"]) for row in rows(folder, "quarantine")}) == [
        ("large", 1),
        ("none", None),
    ]
    assert verify(open_output(f"{folder}/out")).findings == []
    assert json.loads((folder / "out" / "_SUCCESS").read_text())["answers"] == 16


def test_where_nothing_has_changed_nothing_is_written(folder: Path) -> None:
    run_echo(folder)
    before = states(folder)
    result = run_echo(folder, "--retry-quarantined")
    assert (result.exit_code, result.summary["recovered"], result.summary["quarantined"]) == (0, 0, 4)
    assert states(folder) == before
    assert (folder / "out" / "_SUCCESS").exists()


def test_a_retry_and_an_overwrite_exclude_each_other(folder: Path) -> None:
    with pytest.raises(UserError, match="give one of them"):
        run_echo(folder, "--retry-quarantined", "--overwrite")


@pytest.mark.parametrize("point", ["after-data-part", "before-report", "after-report"])
def test_a_retry_killed_on_its_way_is_repeated(folder: Path, point: str) -> None:
    run_echo(folder, "--max-image-bytes", SMALL)
    words = [sys.executable, "-m", "tests.pipeline.echo_job", "0", "--input", f"{folder}/corpus", "--model", "echo"]
    words += ["--output", f"{folder}/out", "--tracking-uri", f"sqlite:///{folder}/mlflow.db", "--retry-quarantined"]
    died = subprocess.run(words, cwd=ROOT, env={**os.environ, "FICOCO_FAULT": point}, capture_output=True, check=False)
    assert died.returncode == -9, died.stderr
    assert not (folder / "out" / "_SUCCESS").exists()
    result = run_echo(folder, "--retry-quarantined")
    assert (result.exit_code, result.summary["answers"], result.summary["quarantined"]) == (0, 16, 4)
    assert verify(open_output(f"{folder}/out")).findings == []
    assert len(rows(folder)) == 16


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def test_the_real_worker_asks_only_what_has_no_answer(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    members: list[tuple[str, bytes | dict[str, Any]]] = [
        ("a.jpg", encoded(noise(40, 30, 1), "JPEG")),
        ("a.json", {"questions": ["One?", "Two?"]}),
        ("b.png", encoded(noise(90, 90, 2), "PNG")),
        ("b.json", {"questions": ["Three?", 4, "Five?"]}),
    ]
    path.write_bytes(tar_bytes(members))
    ref = ShardRef("a.tar", str(path), fingerprint="v1")
    replica = ReplicaSettings(str(checkpoint), generation=GenerationSettings(max_new_tokens=3))

    def worker(folder: str, **limits: int) -> ShardWorker:
        return ShardWorker(replica, str(tmp_path / folder), {"ficoco.test": "1"}, limits=ReadLimits(**limits))

    worker("out", max_pixels=2000).work(ref)
    retried = worker("out").work(replace(ref, task=Retry()))
    whole = worker("whole").work(ref)
    assert isinstance(retried, ShardReport)
    assert isinstance(whole, ShardReport)
    assert (retried.answers, retried.quarantined, retried.questions) == (4, 1, 5)
    assert retried.flops["vision"] == whole.flops["vision"]
    assert texts(tmp_path / "out") == texts(tmp_path / "whole")


def texts(output: Path) -> list[tuple[str, int, str]]:
    """In another batch the last bits of a float may differ, so no more than the text is compared."""
    found = [row for path in sorted((output / "data").iterdir()) for row in pq.read_table(path).to_pylist()]
    return [(row["key"], row["question_index"], row["answer"]) for row in found]


def test_a_retry_in_slices_gives_what_one_at_once_gives(tmp_path: Path) -> None:
    """Also where a key comes again, the shard ends in damage, and rows are spared."""
    path = tmp_path / "a.tar"
    members = [*numbered(9), ("large.png", LARGE), ("large.json", {"questions": ["One?", 5, "Three?"]})]
    path.write_bytes(tar_bytes([*members, *numbered(2), ("torn.png", LARGE)])[:-9000])
    ref = ShardRef("a.tar", str(path), fingerprint="v1")
    results = []
    for name in ("whole", "sliced"):
        output = open_output(str(tmp_path / name))
        worker = EchoWorker(str(tmp_path / name), {}, None, "none", ReadLimits(max_image_bytes=int(SMALL)), 0.0, "")
        first = worker.work(replace(ref, task=None))
        assert isinstance(first, ShardReport)
        add_lethal_reason(output, first, "large", 0)
        worker.limits = ReadLimits()
        if name == "whole":
            done = worker.work(replace(ref, task=Retry(spare_lethal=True)))
        else:
            done = in_slices(worker, replace(ref, again=Retry(spare_lethal=True)), 4)
        assert isinstance(done, ShardReport)
        written = {str(one.relative_to(tmp_path / name)): one.read_bytes() for one in output_parts(tmp_path / name)}
        results.append((written, replace(done, wall_seconds=0.0, seconds={}, flops={})))
    assert results[0][1].answers == 10
    for whole, sliced in zip(output_parts(tmp_path / "whole"), output_parts(tmp_path / "sliced"), strict=True):
        assert pq.read_table(sliced).to_pylist() == pq.read_table(whole).to_pylist()
    assert results[0] == results[1]
    assert not list((tmp_path / "sliced" / "staged").iterdir())


def test_what_a_condemned_slice_of_a_retry_leaves_in_quarantine_are_its_unanswered_questions(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes([*numbered(2), ("large.png", LARGE), ("large.json", {"questions": ["One?", "Two?"]})]))
    ref = ShardRef("a.tar", str(path), fingerprint="v1")
    limits = ReadLimits(max_image_bytes=int(SMALL))
    worker = EchoWorker(str(tmp_path / "out"), {}, None, "none", limits, 0.0, "")
    worker.work(ref)
    worker.limits = ReadLimits()
    slices = (Slice(0, 2), Slice(2, 3, f"{LETHAL}: killed"), END)
    for part in slices:
        worker.work(replace(ref, task=part, again=Retry(spare_lethal=True)))
    done = worker.work(replace(ref, task=Assembly(slices), again=Retry(spare_lethal=True)))
    assert isinstance(done, ShardReport)
    assert (done.answers, done.quarantined) == (2, 2)
    [left] = (tmp_path / "out" / "quarantine").iterdir()
    assert {row["reason"] for row in pq.read_table(left).to_pylist()} == {f"{LETHAL}: killed"}


def output_parts(output: Path) -> list[Path]:
    return sorted(output.rglob("*.parquet"))


def in_slices(worker: EchoWorker, ref: ShardRef, parts: int) -> ShardReport:
    """As the driver has it done."""
    division = Division(ref, parts)
    tasks = division.first()
    while True:
        task = tasks.pop()
        report = worker.work(replace(ref, task=task))
        if isinstance(report, ShardReport):
            return report
        assert isinstance(task, Slice)
        tasks += division.finished(task, report)


def add_lethal_reason(output: Output, report: ShardReport, key: str, question: int) -> None:
    """As if a question had killed its replica."""
    [part] = [one for one in report.parts if str(one["path"]).startswith("quarantine/")]
    path = (output.local_root or Path()) / str(part["path"])
    table = pq.read_table(path)
    rows = table.to_pylist()
    for row in rows:
        if (row["key"], row["question_index"]) == (key, question):
            row |= {"stage": "model", "reason": f"{LETHAL}: killed"}
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    part["bytes"] = path.stat().st_size
    Ledger(output).commit(report)


def test_lethal_rows_are_spared_and_a_shard_that_gives_less_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes(numbered(3)))
    ref = ShardRef("a.tar", str(path), fingerprint="v1")
    worker = EchoWorker(str(tmp_path / "out"), {}, None, "none", ReadLimits(max_image_bytes=1), 0.0, "")
    report = worker.work(ref)
    assert isinstance(report, ShardReport)
    assert report.quarantined == 3
    output = open_output(str(tmp_path / "out"))
    part = next((tmp_path / "out" / "quarantine").iterdir())
    table = pq.read_table(part)
    reasons = [f"{LETHAL}: SIGKILL", "odd", f"{LETHAL}: hang"]
    table = table.set_column(5, table.schema.field(5), [["model"] * 3]).set_column(6, table.schema.field(6), [reasons])
    pq.write_table(table, part)
    report.parts[0]["bytes"] = part.stat().st_size
    Ledger(output).commit(report)

    worker.limits = ReadLimits()
    path.write_bytes(tar_bytes(numbered(2)))
    with pytest.raises(SourceError, match="gives less now"):
        worker.work(replace(ref, task=Retry()))
    assert Ledger(output).report("a.tar", str(path)) == report
    path.write_bytes(tar_bytes(numbered(3)))
    spared = worker.work(replace(ref, task=Retry(spare_lethal=True)))
    assert isinstance(spared, ShardReport)
    assert (spared.answers, spared.quarantined) == (1, 2)
    path.write_bytes(tar_bytes([*numbered(1), *numbered(3)[4:]]))
    with pytest.raises(SourceError, match="gives less now"):
        worker.work(replace(ref, task=Retry()))
    path.write_bytes(tar_bytes(numbered(3)))
    again = retry_shard(output, ref, Retry(), {}, lambda select: worker._annotate(ref, select)[:3])
    assert (again.answers, again.quarantined) == (3, 0)
