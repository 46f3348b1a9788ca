"""Named points at which a test can kill the process, to prove that nothing is lost there.

``FICOCO_FAULT=name`` kills the process with SIGKILL the first time it passes the point ``name``; ``name:3`` the third
time. ``name@/path/marker`` does it once for a whole run of many processes: the first to create the marker file dies.
Without the variable a point costs one look-up in the environment.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

COMMIT_POINTS = (
    "before-data-part",
    "temporary-written",
    "after-data-part",
    "after-quarantine-part",
    "before-report",
    "after-report",
    "after-stale-parts",
)
"""Every step of a shard's commit, in the order in which it is passed."""

_passed: Counter[str] = Counter()


def fault_point(name: str) -> None:
    """Kill this process here if the environment asks for it; otherwise do nothing."""
    wish = os.environ.get("FICOCO_FAULT")
    if not wish:
        return
    point, _, marker = wish.partition("@")
    point, _, nth = point.partition(":")
    if point != name:
        return
    _passed[name] += 1
    if _passed[name] == int(nth or 1) and _first_to_mark(marker):
        os.kill(os.getpid(), signal.SIGKILL)


def _first_to_mark(marker: str) -> bool:
    if not marker:
        return True
    try:
        Path(marker).open("x").close()
    except FileExistsError:
        return False
    return True
