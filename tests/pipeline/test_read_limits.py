"""The limits on reading as a run's options: they reach every reader, and changing them continues the same run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs.verify_output import run as verify_output
from pipeline.command_line import parse_command
from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.limits import ReadLimits
from pipeline.run_folder import prepare
from pipeline.storage import open_output
from pipeline.worker_spec import worker_spec
from tests.pipeline.echo_job import run_echo
from tests.pipeline.shard_bytes import JPEG, encoded, noise, tar_bytes

LARGE = encoded(noise(64, 64))


@pytest.fixture
def folder(tmp_path: Path, store_in: Callable[[Path], str]) -> Path:
    store_in(tmp_path)
    (tmp_path / "corpus").mkdir()
    members: list[tuple[str, bytes | dict[str, Any]]] = [("a.png", LARGE), ("a.json", {"questions": ["one", "two"]})]
    members += [("b.jpg", JPEG), ("b.json", {"question": "x" * 500})]
    (tmp_path / "corpus" / "0.tar").write_bytes(tar_bytes(members))
    return tmp_path


def reasons(folder: Path) -> list[str]:
    paths = sorted((folder / "out" / "quarantine").glob("*.parquet"))
    return [row["reason"] for path in paths for row in pq.read_table(path).to_pylist()]


def test_what_is_over_a_limit_is_quarantined_with_the_limit_named(folder: Path) -> None:
    summary = run_echo(folder, "--max-image-bytes", "1KiB", "--max-text-bytes", "100").summary
    assert (summary["answers"], summary["quarantined"], summary["complete"]) == (0, 3, True)
    image = f"a.png has {len(LARGE)} bytes; the limit is 1024"
    assert reasons(folder) == [image, image, "b.json has 516 bytes; the limit is 100"]


def test_other_limits_continue_the_same_run(folder: Path) -> None:
    assert run_echo(folder, "--max-text-bytes", "100").summary["quarantined"] == 1
    (folder / "corpus" / "1.tar").write_bytes(tar_bytes([("c.jpg", JPEG), ("c.json", {"question": "y" * 500})]))
    assert run_echo(folder).summary["answers"] == 3


def test_the_output_is_verified_with_the_limits_of_its_run(folder: Path) -> None:
    run_echo(folder, "--max-text-bytes", "100")
    found = verify_output(str(folder / "out"), [str(folder / "corpus")])
    assert found.findings == []


def test_a_limit_on_samples_counts_with_the_limits_on_reading(folder: Path) -> None:
    huge = tar_bytes([(f"{'n' * 3000}.jpg", JPEG), ("a.jpg", JPEG), ("b.jpg", JPEG)])
    (folder / "corpus" / "0.tar").write_bytes(huge)
    (folder / "corpus" / "1.tar").write_bytes(tar_bytes([("c.jpg", JPEG), ("d.jpg", JPEG)]))
    run_echo(folder, "--limit", "2", "--prompt", "What?", "--max-header-bytes", "2000")
    paths = sorted((folder / "out" / "data").glob("*.parquet"))
    assert [row["key"] for path in paths for row in pq.read_table(path).to_pylist()] == ["c", "d"]


def test_replicas_are_told_the_limits(tmp_path: Path) -> None:
    words = ["--input", "a.tar", "--output", str(tmp_path), "--model", "m", "--max-pixels", "5", "--read-attempts", "9"]
    config: RunConfig = parse_command(words)
    told = worker_spec(config, prepare(open_output(str(tmp_path)), config.as_dict()))
    assert told.arguments["limits"] == ReadLimits(max_pixels=5, attempts=9)


def test_limits_that_a_run_did_not_record_are_the_defaults() -> None:
    assert ReadLimits.from_settings({"model": "m", "max_pixels": 7}) == ReadLimits(max_pixels=7)
    with pytest.raises(UserError, match="max_pixels is 0: give at least 1"):
        ReadLimits.from_settings({"max_pixels": 0})
