"""Fixtures of the pipeline's tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.commit import commit_shard
from pipeline.ledger import Ledger
from pipeline.run_folder import RunFolder, prepare
from pipeline.storage import open_output
from tests.pipeline.output_rows import CONFIG, answer, rejection, report


@pytest.fixture(scope="session")
def blank_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tracking store as MLflow makes it: making the tables takes seconds, so it is done once and copied."""
    from pipeline.tracking_store import open_store

    path = tmp_path_factory.mktemp("mlflow") / "blank.db"
    open_store(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store_in(blank_store: Path) -> Callable[[Path], str]:
    """Puts an empty tracking store into a folder and returns its URI."""

    def copy(folder: Path) -> str:
        return f"sqlite:///{shutil.copy(blank_store, folder / 'mlflow.db')}"

    return copy


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A finished run of two shards: seven answers, three in quarantine."""
    folder = prepare(open_output(str(tmp_path / "out")), CONFIG)
    for number, (answers, rejections) in enumerate([(4, 2), (3, 1)]):
        name = f"0000{number}.tar"
        rejected = [rejection(90 + n, name) for n in range(rejections)]
        commit_shard(
            folder.output, report(name), [answer(n, name) for n in range(answers)], rejected, folder.provenance
        )
    folder.succeed(Ledger(folder.output).scan().totals)
    return folder
