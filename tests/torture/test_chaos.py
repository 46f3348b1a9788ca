"""Anything may die at any moment, again and again, until the run is done."""

from __future__ import annotations

import random
import time

import pytest

from tests.torture.processes import kill, kill_session
from tests.torture.scene import Run, Scene

pytestmark = pytest.mark.torture

ROUNDS = 6


def strike(run: Run, victim: str) -> None:
    match victim:
        case "replicas":
            kill(*run.named("ray::_ReplicaActor"))
        case "driver":
            kill(run.session)
        case "raylet":
            kill(*run.named("raylet/raylet"))
        case "everything":
            kill_session(run.session)


def test_whatever_dies_whenever_the_run_is_done_in_the_end(scene: Scene, chance: random.Random) -> None:
    """Also while Ray starts, a replica loads, the output is verified: nothing is waited for before the next blow."""
    for _ in range(ROUNDS):
        run = scene.start(nap=0.3)
        struck = [chance.choice(("replicas", "driver", "raylet", "everything")) for _ in range(2)]
        for victim in struck:
            deadline = time.monotonic() + chance.uniform(0, 20)
            while run.process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            strike(run, victim)
        if set(struck) == {"replicas"}:
            run.ends(0)
        run.ends(None)
    scene.start(nap=0.0).ends(0)
    scene.check()
