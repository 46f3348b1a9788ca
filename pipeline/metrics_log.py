"""`metrics.jsonl` in the output: one line per moment, there whether or not a tracking server is."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import Any, BinaryIO

from pipeline.run_folder import METRICS_PATH
from pipeline.storage import Output

REMOTE_SECONDS = 60.0
"""A remote file is written whole each time, so seldom."""


class MetricsLog:
    """Appends lines with increasing `step`; a continued run goes on where its log ends."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self.lines = _read(output)
        """All lines so far, those of earlier starts included."""
        self._written = time.monotonic()

    @property
    def next_step(self) -> int:
        return self.lines[-1]["step"] + 1 if self.lines else 0

    def append(self, metrics: Mapping[str, float]) -> dict[str, Any]:
        """Add a line and return it.

        Raises:
            StorageError: the output cannot be written.
        """
        line = {"step": self.next_step, "time": round(time.time(), 3), **metrics}
        self.lines.append(line)
        root = self._output.local_root
        if root is not None:
            with (root / METRICS_PATH).open("ab+") as file:
                file.write(_end_of_torn_line(file) + json.dumps(line).encode() + b"\n")
        elif time.monotonic() - self._written > REMOTE_SECONDS:
            self.flush()
        return line

    def flush(self) -> None:
        """Make sure that all lines are in the output."""
        self._written = time.monotonic()
        root = self._output.local_root
        if root is None:
            self._output.put_atomic(METRICS_PATH, "".join(json.dumps(line) + "\n" for line in self.lines).encode())
        elif (root / METRICS_PATH).exists():
            with (root / METRICS_PATH).open("rb") as file:
                os.fsync(file.fileno())


def _end_of_torn_line(file: BinaryIO) -> bytes:
    """What a killed process or a full disk cut off must not swallow the line after it."""
    if file.seek(0, os.SEEK_END) == 0:
        return b""
    file.seek(-1, os.SEEK_END)
    return b"" if file.read(1) == b"\n" else b"\n"


def _read(output: Output) -> list[dict[str, Any]]:
    """The lines of an earlier start; a last one that was cut off is left out."""
    try:
        content = output.read(METRICS_PATH)
    except FileNotFoundError:
        return []
    lines = []
    for text in content.splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines
