"""No second driver on one output, and a dead one does not lock it for ever."""

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

from pipeline.driver_lock import LOCK_PATH, DriverLock
from pipeline.errors import UserError
from pipeline.storage import Output, StorageError, open_output

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return open_output(str(tmp_path / "out"))


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


def test_a_heartbeat_does_not_write_over_a_lock_that_was_just_taken(
    output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another driver comes between its look and its write."""
    lock, replace = DriverLock(output, ttl=0.4).acquire(), output.put_instead

    def late(path: str, data: bytes, expected: bytes) -> bool:
        elsewhere(output)
        return replace(path, data, expected)

    monkeypatch.setattr(output, "put_instead", late)
    assert lock.lost.wait(10)
    assert json.loads(output.read(LOCK_PATH))["host"] == "far"
    assert "taken over" in lock.hindrance
    lock.release()


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
