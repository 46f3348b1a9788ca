"""Replicas that cannot start, and a device without room for a whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from jobs.verify_output import main as verify_output
from pipeline.command_line import parse_command
from pipeline.decoder import Decoder, Prompts
from pipeline.job import JobParts, JobResult, run
from pipeline.places import located
from pipeline.worker_spec import worker_spec
from tests.checkpoint import save_checkpoint
from tests.pipeline.echo_job import echo_parts
from tests.pipeline.shard_bytes import encoded, noise, tar_bytes
from tests.torture.scene import Scene

LARGE = "?" * 60
"""A question that fits no device."""


@pytest.mark.torture
def test_replicas_that_cannot_start_end_the_run_with_the_reason(scene: Scene) -> None:
    run = scene.start(TORTURE_BROKEN="the weights are damaged")
    said = run.ends(1)
    assert "no replica could be started in 5 tries" in said
    assert "the weights are damaged" in said
    assert run.summary["complete"] is False
    scene.start(nap=0.0).ends(0)
    scene.check()


@pytest.mark.torture
def test_replicas_that_die_while_they_start_end_the_run(scene: Scene) -> None:
    run = scene.start(TORTURE_BROKEN="SIGKILL")
    assert "no replica could be started in 5 tries" in run.ends(1)
    scene.start(nap=0.0).ends(0)
    scene.check()


def run_on_threads(folder: Path, model: Path, output: str) -> JobResult:
    """The job with real replicas on threads."""
    words = ["--input", f"{folder}/corpus.tar", "--output", f"{folder}/{output}", "--model", str(model)]
    words += ["--max-new-tokens", "4", "--batch-size", "8", "--dtype", "float32", "--device", "cpu"]
    parts = JobParts(lambda config: "digest", worker_spec, echo_parts().cluster)
    return run(located(parse_command([*words, "--tracking-uri", f"sqlite:///{folder}/mlflow.db"]), False), parts)


def answers(output: Path) -> dict[tuple[str, int], str]:
    rows = [row for path in output.glob("data/*.parquet") for row in pq.read_table(path).to_pylist()]
    return {(row["key"], row["question_index"]): row["answer"] for row in rows}


def test_a_device_without_room_for_a_batch_halves_it_and_quarantines_what_never_fits(
    tmp_path: Path, store_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_in(tmp_path)
    members: list[tuple[str, bytes | dict[str, Any]]] = []
    for index in range(12):
        questions = [f"What is {index}?", LARGE if index == 7 else "Why?"]
        members += [(f"{index}.png", encoded(noise(60, 60, index))), (f"{index}.json", {"questions": questions})]
    (tmp_path / "corpus.tar").write_bytes(tar_bytes(members))
    model = save_checkpoint(tmp_path / "model")
    assert run_on_threads(tmp_path, model, "roomy").summary["answers"] == 24
    whole, sizes = Decoder.prefill, []

    def small(self: Decoder, prompts: Prompts, *more: Any) -> Any:
        rows, longest = prompts.suffix.shape
        sizes.append(rows)
        if rows > 3 or longest > len(LARGE):
            raise torch.OutOfMemoryError("the device is small")
        return whole(self, prompts, *more)

    monkeypatch.setattr(Decoder, "prefill", small)
    result = run_on_threads(tmp_path, model, "small")
    assert result.exit_code == 0
    assert (result.summary["answers"], result.summary["quarantined"]) == (23, 1)
    [lost] = pq.read_table(next((tmp_path / "small").glob("quarantine/*.parquet"))).to_pylist()
    assert (lost["key"], lost["question_index"], lost["stage"]) == ("7", 1, "model")
    assert "does not fit the device's memory" in lost["reason"]
    roomy = answers(tmp_path / "roomy")
    assert roomy.pop(("7", 1)) is not None
    assert answers(tmp_path / "small") == roomy
    assert len([size for size in sizes if size > 3]) <= 3, "the size that fits is remembered"
    assert verify_output(["--output", str(tmp_path / "small"), "--input", str(tmp_path / "corpus.tar")]) == 0
