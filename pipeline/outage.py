"""Remote storage that does not answer: asked again for a stated time, and no longer."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

STORAGE_TIMEOUT = 300.0
"""Seconds without an answer after which a storage is given up, unless a run says otherwise."""
FIRST_ANSWER = 15.0
"""The same for one that has never answered yet: its address may be wrong."""
LAST_TRY = 5.0
"""Seconds that a request may take to a storage that was given up: it may have come back."""
FIRST_WAIT, LONGEST_WAIT = 0.25, 5.0

Result = TypeVar("Result")


class StorageAway(OSError):
    """The storage has not answered for as long as it may take."""


class Outage:
    """The time since when one storage has not answered; shared by the threads that ask it.

    Args:
        timeout: seconds after which it is given up.
    """

    def __init__(self, timeout: float = STORAGE_TIMEOUT) -> None:
        self.timeout = timeout
        self._heard_at: float | None = None
        self._since: float | None = None
        self._lock = threading.Lock()

    @property
    def patience(self) -> float:
        """Seconds that it may last."""
        return min(self.timeout, FIRST_ANSWER) if self._heard_at is None else self.timeout

    @property
    def too_long(self) -> bool:
        """Whether the storage is given up; one that answers again is not."""
        since = self._since
        return since is not None and time.monotonic() - since >= self.patience

    def hurry(self) -> None:
        """Wait for next to nothing from now on: the run is over."""
        self.timeout = min(self.timeout, LAST_TRY)

    def survive(self, request: Callable[[float], Result]) -> Result:
        """The result of `request`, which is made again until the storage answers.

        Args:
            request: given the seconds that it may take.

        Raises:
            StorageAway: no answer for too long.
            Exception: what the storage answered, where that is an error that stays.
        """
        wait, last = FIRST_WAIT, ""
        while True:
            began = time.monotonic()
            try:
                result = request(max(self._left(began), LAST_TRY))
            except Exception as error:
                if not passing(error):
                    self._heard()
                    raise
                last, failure = _first_line(error) or last, error
            else:
                self._heard()
                return result
            left = self._missed(began)
            if left <= 0:
                why = f", at last with: {last}" if last else ""
                raise StorageAway(f"the storage has not answered for {self.patience:g} s{why}") from failure
            time.sleep(min(left, wait * random.uniform(0.5, 1)))
            wait = min(2 * wait, LONGEST_WAIT)

    def _heard(self) -> None:
        with self._lock:
            self._heard_at, self._since = time.monotonic(), None

    def _missed(self, began: float) -> float:
        """Note a request without an answer; returns the seconds left."""
        with self._lock:
            if self._since is None:
                # Another thread may have had an answer since this request was made.
                self._since = max(began, self._heard_at or began)
        return self._left(began)

    def _left(self, now: float) -> float:
        since = now if self._since is None else self._since
        return self.patience - (time.monotonic() - since)


_NO_ANSWER = {
    "ConnectionError",
    "HTTPClientError",
    "ClientConnectionError",
    "ClientPayloadError",
    "ResponseParserError",
}
"""Classes of botocore, aiohttp and of Python, by name: this module knows no storage's library."""
_NOT_IMPLEMENTED = 501


def passing(error: Exception) -> bool:
    """Whether the same request may well succeed later: no answer came, or one that the storage is not well."""
    status = _status(error)
    if status is not None:
        return (status >= 500 and status != _NOT_IMPLEMENTED) or status in (408, 429)
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, TimeoutError) or bool(_NO_ANSWER & kinds)


def _status(error: Exception) -> int | None:
    """The HTTP status that an error of botocore or aiohttp, or one made from it, stands for."""
    for one in (error, error.__cause__):
        response: Any = getattr(one, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            status = getattr(one, "status", None)
        if isinstance(status, int):
            return status
    return None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
