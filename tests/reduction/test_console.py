"""Commands whose output nobody reads to its end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from reduction.console import CLOSED, run_command

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("often", [1, 400], ids=["fails when flushed at the end", "fails while it prints"])
def test_a_reader_that_has_gone_ends_a_command_without_a_word(often: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "reduction", "cost", "--model-shape", "llava-1.5-7b"]
    command += ["--reduction", "ficoco-v:64"] * often
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(writing)
    assert (done.returncode, done.stderr) == (CLOSED, "")


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (2, 2)])
def test_what_a_command_returns_is_its_status(returned: int | None, status: int) -> None:
    assert run_command(lambda: returned) == status


def test_another_broken_pipe_is_an_error() -> None:
    def broken() -> int:
        raise BrokenPipeError("a connection")

    with pytest.raises(BrokenPipeError, match="a connection"):
        run_command(broken)
