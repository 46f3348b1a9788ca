"""A job that is stopped or killed, and the same command again."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pipeline.echo_job import rows, run_echo, small_corpus, start_echo

SHARDS, SAMPLES = 30, 2


@pytest.fixture
def folder(tmp_path: Path, store_in: Callable[[Path], str]) -> Path:
    small_corpus(tmp_path, SHARDS, SAMPLES)
    store_in(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_the_run_which_says_how_to_go_on(folder: Path, number: signal.Signals, code: int) -> None:
    process = start_echo(folder, 0.3)
    wait_for_report(folder)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert f"stopped by {number.name}" in err
    assert "run the same command again to continue" in err
    assert json.loads(out.splitlines()[-1])["complete"] is False
    finish_and_compare(folder)


def test_a_killed_driver_is_continued_at_once(folder: Path) -> None:
    process = start_echo(folder, 0.3)
    wait_for_report(folder)
    process.kill()
    process.communicate()
    assert (folder / "out" / "driver.lock").exists()
    finish_and_compare(folder)


def wait_for_report(folder: Path) -> None:
    deadline = time.monotonic() + 120
    while not list((folder / "out" / "ledger").glob("*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def finish_and_compare(folder: Path) -> None:
    done = len(list((folder / "out" / "ledger").glob("*.json")))
    assert done < SHARDS
    assert not (folder / "out" / "_SUCCESS").exists()
    result = run_echo(folder)
    assert result.exit_code == 0
    assert result.summary["answers"] == SHARDS * SAMPLES
    identities = [(row["shard"], row["key"], row["question_index"]) for row in rows(folder)]
    assert len(identities) == len(set(identities)) == result.summary["answers"]
