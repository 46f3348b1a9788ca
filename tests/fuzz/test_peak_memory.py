"""Small shards that would take gigabytes, read by a process of their own with the default limits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.peak_memory import SHARDS

ROOT = Path(__file__).parents[2]
MOST_MEGABYTES = 256
"""A parsed JSON of 4 MiB, the texts made of it, and buffers."""


QUICK = ("numbers as turns", "answers", "zeros behind the end")
NAMES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.torture) for name in SHARDS]


@pytest.mark.parametrize("name", NAMES)
def test_memory_stays_bounded(name: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.tar"
    path.write_bytes(SHARDS[name]())
    words = [sys.executable, "-m", "tests.fuzz.peak_memory", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    grown = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert int(grown.stdout) < MOST_MEGABYTES
