"""A whole shard, from tar bytes to committed Parquet, with a real (tiny) model and no Ray."""

from __future__ import annotations

import io
import json
import math
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from skimage import data as photographs
from sklearn.datasets import load_sample_images

from pipeline.generation import GenerationSettings
from pipeline.preparation import Preparation
from pipeline.records import ShardRef, ShardReport
from pipeline.replica import ReplicaSettings
from pipeline.shard_work import ShardWorker
from tests.checkpoint import save_checkpoint


def jpeg(pixels: np.ndarray, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> ShardRef:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return ShardRef(path.name, str(path), path.stat().st_size, "v1")


def noise(seed: int, height: int = 40, width: int = 60) -> bytes:
    return jpeg(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def worker(checkpoint: Path, output: Path, **settings: object) -> ShardWorker:
    values: dict[str, object] = {"reduction": "ficoco-v:5", "generation": GenerationSettings(max_new_tokens=4)}
    replica = ReplicaSettings(str(checkpoint), **{**values, **settings})  # type: ignore[arg-type]
    return ShardWorker(replica, str(output), {"ficoco.test": "1"}, prompt="Describe the image.")


def whole(made: ShardWorker, ref: ShardRef) -> ShardReport:
    report = made.work(ref)
    assert isinstance(report, ShardReport)
    return report


def rows(output: Path, report: ShardReport, folder: str) -> list[dict[str, object]]:
    paths = [str(part["path"]) for part in report.parts if str(part["path"]).startswith(folder)]
    return [row for path in paths for row in pq.read_table(output / path).to_pylist()]


def test_real_photographs_are_answered(checkpoint: Path, tmp_path: Path) -> None:
    pictures = [photographs.astronaut(), photographs.coffee(), photographs.camera(), *load_sample_images().images]
    members = [(f"{i:05d}.jpg", jpeg(np.asarray(p))) for i, p in enumerate(pictures)]
    report = whole(worker(checkpoint, tmp_path / "out"), write_tar(tmp_path / "a.tar", members))
    assert 0 < report.first_answer_seconds < report.wall_seconds
    assert (report.samples, report.questions, report.answers, report.quarantined) == (5, 5, 5, 0)
    answers = rows(tmp_path / "out", report, "data")
    assert [row["key"] for row in answers] == [f"{i:05d}" for i in range(5)]
    assert {row["visual_tokens"] for row in answers} == {5}
    assert sum(report.flops.values()) == pytest.approx(sum(float(str(row["flops"])) for row in answers))
    assert len({row["answer"] for row in answers}) > 1


def test_what_cannot_be_answered_is_quarantined_and_the_rest_goes_on(checkpoint: Path, tmp_path: Path) -> None:
    three = json.dumps({"questions": ["How many?", 7, {"question": "Why?", "answers": ["so"]}]}).encode()
    members = [
        ("a.jpg", noise(1)),
        ("a.json", three),
        ("b.jpg", b""),
        ("b.json", json.dumps({"questions": ["One?", "Two?"]}).encode()),
        ("c.jpg", noise(2)[:200]),
        ("d.jpg", b"this is text"),
        ("e.json", b"{}"),
        ("f.jpg", noise(3)),
        ("f.json", json.dumps({"question": "x" * 5000}).encode()),
        ("g.png", jpeg(np.zeros((1, 1, 3), np.uint8), "PNG")),
    ]
    report = whole(worker(checkpoint, tmp_path / "out"), write_tar(tmp_path / "a.tar", members))
    quarantine = [(r["key"], r["question_index"], r["stage"]) for r in rows(tmp_path / "out", report, "quarantine")]
    assert quarantine == [
        ("a", 1, "sample"),
        ("b", 0, "image"),
        ("b", 1, "image"),
        ("c", 0, "image"),
        ("d", 0, "image"),
        ("e", 0, "sample"),
        ("f", 0, "prompt"),
    ]
    answered = [(row["key"], row["question_index"]) for row in rows(tmp_path / "out", report, "data")]
    assert answered == [("a", 0), ("a", 2), ("g", 0)]
    assert report.questions == report.answers + report.quarantined == 10


def test_an_answer_that_is_not_a_number_is_no_answer(checkpoint: Path, tmp_path: Path) -> None:
    asked = json.dumps({"questions": ["Why?", "100%?", "Why not?"]}).encode()
    ref = write_tar(tmp_path / "a.tar", [("a.jpg", noise(1)), ("a.json", asked), ("b.jpg", noise(2))])
    made = worker(checkpoint, tmp_path / "out")
    letter = made.replica.tokenizer.encode("%", add_special_tokens=False)[0]
    with torch.no_grad():
        made.replica.engine.model.model.language_model.embed_tokens.weight[letter] = float("nan")
    report = whole(made, ref)
    (left,) = rows(tmp_path / "out", report, "quarantine")
    assert (left["key"], left["question_index"], left["stage"]) == ("a", 1, "model")
    assert "not a number" in str(left["reason"])
    answers = rows(tmp_path / "out", report, "data")
    assert [(row["key"], row["question_index"]) for row in answers] == [("a", 0), ("a", 2), ("b", 0)]
    assert not any(math.isnan(float(str(row["mean_logprob"]))) for row in answers)


def test_rows_do_not_depend_on_the_batch_size_or_an_earlier_shard(checkpoint: Path, tmp_path: Path) -> None:
    questions = json.dumps({"questions": ["How many?", "What is on the left of it?", "Why?"]}).encode()
    members = [(f"{i}.{e}", c) for i in range(6) for e, c in (("jpg", noise(i)), ("json", questions))]
    ref = write_tar(tmp_path / "a.tar", members)
    other = write_tar(tmp_path / "b.tar", [("z.jpg", noise(9))])
    texts = []
    for number, size in enumerate((1, 4, 16)):
        made = worker(checkpoint, tmp_path / str(number), batch_size=size)
        if number:
            made.work(other)
        texts.append(
            [(r["key"], r["question_index"], r["answer"]) for r in rows(made_output(made), whole(made, ref), "data")]
        )
    assert len(texts[0]) == 18
    assert texts[0] == texts[1] == texts[2]


def made_output(made: ShardWorker) -> Path:
    root = made.output.local_root
    assert root is not None
    return root


def test_limit_takes_the_first_samples(checkpoint: Path, tmp_path: Path) -> None:
    ref = replace(write_tar(tmp_path / "a.tar", [(f"{i}.jpg", noise(i)) for i in range(5)]), take=3)
    report = whole(worker(checkpoint, tmp_path / "out"), ref)
    assert report.answers == report.samples == 3
    assert report.incomplete is None


def test_an_abandoned_shard_leaves_no_thread_behind(checkpoint: Path, tmp_path: Path) -> None:
    made = worker(checkpoint, tmp_path / "out")
    ref = write_tar(tmp_path / "a.tar", [(f"{i}.jpg", noise(i)) for i in range(40)])
    preparation = Preparation(made.replica.transform, made.replica.prompts, prompt="Why?", window=4)
    before = threading.active_count()
    windows = preparation.windows(ref)
    assert len(next(windows).pictures) == 4
    windows.close()
    reading = [t for t in threading.enumerate() if not t.name.startswith("decode-images")]
    assert len(reading) <= before


def test_a_window_waits_until_it_is_fetched(checkpoint: Path, tmp_path: Path) -> None:
    made = worker(checkpoint, tmp_path / "out")
    ref = write_tar(tmp_path / "a.tar", [(f"{i:03d}.jpg", noise(i % 7)) for i in range(120)])
    decoded: list[str] = []
    preparation = Preparation(made.replica.transform, made.replica.prompts, prompt="Why?", window=8)
    original = preparation._decode

    def counted(sample):
        decoded.append(sample.key)
        return original(sample)

    preparation._decode = counted  # type: ignore[method-assign]
    windows = preparation.windows(ref)
    next(windows)
    threading.Event().wait(0.5)
    # One window fetched, one waiting, one in the reader's hands, and what is submitted ahead.
    assert len(decoded) <= 3 * 8 + 17 + 8
    assert sum(len(window.pictures) for window in windows) == 112
