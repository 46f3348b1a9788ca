"""Whether a file can be written, asked before the work whose result it shall take."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.errors import UserError


def check_writable(path: Path, option: str) -> None:
    """Leaves what is there as it is, and nothing where nothing is.

    Raises:
        UserError: the file that `option` names cannot be written.
    """
    there = os.path.lexists(path)
    try:
        path.open("ab").close()
        if not there:
            path.unlink()
    except OSError as error:
        raise UserError(f"cannot write {option} {path}: {error.strerror}; choose another place") from None
