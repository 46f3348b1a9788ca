"""One driver per output: a lock file with a heartbeat, which a dead driver's successor may take over.

On the same machine the operating system says whether the holder lives. From another machine only the heartbeat can
tell: a lock whose heartbeat is older than `ttl` is watched for a while and taken over when it stays still, so neither a
killed driver nor a clock that jumped locks an output for ever. On S3 and on a local disk looking at the lock and
replacing it are one step; on other storage whoever replaces it looks again after a while.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.errors import UserError
from pipeline.storage import Output, StorageError

LOCK_PATH = "driver.lock"
LAST_BEAT = 5.0
"""Seconds that giving the lock back waits for a heartbeat under way."""
LOCAL_SETTLE, REMOTE_SETTLE = 0.2, 2.0
"""Seconds between taking over a dead driver's lock and looking whether another one did the same."""


class DriverLock:
    """Held by the one driver that works on an output; a context manager.

    Args:
        ttl: seconds without a heartbeat after which another machine's driver may take the lock over.
    """

    def __init__(self, output: Output, ttl: float = 60.0) -> None:
        self.output = output
        self.ttl = ttl
        self.lost = threading.Event()
        """Set when another driver has taken the lock: stop, and write nothing more."""
        self._owner = secrets.token_hex(8)
        self._beats = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def hindrance(self) -> str:
        """Why the holder must not go on; empty while it may."""
        return "another run has taken over this output, so this one stopped" if self.lost.is_set() else ""

    def acquire(self) -> Self:
        """Take the lock and keep it alive from a thread.

        Raises:
            UserError: another driver holds it.
            StorageError: the output cannot be written.
        """
        while not self.output.put_new(LOCK_PATH, self._content()):
            found = self._found()
            if found is None:
                continue
            holder = _about(found)
            if holder.get("owner") == self._owner:
                break  # it was written, and the storage's answer to that got lost
            if not self._is_dead(holder):
                raise UserError(self._refusal(holder))
            if self._take_over(found):
                break
        self._thread = threading.Thread(target=self._keep_alive, name="driver-lock", daemon=True)
        self._thread.start()
        return self

    def release(self) -> None:
        """Give the lock back, if it is still this driver's; on storage that fails now it is left to expire."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(LAST_BEAT)
        with suppress(StorageError):
            if self._is_mine(self._found()):
                self.output.delete(LOCK_PATH)

    def __enter__(self) -> Self:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _content(self) -> bytes:
        self._beats += 1
        about = {
            "owner": self._owner,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process": _process_identity(os.getpid()),
            "beat": self._beats,
            "time": time.time(),
            "ttl": self.ttl,
        }
        return (json.dumps(about) + "\n").encode()

    def _found(self) -> bytes | None:
        """The lock file's content; None when it has gone."""
        try:
            return self.output.read(LOCK_PATH)
        except FileNotFoundError:
            return None

    def _is_mine(self, found: bytes | None) -> bool:
        return found is not None and _about(found).get("owner") == self._owner

    def _is_dead(self, holder: dict[str, Any]) -> bool:
        if _same_machine(holder):
            return _process_identity(int(holder["pid"])) != holder["process"]
        age = time.time() - float(holder.get("time") or 0.0)
        if 0 <= age < float(holder.get("ttl") or self.ttl):
            return False
        return self._stays_still(holder)

    def _stays_still(self, holder: dict[str, Any]) -> bool:
        """Whether the holder misses two heartbeats while this driver watches; trusts no clock but its own."""
        deadline = time.monotonic() + float(holder.get("ttl") or self.ttl) * 2 / 3
        while time.monotonic() < deadline:
            time.sleep(min(1.0, self.ttl / 12))
            found = self._found()
            if found is None or _about(found) != holder:
                return False
        return True

    def _take_over(self, dead: bytes) -> bool:
        """Take a dead driver's lock, unless another driver was quicker."""
        if not self.output.put_instead(LOCK_PATH, self._content(), dead):
            return False
        # Storage that cannot do both in one step may have taken two drivers' files: the last one holds.
        time.sleep(REMOTE_SETTLE if self.output.local_root is None else LOCAL_SETTLE)
        return self._is_mine(self._found())

    def _refusal(self, holder: dict[str, Any]) -> str:
        age = max(0, round(time.time() - float(holder.get("time") or 0.0)))
        who = f"process {holder.get('pid')} on {holder.get('host')}, last sign of life {age} s ago"
        return f"another run is writing to {self.output.url} ({who}); wait for it, stop it, or choose another --output"

    def _keep_alive(self) -> None:
        """A heartbeat that fails is tried again at the next; the lock is lost only when someone else has it."""
        while not self._stop.wait(self.ttl / 4):
            try:
                found = self._found()
                if found is None:
                    self.output.put_new(LOCK_PATH, self._content())
                elif self._is_mine(found):
                    self.output.put_instead(LOCK_PATH, self._content(), found)
                else:
                    self.lost.set()
                    return
            except UserError:
                continue


def _about(found: bytes) -> dict[str, Any]:
    """What a lock file says; empty where it cannot be understood."""
    try:
        about = json.loads(found)
    except ValueError:
        return {}
    return about if isinstance(about, dict) else {}


def _same_machine(holder: dict[str, Any]) -> bool:
    """Whether the holder's process number means something here: same boot, same process-number space."""
    mine, theirs = _process_identity(os.getpid()), holder.get("process")
    return bool(mine) and isinstance(theirs, str) and theirs.rpartition(" ")[0] == mine.rpartition(" ")[0]


def _process_identity(pid: int) -> str:
    """Boot, process-number space and start time of a process; empty where there is no such process, or no /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = Path("/proc/self/ns/pid").readlink()
        # The command's name may hold blanks and parentheses, so count fields from its end: start time is the 22nd.
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state[0] in "ZX" else f"{boot} {space} {state[19]}"
