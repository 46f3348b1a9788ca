"""Fixtures of the pipeline's tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def blank_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tracking store as MLflow makes it: making the tables takes seconds, so it is done once and copied."""
    from pipeline.tracking import _client

    path = tmp_path_factory.mktemp("mlflow") / "blank.db"
    _client(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store_in(blank_store: Path) -> Callable[[Path], str]:
    """Puts an empty tracking store into a folder and returns its URI."""

    def copy(folder: Path) -> str:
        return f"sqlite:///{shutil.copy(blank_store, folder / 'mlflow.db')}"

    return copy
