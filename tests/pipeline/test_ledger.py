"""What counts as done, what is done again, and a commit killed at every step."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.commit import amend_shard, commit_shard, sweep
from pipeline.faults import COMMIT_POINTS
from pipeline.ledger import Ledger, decode_report, encode_report
from pipeline.part_names import file_stem, is_own, report_path
from pipeline.records import ShardRef, ShardReport
from pipeline.storage import Output, StorageError, open_output
from tests.pipeline.output_rows import PROVENANCE, answer, rejection, report

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return open_output(str(tmp_path))


def ref(shard: str = "00000.tar", fingerprint: str = "100-1", missing: bool = False) -> ShardRef:
    return ShardRef(shard, f"/corpus/{shard}", 100, fingerprint, missing)


def commit(output: Output, answers: int = 3, rejections: int = 1, shard: str = "00000.tar", **changes: Any) -> None:
    rows = [answer(n, shard) for n in range(answers)]
    rejected = [rejection(900 + n, shard) for n in range(rejections)]
    commit_shard(output, report(shard, **changes), rows, rejected, PROVENANCE)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def timeless(files: dict[str, bytes]) -> list[ShardReport]:
    """The reports among `files`, without what the clock said."""
    reports = [decode_report(content) for path, content in sorted(files.items()) if path.startswith("ledger/")]
    return [replace(one, seconds={}, wall_seconds=0.0) for one in reports]


def test_a_committed_shard_is_done_with_the_counts_of_its_rows(output: Output) -> None:
    commit(output, answers=5, rejections=2)
    commit(output, answers=0, rejections=1, shard="00001.tar")
    scan = Ledger(output).scan()
    assert list(scan.entries) == ["/corpus/00000.tar", "/corpus/00001.tar"]
    totals = scan.totals
    assert (totals.shards, totals.samples, totals.questions, totals.answers, totals.quarantined) == (2, 8, 8, 5, 3)
    assert totals.wall_seconds == totals.seconds["write"] > 0
    assert (totals.scored, totals.correct, totals.generated_tokens, totals.prompt_tokens) == (5, 2.0, 15, 60)
    assert totals.accuracy == pytest.approx(0.4)
    assert totals.accuracy_by_kind == {"colour": pytest.approx(0.4)}
    assert totals.reconciled
    assert scan.known_names == {"/corpus/00000.tar": "00000.tar", "/corpus/00001.tar": "00001.tar"}
    stem = file_stem("00001.tar", "/corpus/00001.tar")
    assert [file.path for file in output.list() if stem in file.path] == [
        f"ledger/{stem}.json",
        f"quarantine/{stem}.parquet",
    ]


def test_a_report_survives_json() -> None:
    before = report(scores_by_kind={"colour": (3, 2.0)}, incomplete="cut short", parts=[])
    assert decode_report(encode_report(before)) == before


def test_credentials_in_a_shard_address_are_not_stored(output: Output) -> None:
    url = "https://user:planted@host/00000.tar?X-Amz-Signature=planted"
    commit_shard(output, replace(report(), url=url), [answer(1)], [], PROVENANCE)
    assert not [path for path, data in contents(output.local_root or Path()).items() if b"planted" in data]
    again = replace(ref(), url="https://user:planted@host/00000.tar?X-Amz-Signature=later")
    assert Ledger(output).scan().pending([again]) == []


@pytest.mark.parametrize(
    ("now", "is_pending"),
    [
        pytest.param(ref(), False, id="unchanged"),
        pytest.param(ref(fingerprint="200-2"), True, id="repaired"),
        pytest.param(ref(fingerprint="", missing=True), False, id="gone after it was answered"),
        pytest.param(ref("00001.tar"), True, id="new"),
    ],
)
def test_which_shards_are_pending(output: Output, now: ShardRef, is_pending: bool) -> None:
    commit(output)
    assert bool(Ledger(output).scan().pending([now, now])) == is_pending
    assert len(Ledger(output).scan().pending([now, now])) == int(is_pending)


def test_a_missing_shard_is_pending_once_it_is_there(output: Output) -> None:
    commit(output, answers=0, fingerprint="", incomplete="missing")
    assert Ledger(output).scan().pending([ref(fingerprint="", missing=True)]) == []
    assert Ledger(output).scan().pending([ref()]) == [ref()]


@pytest.mark.parametrize("damage", ["gone", "short", "empty report", "no report", "foreign report"])
def test_a_shard_whose_files_are_damaged_is_not_done(output: Output, damage: str) -> None:
    commit(output)
    stem = file_stem("00000.tar", "/corpus/00000.tar")
    if damage == "gone":
        output.delete(f"data/{stem}.parquet")
    elif damage == "short":
        output.put_atomic(f"data/{stem}.parquet", output.read(f"data/{stem}.parquet")[:-1])
    elif damage == "foreign report":
        output.put_atomic(report_path(stem), encode_report(report("00007.tar")))
    else:
        output.put_atomic(report_path(stem), b"" if damage == "empty report" else b'{"shard": 1, "scores_by_kind": 3}')
    scan = Ledger(output).scan()
    assert scan.entries == {}
    assert len(scan.damaged) == 1
    commit(output)
    assert len(Ledger(output).done()) == 1


def test_a_repaired_shard_replaces_all_its_old_files(output: Output) -> None:
    commit(output, answers=2, rejections=2, incomplete="cut short")
    commit(output, answers=4, rejections=0, fingerprint="200-2")
    scan = Ledger(output).scan()
    assert scan.totals.answers == scan.totals.questions == 4
    assert [file.path.split("/")[0] for file in output.list()] == ["data", "ledger"]


@pytest.mark.parametrize("rejections", [0, 2])
@pytest.mark.parametrize("point", COMMIT_POINTS)
def test_a_commit_killed_at_any_step_is_completed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, rejections: int
) -> None:
    """The second commit replaces a shard that was cut short by its repaired state."""
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    for folder in (undisturbed, killed):
        commit(open_output(str(folder)), answers=1, rejections=1, incomplete="cut short")
    commit(open_output(str(undisturbed)), answers=3, rejections=rejections, fingerprint="200-2")
    monkeypatch.setenv("FICOCO_FAULT", point)
    repaired: dict[str, Any] = {"answers": 3, "rejections": rejections, "fingerprint": "200-2"}
    child = get_context("fork").Process(target=commit, args=(open_output(str(killed)),), kwargs=repaired)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    monkeypatch.delenv("FICOCO_FAULT")
    output = open_output(str(killed))
    state = Ledger(output).scan()
    assert state.damaged == []
    assert len(state.pending([ref(fingerprint="200-2")])) == (
        0 if point in ("after-report", "after-stale-parts") else 1
    )
    if state.pending([ref(fingerprint="200-2")]):
        commit(output, **repaired)
    sweep(output, Ledger(output).done().values())
    after, expected = contents(killed), contents(undisturbed)
    assert after.keys() == expected.keys()
    assert [path for path in after if path.endswith(".parquet") and after[path] != expected[path]] == []
    assert timeless(after) == timeless(expected)


def test_a_fault_point_counts_and_dies_once_for_all_processes(tmp_path: Path) -> None:
    program = (
        "from pipeline.faults import fault_point\nfor _ in range(3): fault_point('here'); print('passed', flush=True)"
    )

    def run(fault: str) -> tuple[int, int]:
        environment = {**os.environ, "FICOCO_FAULT": fault}
        ended = subprocess.run(
            [sys.executable, "-c", program], cwd=REPOSITORY, env=environment, capture_output=True, check=False
        )
        return ended.returncode, ended.stdout.count(b"passed")

    assert run("here:2") == (-signal.SIGKILL, 1)
    assert run("elsewhere") == (0, 3)
    assert run(f"here@{tmp_path}/marker") == (-signal.SIGKILL, 0)
    assert run(f"here@{tmp_path}/marker") == (0, 3)


def test_amending_adds_answers_without_touching_those_that_stand(output: Output) -> None:
    commit(output, answers=3, rejections=3)
    before = contents(output.local_root or Path())
    stands = Ledger(output).report("00000.tar", "/corpus/00000.tar")
    assert stands is not None
    once = amend_shard(output, stands, [answer(900), answer(901)], [rejection(902)], PROVENANCE)
    twice = amend_shard(output, once, [answer(902)], [], PROVENANCE)
    after = contents(output.local_root or Path())
    data = [path for path in before if path.startswith("data/")]
    assert {path: after[path] for path in data} == {path: before[path] for path in data}
    assert not any(path.startswith("quarantine/") for path in after)
    assert (twice.answers, twice.quarantined, twice.questions, twice.generated_tokens) == (6, 0, 6, 18)
    assert Ledger(output).scan().totals.answers == 6
    parts = [path for path in after if path.startswith("data/")]
    keys = [key for part in parts for key in pq.read_table(io.BytesIO(after[part]))["key"].to_pylist()]
    assert sorted(keys) == ["00000", "00001", "00002", "00900", "00901", "00902"]


def test_sweeping_removes_leftovers_and_nothing_else(output: Output) -> None:
    commit(output)
    kept = set(contents(output.local_root or Path()))
    leftovers = ["data/00009-0123abcd.parquet", "ledger/.x-0123abcd.json.77-0123abcd.tmp"]
    foreign = ["data/mine.parquet", "notes.txt", ".hidden.tmp", "data/sub/00009-0123abcd.parquet"]
    for path in (*leftovers, *foreign):
        output.put_atomic(path, b"x")
    assert sweep(output, Ledger(output).done().values()) == sorted(leftovers)
    assert set(contents(output.local_root or Path())) == kept | set(foreign)


def test_file_names_are_safe_distinct_and_recognised() -> None:
    names = ["a/b.tar", "a_b.tar", "../../etc/passwd", "Ünï 😀.tar.gz", "x" * 400, "", "\udc80.tar"]
    stems = [file_stem(name, f"/corpus/{name}") for name in names]
    assert len(set(stems)) == len(stems)
    assert all(len(stem) <= 110 and "/" not in stem and not stem.startswith(".") for stem in stems)
    assert all(is_own(f"data/{stem}.parquet") and is_own(f"ledger/{stem}.json") for stem in stems)
    assert file_stem("00000.tar", "/corpus/00000.tar").startswith("00000-")


def test_reading_a_large_ledger_is_quick(output: Output) -> None:
    """100,000 reports may take 30 s on two cores; a twentieth of them a twentieth, counted in processor time."""
    folder = (output.local_root or Path()) / "ledger"
    folder.mkdir(parents=True)
    for number in range(5_000):
        name = f"{number:05d}.tar"
        content = encode_report(report(name, scores_by_kind={"colour": (1, 1.0)}))
        (folder / f"{file_stem(name, f'/corpus/{name}')}.json").write_bytes(content)
    start = time.process_time()
    assert len(Ledger(output).done()) == 5_000
    assert time.process_time() - start < 1.5


def test_a_report_that_cannot_be_read_now_is_not_taken_for_none(output: Output, tmp_path: Path) -> None:
    commit(output)
    path = tmp_path / report_path(file_stem("00000.tar", "/corpus/00000.tar"))
    path.unlink()
    path.mkdir()
    with pytest.raises(StorageError, match="cannot read ledger/"):
        Ledger(output).report("00000.tar", "/corpus/00000.tar")
