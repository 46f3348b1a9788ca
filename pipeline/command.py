"""A job as a command: what it says and returns, however it ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, Protocol

from pipeline.errors import UserError
from pipeline.shutdown import Shutdown
from reduction.errors import ReductionError


class Result(Protocol):
    @property
    def exit_code(self) -> int: ...

    @property
    def summary(self) -> dict[str, Any]:
        """The last line on stdout."""


def carry_out(name: str, work: Callable[[Shutdown], Result]) -> int:
    """The exit status of `work`: its own, 2 where it cannot be carried out, 128 + n where signal n stopped it."""
    shutdown = Shutdown()

    def finished() -> int:
        with shutdown.listening():
            result = work(shutdown)
        print(json.dumps(result.summary), flush=True)
        return result.exit_code

    try:
        return exit_status(name, finished)
    except KeyboardInterrupt:
        print(f"{name}: stopped by {shutdown.name}; run the same command again to continue", file=sys.stderr)
        return shutdown.exit_code


def exit_status(name: str, work: Callable[[], int]) -> int:
    """What `work` returns; 2, with the reason on stderr, where it cannot be carried out."""
    try:
        return work()
    except (UserError, ReductionError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
