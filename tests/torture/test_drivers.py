"""Several drivers on one output, and clocks that jump."""

from __future__ import annotations

import random
import time

import pytest

from tests.torture.processes import kill
from tests.torture.scene import Scene


def test_of_drivers_started_together_one_works_and_a_killed_one_is_succeeded(scene: Scene) -> None:
    runs = [scene.start_threads(nap=0.5) for _ in range(3)]
    said = {run: run.says(r"another run is writing to|shards \d+/24").group() for run in runs}
    refused = [run for run in runs if said[run].startswith("another")]
    assert len(refused) == 2
    for run in refused:
        assert "wait for it, stop it, or choose another --output" in run.ends(1)
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
