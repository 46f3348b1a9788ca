"""Shards that end too early, undamaged: the job says so, keeps what is there, and does them again when repaired."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.pipeline.echo_job import run_echo
from tests.pipeline.shard_bytes import numbered, tar_bytes

WHOLE = tar_bytes(numbered(4))


def cut_between_members(corpus: Path) -> str:
    """All of two samples, and not a byte of what follows."""
    ended = tar_bytes(numbered(2))
    body = ended.rstrip(b"\0")
    body += bytes(-len(body) % 512)
    assert WHOLE.startswith(body)
    (corpus / "1.tar").write_bytes(body)
    return "the end-of-archive blocks are missing"


def fewer_than_its_stats_say(corpus: Path) -> str:
    (corpus / "1.tar").write_bytes(tar_bytes(numbered(2)))
    (corpus / "1_stats.json").write_text(json.dumps({"successes": 4}))
    return "the shard holds 2 samples of the 4 that its index names"


def fewer_than_its_index_says(corpus: Path) -> str:
    (corpus / "1.tar").write_bytes(tar_bytes(numbered(2)))
    (corpus / "1.idx").write_text("v1.2 4\njpg 0 1 0000.jpg\n")
    return "the shard holds 2 samples of the 4 that its index names"


@pytest.fixture
def folder(tmp_path: Path, store_in: Callable[[Path], str]) -> Path:
    store_in(tmp_path)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "0.tar").write_bytes(WHOLE)
    return tmp_path


def rows(folder: Path, what: str) -> list[tuple[str, str]]:
    read = [pq.read_table(path).to_pylist() for path in sorted((folder / "out" / what).glob("*.parquet"))]
    return [(row["shard"], row["key"]) for part in read for row in part]


def reports(folder: Path) -> dict[str, str | None]:
    read = [json.loads(path.read_text()) for path in (folder / "out" / "ledger").glob("*.json")]
    return {report["shard"]: report["incomplete"] for report in read}


@pytest.mark.parametrize("shorten", [cut_between_members, fewer_than_its_stats_say, fewer_than_its_index_says])
def test_a_short_shard_is_reported_and_done_again_when_it_is_repaired(
    folder: Path, shorten: Callable[[Path], str], capsys: pytest.CaptureFixture[str]
) -> None:
    reason = shorten(folder / "corpus")
    first = run_echo(folder)
    assert first.exit_code == 0
    assert (first.summary["answers"], first.summary["quarantined"], first.summary["questions"]) == (6, 1, 7)
    assert f"1.tar is not whole: {reason}" in capsys.readouterr().err
    assert rows(folder, "quarantine") == [("1.tar", "0001")]
    told = reports(folder)
    assert told["0.tar"] is None
    assert reason in (told["1.tar"] or "")

    parts = {path: path.stat().st_mtime_ns for path in (folder / "out" / "data").iterdir()}
    assert run_echo(folder).summary["quarantined"] == 1
    assert {path: path.stat().st_mtime_ns for path in (folder / "out" / "data").iterdir()} == parts

    (folder / "corpus" / "1.tar").write_bytes(WHOLE)
    repaired = run_echo(folder)
    assert (repaired.summary["answers"], repaired.summary["quarantined"]) == (8, 0)
    assert rows(folder, "quarantine") == []
    assert rows(folder, "data") == [(shard, f"{n:04d}") for shard in ("0.tar", "1.tar") for n in range(4)]
    assert reports(folder) == {"0.tar": None, "1.tar": None}
    stood = {path: time for path, time in parts.items() if path.name.startswith("0")}
    assert stood
    assert {path: path.stat().st_mtime_ns for path in stood} == stood
