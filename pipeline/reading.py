"""An iterator that a thread of its own runs, a little ahead of whoever takes from it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Reading(Generic[Item]):
    """Begins at once; one item at most waits while the next is made. Iterating raises what making them raised."""

    def __init__(self, items: Iterator[Item]) -> None:
        self._items = items
        self._ready: queue.Queue[Item | _End] = queue.Queue(maxsize=1)
        self._abandoned = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="read-ahead")
        self._thread.start()

    def __iter__(self) -> Iterator[Item]:
        while True:
            item = self._ready.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item

    def close(self) -> None:
        """Give up what has not been taken, and wait for the thread."""
        self._abandoned.set()
        while self._thread.is_alive():
            # A thread that waits for room in the queue must see that nobody comes any more.
            while not self._ready.empty():
                self._ready.get_nowait()
            self._thread.join(0.05)

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            for item in self._items:
                self._ready.put(item)
                if self._abandoned.is_set():
                    return
        except BaseException as raised:  # handed to the thread that iterates
            error = raised
        self._ready.put(_End(error))


class _End:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error
