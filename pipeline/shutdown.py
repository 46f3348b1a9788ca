"""SIGTERM and Ctrl-C: ask the run to stop; a second one stops it at once, and more change nothing."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Shutdown:
    """Whether, and by which signal, the run was asked to stop.

    A signal is remembered besides being raised as KeyboardInterrupt: Python drops what is raised where nobody can
    catch it, as in the hooks around a fork, and a run so interrupted would go on to its end.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._patient = self._leaving = False

    def requested(self) -> bool:
        return self.signal is not None

    @property
    def name(self) -> str:
        return (self.signal or signal.SIGINT).name

    @property
    def exit_code(self) -> int:
        """By the shells' convention: 128 and the signal's number."""
        return 128 + (self.signal or signal.SIGINT)

    def catch_up(self) -> None:
        """Raise KeyboardInterrupt where a signal has come whose own was lost."""
        if self.requested():
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._leaving:
            return
        if self.signal is not None:
            self._leaving = True
        else:
            self.signal = signal.Signals(number)
            if self._patient:
                return
        raise KeyboardInterrupt

    @contextmanager
    def listening(self) -> Iterator[None]:
        """The first signal raises KeyboardInterrupt; in the main thread."""
        before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                # A run that was stopped is on its way out: one more signal must not tear that apart.
                signal.signal(number, signal.SIG_IGN if self.requested() else handler)

    @contextmanager
    def asked_only(self) -> Iterator[None]:
        """The first signal is only remembered, for who looks at `requested`; in the main thread."""
        with self.listening():
            self._patient = True
            try:
                yield
            finally:
                self._patient, self._leaving = False, self.requested()
