"""Fixtures of the fault tests; what is chosen at random follows `TORTURE_SEED`."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.pipeline.conftest import blank_store, store_in
from tests.torture.scene import Scene

__all__ = ["blank_store", "store_in"]

SEED = int(os.environ.get("TORTURE_SEED") or 0)


def pytest_report_header(config: pytest.Config) -> str:
    return f"fault tests: seed {SEED}"


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Differs from test to test, and is repeated by the same seed."""
    return random.Random(f"{SEED} {request.node.nodeid}")


def _ray_home() -> Iterator[Path]:
    """A folder for Ray of a short path, as it holds sockets."""
    with tempfile.TemporaryDirectory(prefix="rt-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


ray_home = pytest.fixture(_ray_home)
shared_ray_home = pytest.fixture(scope="module")(_ray_home)


@pytest.fixture
def scene(tmp_path: Path, ray_home: Path, store_in: Callable[[Path], str]) -> Iterator[Scene]:
    made = Scene(tmp_path, store_in(tmp_path), ray_home)
    yield made
    made.close()
