"""Begin, continue, refuse, overwrite; and no second driver on one output."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.commit import commit_shard
from pipeline.driver_lock import LOCK_PATH, DriverLock
from pipeline.errors import UserError
from pipeline.ledger import Ledger
from pipeline.run_folder import prepare, read_run, read_success, remove_run
from pipeline.storage import Output, StorageError, open_output
from tests.pipeline.output_rows import CONFIG, answer, rejection, report

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return open_output(str(tmp_path / "out"))


def fill(output: Output) -> None:
    """A run with one finished shard."""
    folder = prepare(output, CONFIG)
    commit_shard(output, report(), [answer(1)], [rejection(2)], folder.provenance)
    folder.succeed(Ledger(output).scan().totals)


def test_a_new_run_writes_its_settings_and_versions(output: Output) -> None:
    folder = prepare(output, CONFIG)
    assert not folder.resumed
    record = read_run(output)
    assert record is not None
    assert record["fingerprint"] == folder.fingerprint
    assert record["config"] == CONFIG
    assert record["versions"]["python"].startswith(f"{sys.version_info.major}.")
    assert {"torch", "pyarrow", "code"} <= record["versions"].keys()
    assert folder.provenance["ficoco.fingerprint"] == folder.fingerprint


def test_the_same_settings_continue_the_run(output: Output) -> None:
    first = prepare(output, CONFIG)
    first.set_mlflow_run("run-1")
    again = prepare(output, {**CONFIG, "batch_size": 8, "replicas": 3})
    assert again.resumed
    assert again.mlflow_run_id == "run-1"
    assert again.fingerprint == first.fingerprint
    assert len(again.record["starts"]) == 2
    assert again.record["created"] == first.record["created"]


def test_other_settings_are_refused_with_the_difference_named(output: Output) -> None:
    fill(output)
    before = {file.path: output.read(file.path) for file in output.list()}
    with pytest.raises(UserError) as refusal:
        prepare(output, {**CONFIG, "reduction": "dense", "max_new_tokens": 8})
    assert "reduction was 'ficoco-v:64', is now 'dense'" in str(refusal.value)
    assert "max_new_tokens was 64, is now 8" in str(refusal.value)
    assert "--overwrite" in str(refusal.value)
    assert {file.path: output.read(file.path) for file in output.list()} == before


def test_overwrite_removes_the_run_and_no_foreign_file(output: Output) -> None:
    fill(output)
    foreign = ["notes.txt", "data/mine.parquet", "ledger/readme.md", "plots/00000-0123abcd.parquet"]
    for path in foreign:
        output.put_atomic(path, b"mine")
    output.put_atomic("metrics.jsonl", b"{}")
    output.put_atomic(LOCK_PATH, b"{}")
    folder = prepare(output, {**CONFIG, "reduction": "dense"}, overwrite=True)
    assert not folder.resumed
    assert {file.path for file in output.list()} == {*foreign, "run.json", LOCK_PATH}
    assert Ledger(output).done() == {}


def test_an_overwrite_cut_short_is_still_known_as_a_run(output: Output) -> None:
    """`_SUCCESS` goes first, run.json last: whatever is left in between says what it is, and is not finished."""
    fill(output)
    removed = remove_run(output)
    assert (removed[0], removed[-1], len(removed)) == ("_SUCCESS", "run.json", 5)


def test_folders_of_unknown_origin_are_refused_even_with_overwrite(output: Output) -> None:
    output.put_atomic("data/theirs.parquet", b"mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"holds data/theirs.parquet but no run.json"):
            prepare(output, CONFIG, overwrite)
    output.put_atomic("run.json", b'{"program": "another"}')
    with pytest.raises(UserError, match="was not written by ficoco-annotate"):
        prepare(output, CONFIG, overwrite=True)


def test_an_unwritable_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="choose another --output"):
        prepare(open_output(str(tmp_path / "file")), CONFIG)


def test_success_holds_the_totals_and_goes_when_work_goes_on(output: Output) -> None:
    fill(output)
    success = read_success(output)
    assert success is not None
    assert (success["shards"], success["questions"], success["answers"], success["quarantined"]) == (1, 2, 1, 1)
    prepare(output, CONFIG).reopen()
    assert read_success(output) is None


def test_planted_credentials_are_nowhere_in_the_output(output: Output) -> None:
    config = {
        **CONFIG,
        "input": ["s3://key:planted@bucket/a.tar", "https://host/b.tar?X-Amz-Signature=planted"],
        "tracking_uri": "http://user:planted@mlflow:5000",
        "api_key": "planted",
        "model": "https://user:planted@host/model",
        "storage": {"aws_secret_access_key": "planted"},
    }
    folder = prepare(output, config)
    commit_shard(output, report(), [answer(1)], [rejection(2)], folder.provenance)
    root = output.local_root
    assert root is not None
    assert [path for path in root.rglob("*") if path.is_file() and b"planted" in path.read_bytes()] == []
    assert prepare(output, config).resumed


HOLD = """
import sys, time
from pipeline.driver_lock import DriverLock
from pipeline.storage import open_output
DriverLock(open_output(sys.argv[1]), ttl=float(sys.argv[2])).acquire()
print("held", flush=True)
time.sleep(600)
"""


class Holder:
    """Another driver, in a process of its own."""

    def __init__(self, folder: Path, ttl: float = 60.0) -> None:
        command = [sys.executable, "-c", HOLD, str(folder), str(ttl)]
        self.process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"held\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def test_a_second_driver_is_refused_until_the_first_has_gone(output: Output) -> None:
    with DriverLock(output), pytest.raises(UserError, match=f"another run is writing to .*process {os.getpid()} on "):
        DriverLock(output).acquire()
    assert not output.exists(LOCK_PATH)
    with DriverLock(output):
        assert output.exists(LOCK_PATH)


def test_a_living_driver_refuses_and_a_killed_one_does_not(tmp_path: Path) -> None:
    holder = Holder(tmp_path)
    try:
        with pytest.raises(UserError, match=f"process {holder.process.pid} on "):
            DriverLock(open_output(str(tmp_path))).acquire()
    finally:
        holder.kill()
    started = time.monotonic()
    with DriverLock(open_output(str(tmp_path))):
        assert time.monotonic() - started < 5


def elsewhere(output: Output, **changes: Any) -> None:
    """Make the lock look as if a driver on another machine held it."""
    about = {"owner": "other", "host": "far", "pid": 1, "process": "other-boot pid:[1] 1", "beat": 1, "ttl": 1.0}
    output.put_atomic(LOCK_PATH, json.dumps({**about, "time": time.time(), **changes}).encode())


@pytest.mark.parametrize("clock", [-3600.0, 3600.0], ids=["heartbeat expired", "clock jumped back"])
def test_a_lock_from_another_machine_is_taken_over_once_it_stays_still(output: Output, clock: float) -> None:
    elsewhere(output, time=time.time() + clock)
    with DriverLock(output, ttl=1.0):
        assert json.loads(output.read(LOCK_PATH))["host"] != "far"


def test_a_lock_from_another_machine_that_beats_is_respected_whatever_its_clock(output: Output) -> None:
    elsewhere(output, time=time.time() - 3600, ttl=4.0)
    beats = iter(range(2, 100))
    read = output.read

    def beating(path: str) -> bytes:
        elsewhere(output, time=time.time() - 3600, ttl=4.0, beat=next(beats))
        return read(path)

    output.read = beating  # type: ignore[method-assign]
    with pytest.raises(UserError, match="on far, last sign of life 3600 s ago"):
        DriverLock(output, ttl=4.0).acquire()


def test_a_fresh_lock_from_another_machine_is_respected_at_once(output: Output) -> None:
    elsewhere(output, ttl=60.0)
    with pytest.raises(UserError, match="on far, last sign of life"):
        DriverLock(output).acquire()


def test_an_unreadable_lock_does_not_lock_for_ever(output: Output) -> None:
    output.put_atomic(LOCK_PATH, b"\xff not json")
    with DriverLock(output, ttl=0.5):
        assert json.loads(output.read(LOCK_PATH))["pid"] == os.getpid()


def test_a_driver_whose_lock_was_taken_over_learns_of_it_and_leaves_it_alone(output: Output) -> None:
    lock = DriverLock(output, ttl=0.4).acquire()
    elsewhere(output)
    assert lock.lost.wait(10)
    lock.release()
    assert json.loads(output.read(LOCK_PATH))["host"] == "far"


def test_a_lock_that_was_written_though_the_storage_said_no_is_held(
    output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A PUT that is repeated because its answer got lost finds its own file there."""
    put = output.put_new
    monkeypatch.setattr(output, "put_new", lambda path, data: put(path, data) and False)
    with DriverLock(output):
        assert json.loads(output.read(LOCK_PATH))["pid"] == os.getpid()
    assert not output.exists(LOCK_PATH)


def test_storage_that_fails_when_the_lock_is_given_back_leaves_it_to_expire(
    output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str) -> bytes:
        raise StorageError("the storage is away")

    lock = DriverLock(output).acquire()
    monkeypatch.setattr(output, "read", fail)
    lock.release()
    assert output.exists(LOCK_PATH)


def test_of_two_drivers_that_found_the_same_dead_lock_the_slower_one_is_refused(
    output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(output, time=time.time() - 3600)
    slow, quick = DriverLock(output, ttl=1.0), DriverLock(output, ttl=1.0)
    judge = slow._is_dead

    def overtaken(holder: dict[str, Any]) -> bool:
        dead = judge(holder)
        if holder["host"] == "far":
            quick.acquire()
        return dead

    monkeypatch.setattr(slow, "_is_dead", overtaken)
    with pytest.raises(UserError, match="another run is writing to"):
        slow.acquire()
    assert json.loads(output.read(LOCK_PATH))["owner"] == quick._owner
    quick.release()


def test_the_heartbeat_beats(output: Output) -> None:
    with DriverLock(output, ttl=0.2):
        first = json.loads(output.read(LOCK_PATH))["beat"]
        deadline = time.monotonic() + 10
        while json.loads(output.read(LOCK_PATH))["beat"] == first and time.monotonic() < deadline:
            time.sleep(0.05)
        assert json.loads(output.read(LOCK_PATH))["beat"] > first


def test_a_stopped_driver_keeps_its_lock_on_the_same_machine(tmp_path: Path) -> None:
    """A process that is suspended longer than the lock lasts is still alive."""
    holder = Holder(tmp_path, ttl=0.2)
    try:
        holder.process.send_signal(signal.SIGSTOP)
        time.sleep(0.5)
        with pytest.raises(UserError, match=re.escape(f"process {holder.process.pid} on ")):
            DriverLock(open_output(str(tmp_path)), ttl=0.2).acquire()
    finally:
        holder.kill()


def test_what_replicas_run_on_is_noted_once_and_over_restarts(output: Output) -> None:
    folder = prepare(output, CONFIG)
    assert folder.remember_replica({"device": "cpu", "dtype": "bfloat16", "pid": 1}) == ["bfloat16"]
    assert folder.remember_replica({"device": "cpu", "dtype": "bfloat16", "pid": 2}) == ["bfloat16"]
    again = prepare(output, CONFIG)
    assert again.remember_replica({"device": "cpu", "dtype": "float32", "pid": 3}) == ["bfloat16", "float32"]
    noted = json.loads(output.read("run.json"))["replicas"]
    assert noted == [{"device": "cpu", "dtype": "bfloat16"}, {"device": "cpu", "dtype": "float32"}]
