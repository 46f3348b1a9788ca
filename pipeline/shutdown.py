"""SIGTERM and Ctrl-C: ask the run to stop; a second one stops it at once, and more change nothing."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Shutdown:
    """Whether, and by which signal, the run was asked to stop."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._hurried = False

    def requested(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """By the shells' convention: 128 and the signal's number."""
        return 128 + self.signal if self.signal else 0

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number)
        elif not self._hurried:
            self._hurried = True
            raise KeyboardInterrupt

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Install the handlers, in the main thread; enter it after `ray.init`, which installs some of its own."""
        before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                # A run that was stopped is on its way out: one more Ctrl-C must not tear that apart.
                leaving = self.signal is not None and number == signal.SIGINT
                signal.signal(number, signal.SIG_IGN if leaving else handler)
