"""The real command with a real LLaVA: however many replicas, killed where or not, the same bytes come out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.faults import COMMIT_POINTS
from tests.checkpoint import save_checkpoint
from tests.pipeline.shard_bytes import encoded, noise, tar_bytes
from tests.torture.processes import kill, until
from tests.torture.scene import COMMAND, Run, Scene, check_output

pytestmark = pytest.mark.torture

SMALL, LARGE = 3, 40
"""Samples of the three small shards, and of the one that is large enough to be sliced."""


class Llava(Scene):
    """A scene with pictures and the real command."""

    def __init__(self, folder: Path, store: str, home: Path) -> None:
        super().__init__(folder, store, home, shards=0)
        for number, samples in enumerate((SMALL, LARGE, SMALL, SMALL)):
            members: list[tuple[str, bytes | dict[str, Any]]] = []
            for index in range(samples):
                picture = encoded(noise(200, 200 + index, seed=100 * number + index), "JPEG")
                asked = {"questions": [f"What is {index}?", "And why is that so, in a few more words?"[: 9 + index]]}
                members += [(f"{index:04d}.jpg", picture), (f"{index:04d}.json", asked)]
            (self.corpus / f"{number:05d}.tar").write_bytes(tar_bytes(members))
        self.questions = 2 * (3 * SMALL + LARGE)
        self.model = save_checkpoint(folder / "model")

    def command(self, output: Path, replicas: int, shard: str = "", **environment: str) -> Run:
        words = [*COMMAND, "--input", str(self.corpus / shard), "--output", str(output), "--model", str(self.model)]
        words += ["--reduction", "ficoco-v", "--keep-tokens", "4", "--max-new-tokens", "4", "--batch-size", "4"]
        words += ["--dtype", "float32", "--tracking-uri", self.store, "--log-every", "1"]
        words += ["--replicas", str(replicas), "--cpus-per-replica", "0.5"]
        return self.launch(words, environment)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory, shared_ray_home: Path, blank_store: Path) -> Iterator[Llava]:
    folder = tmp_path_factory.mktemp("llava")
    made = Llava(folder, f"sqlite:///{shutil.copy(blank_store, folder / 'mlflow.db')}", shared_ray_home)
    made.command(folder / "quiet", 1).ends(0)
    yield made
    made.close()


def compare(llava: Llava, output: Path) -> None:
    check_output(output, llava.folder / "quiet", llava.corpus, llava.questions)


def test_three_replicas_write_what_one_writes(llava: Llava) -> None:
    llava.command(llava.folder / "three", 3).ends(0)
    compare(llava, llava.folder / "three")


def test_replicas_that_are_killed_write_what_others_write(llava: Llava) -> None:
    run = llava.command(llava.folder / "killed", 2)
    run.says("replica ready")
    for _ in range(2):
        victim = until(lambda: run.named("ray::_ReplicaActor.work") or run.process.poll() is not None, "a shard")
        if isinstance(victim, list):
            kill(victim[0])
    run.ends(0)
    compare(llava, llava.folder / "killed")


def test_slices_that_are_done_when_the_driver_is_killed_are_kept(llava: Llava) -> None:
    """There is one shard, of more than 1 MiB, which three replicas do in slices."""
    output, quiet, shard = llava.folder / "begun", llava.folder / "quiet-large", "00001.tar"
    llava.command(quiet, 1, shard).ends(0)
    run = llava.command(output, 3, shard)
    until(lambda: len(list(output.glob("staged/*.zst"))) >= 2, "staged slices")
    kill(run.session)
    run.gone()
    done = len(list(output.glob("staged/*.zst")))
    again = llava.command(output, 3, shard)
    again.says(f"{done} slices of 1 unfinished shards are done")
    again.ends(0)
    check_output(output, quiet, llava.corpus / shard, 2 * LARGE)


@pytest.mark.parametrize("point", COMMIT_POINTS)
def test_a_process_killed_at_any_step_of_a_commit_costs_nothing(llava: Llava, point: str) -> None:
    output, marker = llava.folder / point, llava.folder / f"{point}.marker"
    run = llava.command(output, 2, FICOCO_FAULT=f"{point}@{marker}")
    said = run.ends(None)
    assert marker.exists()
    if run.process.returncode:
        assert run.process.returncode == -9, said
        llava.command(output, 2).ends(0)
    else:
        assert "is replaced" in said
    compare(llava, output)
