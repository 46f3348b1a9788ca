"""A cluster of several raylets on one machine: nodes die and join while a run goes on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.torture.nodes import Nodes, cluster
from tests.torture.processes import until
from tests.torture.scene import Run, Scene

pytestmark = pytest.mark.torture


@pytest.fixture
def nodes(ray_home: Path) -> Iterator[Nodes]:
    with cluster(ray_home) as made:
        yield made


def start(scene: Scene, nodes: Nodes, nap: float) -> Run:
    """As many replicas as there are nodes."""
    return scene.start("--cpus-per-replica", "1", "--replicas", "auto", nap=nap, **nodes.environment)


def test_a_node_dies_and_another_joins_while_a_run_goes_on(scene: Scene, nodes: Nodes, chance: random.Random) -> None:
    first, second = nodes.join(), nodes.join()
    run = start(scene, nodes, 1.5)
    until(lambda: {first, second} <= set(scene.workers().values()), "both nodes at work")
    scene.reported(chance.randint(1, 4))
    nodes.leave(first)
    run.says(r"is replaced: .*(died|dead|unavailable)")
    third = nodes.join()
    until(lambda: third in scene.workers().values(), "work for the node that joined")
    run.ends(0)
    scene.check()


def test_a_run_waits_out_the_loss_of_every_node(scene: Scene, nodes: Nodes) -> None:
    first = nodes.join()
    run = start(scene, nodes, 0.5)
    scene.reported(1)
    nodes.leave(first)
    run.says(r"is replaced: .*(died|dead|unavailable)")
    second = nodes.join()
    until(lambda: second in scene.workers().values(), "work for the node that joined")
    run.ends(0)
    scene.check()
