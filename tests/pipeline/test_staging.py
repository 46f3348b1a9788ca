"""A shard assembled from slices against the same shard done at once, with a real (tiny) model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.division import Division
from pipeline.generation import GenerationSettings
from pipeline.ledger import Ledger
from pipeline.records import ShardRef, ShardReport, SliceReport
from pipeline.replica import ReplicaSettings
from pipeline.run_folder import remove_run
from pipeline.shard_work import ShardWorker
from pipeline.storage import StorageError
from pipeline.tasks import END, Assembly, Slice, Task
from tests.checkpoint import save_checkpoint
from tests.pipeline.shard_bytes import encoded, noise, tar_bytes

ODD = {3: b"", 9: b"no image", 17: b"\xff\xd8\xff\xe0 torn"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard that is cut off, with images that cannot be read, a key that comes twice and questions of all lengths."""
    members: list[tuple[str, bytes | dict[str, object]]] = []
    for number in range(30):
        key = f"{5 if number == 20 else number:03d}"
        asked = ["Why?" * (1 + number % 5), 7, "What?"] if number % 4 == 0 else ["How many are there?"]
        members.append((f"{key}.jpg", ODD.get(number) or encoded(noise(30 + number, 40, number), "JPEG")))
        members.append((f"{key}.json", {"questions": asked, "answers": ["two"]}))
    path = tmp_path_factory.mktemp("corpus") / "a.tar"
    path.write_bytes(tar_bytes(members)[:-9000])
    return path


def worker(checkpoint: Path, output: Path, provenance: str = "1") -> ShardWorker:
    settings = ReplicaSettings(
        str(checkpoint),
        reduction="ficoco-v:5",
        batch_size=3,
        generation=GenerationSettings(max_new_tokens=3),
        metric="vqa",
    )
    made = ShardWorker(settings, str(output), {"ficoco.test": provenance})
    made.preparation.window = 8
    return made


def in_slices(made: ShardWorker, ref: ShardRef, parts: int) -> tuple[ShardReport, Sequence[Slice]]:
    """As the driver has it done, with the slices last first."""
    division, slices = Division(ref, parts), list[Slice]()
    tasks: list[Task] = division.first()
    while True:
        task = tasks.pop()
        report = made.work(replace(ref, task=task))
        if isinstance(report, ShardReport):
            return report, slices
        assert isinstance(task, Slice)
        slices += [task]
        tasks += division.finished(task, report)


def test_a_shard_done_in_slices_has_the_bytes_of_one_done_at_once(
    checkpoint: Path, corpus: Path, tmp_path: Path
) -> None:
    ref = ShardRef("a.tar", str(corpus), fingerprint="v1")
    whole = worker(checkpoint, tmp_path / "whole").work(ref)
    sliced, slices = in_slices(worker(checkpoint, tmp_path / "sliced"), ref, 3)
    assert isinstance(whole, ShardReport)
    assert len(slices) == 4
    assert [part["sha256"] for part in sliced.parts] == [part["sha256"] for part in whole.parts]
    timeless = {"seconds": {}, "wall_seconds": 0.0, "first_answer_seconds": 0.0}
    assert replace(sliced, **timeless, flops={}) == replace(whole, **timeless, flops={})  # type: ignore[arg-type]
    assert sliced.flops == pytest.approx(whole.flops)
    assert whole.incomplete
    assert whole.quarantined > 10
    assert not list((tmp_path / "sliced" / "staged").iterdir())
    committed = Ledger(worker(checkpoint, tmp_path / "sliced").output).report("a.tar", str(corpus))
    assert committed == sliced


def test_what_another_run_staged_is_not_assembled(checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    ref = ShardRef("a.tar", str(corpus), fingerprint="v1")
    made = worker(checkpoint, tmp_path / "out")
    assert isinstance(made.work(replace(ref, task=END)), SliceReport)
    assembly = replace(ref, task=Assembly((END,)))
    for other, asked in (
        (worker(checkpoint, tmp_path / "out", "2"), assembly),
        (made, replace(assembly, fingerprint="v2")),
        (made, replace(ref, task=Assembly((Slice(0, 8), END)))),
    ):
        with pytest.raises(StorageError, match=r"staged/a-.*run the same command again"):
            other.work(asked)
    assert not (tmp_path / "out" / "ledger").exists()
    (tmp_path / "out" / "run.json").write_text(json.dumps({}))
    assert len(remove_run(made.output)) == 2
