"""Several drivers on one output, and clocks that jump."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
import time
from pathlib import Path

import pytest

from tests.torture.processes import kill
from tests.torture.scene import Scene


def test_of_drivers_started_together_one_works_and_a_killed_one_is_succeeded(scene: Scene) -> None:
    runs = [scene.start_threads(nap=0.5) for _ in range(3)]
    said = {run: run.says(r"another run is writing to|shards \d+/24").group() for run in runs}
    refused = [run for run in runs if said[run].startswith("another")]
    assert len(refused) == 2
    for run in refused:
        assert "wait for it, stop it, or choose another --output" in run.ends(2)
    [working] = set(runs) - set(refused)
    kill(working.session)
    working.process.wait()
    scene.start_threads(nap=0.0).ends(0)
    scene.check()


def test_clocks_that_jump_change_nothing(scene: Scene, chance: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.quiet()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + chance.uniform(-86_400, 86_400))
    scene.run_here(None, "--lease-timeout", "20", "--start-timeout", "20")
    scene.check()


@pytest.fixture
def moved_clock(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A file for the seconds by which the time of day is moved, and the environment of processes that heed it."""
    library, offset = tmp_path / "clock.so", tmp_path / "offset"
    source = Path(__file__).with_name("clock.c")
    subprocess.run(["gcc", "-O2", "-Wall", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    offset.write_bytes(struct.pack("q", 0))
    environment = {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(offset)}
    now = subprocess.run(["date", "+%s"], env=environment, capture_output=True, check=True)
    offset.write_bytes(struct.pack("q", 86_400))
    later = subprocess.run(["date", "+%s"], env=environment, capture_output=True, check=True)
    assert 86_400 <= int(later.stdout) - int(now.stdout) < 86_460
    return offset, environment


@pytest.mark.torture
@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no C compiler")
def test_jumps_of_the_clock_of_all_processes_change_nothing(
    scene: Scene, chance: random.Random, moved_clock: tuple[Path, dict[str, str]]
) -> None:
    """The time of day of driver, Ray and replicas jumps while they work; other drivers are refused all the same."""
    offset, environment = moved_clock
    run = scene.start("--lease-timeout", "30", "--start-timeout", "120", nap=1.5, **environment)
    scene.reported(1)
    for reports in (2, 5, 9):
        with offset.open("r+b") as file:
            file.write(struct.pack("q", chance.randint(-400_000, 400_000)))
        scene.reported(reports, run)
        assert "another run is writing to" in scene.start_threads().ends(2)
    said = run.ends(0)
    assert "is replaced" not in said
    scene.check()
