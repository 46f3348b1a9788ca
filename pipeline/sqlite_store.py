"""A tracking store that is one SQLite file."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock

SQLITE = "sqlite:///"
ARTIFACT_FOLDER = "mlflow-artifacts"
LOCK_SECONDS = 60.0
"""How long another run may take to make a store's tables."""


def one_at_a_time(uri: str) -> AbstractContextManager[object]:
    """Two runs that make the tables of one new SQLite file at once leave it broken for good; a server looks to that."""
    path = _sqlite_path(uri)
    return FileLock(f"{path}.lock", timeout=LOCK_SECONDS) if path and path.parent.is_dir() else nullcontext()


def artifacts_beside(uri: str) -> str | None:
    """For a SQLite file the folder beside it: MLflow's own choice is the current folder, whatever that is."""
    path = _sqlite_path(uri)
    return (path.parent / ARTIFACT_FOLDER).as_uri() if path else None


def _sqlite_path(uri: str) -> Path | None:
    return Path(urlsplit(uri).path[1:]).absolute() if uri.startswith(SQLITE) else None
