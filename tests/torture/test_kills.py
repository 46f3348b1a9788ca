"""SIGKILL to whatever takes part in a run, at random moments, through a real Ray."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from tests.torture.processes import kill, kill_session, until
from tests.torture.scene import Scene

pytestmark = pytest.mark.torture


def test_replicas_killed_at_random_moments_cost_nothing(scene: Scene, chance: random.Random) -> None:
    run = scene.start(nap=0.5)
    for _ in range(5):
        pid = until(lambda: list(scene.workers()), "a replica at work")[0]
        time.sleep(chance.uniform(0, 0.6))
        kill(pid)
        until(lambda dead=pid: dead not in scene.workers(), "its death")  # type: ignore[misc]
    said = run.ends(0)
    assert said.count("is replaced") >= 3
    scene.check()


@pytest.mark.parametrize("victim", ["driver", "everything"])
def test_a_run_that_is_killed_is_ended_by_the_same_command(scene: Scene, chance: random.Random, victim: str) -> None:
    for _ in range(2):
        run = scene.start(nap=0.5)
        scene.reported(scene.reports() + chance.randint(1, 4))
        time.sleep(chance.uniform(0, 0.6))
        kill(run.session) if victim == "driver" else kill_session(run.session)
        run.ends(-signal.SIGKILL)
    assert 2 <= scene.reports() < 24
    scene.start(nap=0.0).ends(0)
    for run in scene.runs:
        run.gone()
    scene.check()


@pytest.mark.parametrize("victim", ["raylet/raylet", "gcs_server"])
def test_a_driver_whose_ray_dies_ends_by_itself(scene: Scene, chance: random.Random, victim: str) -> None:
    run = scene.start(nap=4.0)
    scene.reported(1)
    time.sleep(chance.uniform(0, 4))
    kill(*run.named(victim))
    said = run.ends(None)
    if victim == "raylet/raylet":
        assert run.process.returncode == 1
        assert "Ray has died on the driver's machine; " in said
        assert "run the same command again to continue" in said
    run.gone()
    scene.start(nap=0.0).ends(0)
    scene.check()


def test_a_replica_that_is_stopped_is_replaced_after_the_lease_timeout(scene: Scene) -> None:
    run = scene.start("--lease-timeout", "3")
    pid = until(lambda: list(scene.workers()), "a replica at work")[0]
    os.kill(pid, signal.SIGSTOP)
    run.says("is replaced: no progress for 3 s")
    run.ends(0)
    run.gone()
    scene.check()
