"""The job on one large shard: it is done in slices, and a killed driver leaves those that are done to the next one."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.records import ShardRef, ShardReport, SliceReport
from pipeline.tasks import END, Slice, Task
from tests.pipeline.echo_job import EchoWorker, run_echo, start_echo
from tests.pipeline.shard_bytes import JPEG, encoded, noise, tar_bytes

SAMPLES, NUMBERED = 31, 32
PICTURE = encoded(noise(120, 120))
"""43 kB, so that a few of them make a shard worth slicing."""


@pytest.fixture
def folder(tmp_path: Path, store_in: Callable[[Path], str]) -> Path:
    """One shard, with a key that comes again and a torn end; half of the questions are none."""
    members: list[tuple[str, bytes | dict[str, Any]]] = []
    for number in range(SAMPLES):
        members += [(f"{number:03d}.png", PICTURE), (f"{number:03d}.json", {"questions": ["a", 5]})]
    data = tar_bytes([*members[:40], ("000.png", JPEG), *members[40:], ("torn.png", JPEG)])
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.tar").write_bytes(data[:-600])
    store_in(tmp_path)
    return tmp_path


def parts(output: Path) -> list[tuple[str, bytes]]:
    return [(path.name, path.read_bytes()) for path in sorted(output.glob("*/*.parquet"))]


def whole(folder: Path) -> list[tuple[str, bytes]]:
    """What one replica writes, which does the shard at once."""
    output = folder / "whole"
    result = run_echo(folder, "--output", str(output), "--replicas", "1")
    assert (result.exit_code, result.summary["answers"], result.summary["quarantined"]) == (0, 31, 33)
    assert not (output / "staged").exists()
    return parts(output)


def staged(folder: Path) -> list[Path]:
    return list((folder / "out" / "staged").glob("a-*.json.zst"))


def slice_of(path: Path) -> Slice:
    first, _, stop = path.name.split(".")[1].partition("-")
    return Slice(int(first), None if stop == "end" else int(stop))


def test_one_shard_on_two_replicas_is_done_in_slices_and_has_the_bytes_of_one_replica(folder: Path) -> None:
    result = run_echo(folder, "--replicas", "2")
    assert (result.exit_code, result.summary["answers"], result.summary["quarantined"]) == (0, 31, 33)
    assert (folder / "out" / "staged").exists()
    assert not staged(folder)
    assert len(parts(folder / "out")) == 2
    assert parts(folder / "out") == whole(folder)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Task | None]:
    """What replicas of this process are asked."""
    tasks, work = list[Task | None](), EchoWorker.work

    def noted(worker: EchoWorker, ref: ShardRef) -> ShardReport | SliceReport:
        tasks.append(ref.task)
        return work(worker, ref)

    monkeypatch.setattr(EchoWorker, "work", noted)
    return tasks


def killed_amid_slices(folder: Path) -> list[Slice]:
    """The slices that a driver had done when it was killed."""
    process = start_echo(folder, 0.4, "--replicas", "2")
    deadline = time.monotonic() + 120
    while len(staged(folder)) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert not list((folder / "out").glob("ledger/*"))
    return [slice_of(path) for path in staged(folder)]


@pytest.mark.parametrize("replicas", ["1", "3"])
def test_what_is_staged_when_the_driver_is_killed_is_not_done_again(
    folder: Path, asked: list[Task | None], replicas: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done = killed_amid_slices(folder)
    assert END in done
    result = run_echo(folder, "--replicas", replicas)
    assert (result.exit_code, result.summary["answers"], result.summary["quarantined"]) == (0, 31, 33)
    assert f"{len(done)} slices of 1 unfinished shards are done" in capsys.readouterr().err
    again = [task for task in asked if isinstance(task, Slice)]
    assert END not in again
    covered = [range(one.first, one.stop) for one in (*done, *again) if one.stop is not None]
    assert sorted(number for numbers in covered for number in numbers) == list(range(NUMBERED))
    assert len(again) == len(asked) - 1
    assert not staged(folder)
    assert parts(folder / "out") == whole(folder)


def test_a_staged_slice_that_is_damaged_is_done_again_by_the_next_start(folder: Path, asked: list[Task | None]) -> None:
    killed_amid_slices(folder)
    victim = next(path for path in staged(folder) if slice_of(path) != END)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    first = run_echo(folder, "--replicas", "2")
    assert first.exit_code == 1
    assert "gone or damaged; run the same command again" in first.summary["failed_shards"]["a.tar"]
    asked.clear()
    second = run_echo(folder, "--replicas", "2")
    assert second.exit_code == 0
    assert {number for one in asked if isinstance(one, Slice) for number in (one.first, one.stop)} >= {
        slice_of(victim).first,
        slice_of(victim).stop,
    }
    assert parts(folder / "out") == whole(folder)


def test_slices_of_a_shard_that_has_changed_since_are_not_used(folder: Path, asked: list[Task | None]) -> None:
    killed_amid_slices(folder)
    shard = folder / "corpus" / "a.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    assert run_echo(folder, "--replicas", "2").exit_code == 0
    assert asked[0] == END
    assert sum(one.stop - one.first for one in asked if isinstance(one, Slice) and one.stop is not None) == NUMBERED
    assert parts(folder / "out") == whole(folder)
    assert not staged(folder)
