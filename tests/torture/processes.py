"""Processes of a session that a test started, and of no other."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

PATIENCE = 240.0
"""Seconds that anything may take on a loaded machine before a test gives up."""


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """The condition's first true value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not in {seconds:g} s: {what}"
        time.sleep(0.05)
    return value


def of_session(session: int) -> dict[int, str]:
    """Process -> command line, of those alive in a session."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, _, _, own = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(own) == session and state not in "ZX":
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    return found


def alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def in_session(pid: int, session: int) -> bool:
    with suppress(ProcessLookupError):
        return os.getsid(pid) == session
    return False


def kill(*pids: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def kill_session(session: int) -> None:
    """SIGKILL to all of a session at one moment, and again to what was just being born."""
    deadline = time.monotonic() + 20
    while (left := of_session(session)) and time.monotonic() < deadline:
        kill(*left)
        time.sleep(0.05)


def resident_bytes(pid: int) -> int:
    """Memory of a process that is its own; 0 when it has gone."""
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])
    return 0
