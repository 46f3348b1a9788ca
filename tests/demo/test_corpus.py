"""The demo corpus is what the job reads, and what webdataset's own reader reads."""

from __future__ import annotations

import json
from pathlib import Path

import webdataset

from infra.demo.make_corpus import FIRST, sample, write
from infra.demo.scenes import EVALUATION, sample_scene
from pipeline.records import Sample, ShardRef
from pipeline.shards import ShardEnd, read_shard


def test_the_shards_hold_what_was_drawn(tmp_path: Path) -> None:
    paths = write(tmp_path, 2, 3)
    assert [path.name for path in paths] == ["00000.tar", "00001.tar"]
    items = list(read_shard(ShardRef("00001.tar", str(paths[1])), None))
    assert isinstance(items[-1], ShardEnd)
    assert items[-1].complete
    assert [item.key for item in items[:-1] if isinstance(item, Sample)] == ["000003", "000004", "000005"]
    first = items[0]
    assert isinstance(first, Sample)
    drawn = sample(3)
    assert first.image == drawn["jpg"]
    asked = json.loads(drawn["json"])["questions"]
    assert [(q.text, q.references, q.kind) for q in first.questions] == [
        (one["question"], tuple(one["answers"]), one["kind"]) for one in asked
    ]
    assert json.loads(first.meta)["objects"] == len(sample_scene(EVALUATION, FIRST + 3).objects)


def test_a_limit_asks_other_kinds_from_scene_to_scene() -> None:
    asked = [json.loads(sample(index, 1)["json"])["questions"] for index in range(12)]
    assert {len(questions) for questions in asked} == {1}
    assert len({questions[0]["kind"] for questions in asked}) > 3


def test_webdataset_reads_it(tmp_path: Path) -> None:
    write(tmp_path, 1, 4)
    dataset = webdataset.WebDataset(str(tmp_path / "00000.tar"), shardshuffle=False)
    assert [one["__key__"] for one in dataset] == ["000000", "000001", "000002", "000003"]


def test_the_same_arguments_write_the_same_bytes(tmp_path: Path) -> None:
    (one,), (other,) = write(tmp_path / "a", 1, 3), write(tmp_path / "b", 1, 3)
    assert one.read_bytes() == other.read_bytes()
