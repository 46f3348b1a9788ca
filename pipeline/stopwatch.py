"""Seconds that the engine spends per stage."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Stopwatch:
    """Seconds spent per stage; stages may lie in one another.

    On a GPU they are taken by events among its work, so that nothing waits for it: a wait at each decoded token would
    leave it idle while the next step is launched.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._seconds: dict[str, float] = {}
        self._pending: deque[tuple[str, Any, Any]] = deque()
        """Stages that the GPU may not have ended yet: name, first and last event."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is done, or launched, in the block; what raises is not counted."""
        if self.device.type == "cuda":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            yield
            last.record()
            self._pending.append((name, first, last))
            while self._pending and self._pending[0][2].query():
                self._settle()
            return
        began = time.perf_counter()
        yield
        self._add(name, time.perf_counter() - began)

    def seconds(self) -> dict[str, float]:
        """Seconds by stage since `clear`, when the GPU has done what was launched in them."""
        while self._pending:
            self._pending[0][2].synchronize()
            self._settle()
        return dict(self._seconds)

    def clear(self) -> None:
        """Begin anew."""
        self._seconds.clear()
        self._pending.clear()

    def _settle(self) -> None:
        name, first, last = self._pending.popleft()
        self._add(name, first.elapsed_time(last) / 1000)

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds
