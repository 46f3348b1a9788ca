"""A command's end where nobody reads its output any more, as in `python -m reduction cost ... | head`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

CLOSED = 128 + 13
"""Exit status of a program that SIGPIPE ended, which is what shells expect of it."""


def run_command(main: Callable[[], int | None]) -> int:
    """What `main` returns; `CLOSED`, without a word, where the reader of stdout has gone.

    Python ignores SIGPIPE, and must where it has sockets too, so writing then raises.

    Raises:
        BrokenPipeError: it was another pipe or connection that broke.
    """
    try:
        status = main() or 0
        sys.stdout.flush()
    except BrokenPipeError:
        if not _stdout_is_closed():
            raise
        # What is still buffered would be tried again, and fail again, when the interpreter ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return CLOSED
    return status


def _stdout_is_closed() -> bool:
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except BrokenPipeError:
        return True
    return False
