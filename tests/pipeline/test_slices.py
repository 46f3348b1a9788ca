"""Slices of a shard, read one by one, against the shard read at once."""

from __future__ import annotations

import itertools
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.records import Rejection, Sample, ShardRef
from pipeline.shards import ShardEnd, SourceError, read_shard
from pipeline.tasks import END, Slice
from tests.pipeline.shard_bytes import JPEG, QUICK, numbered, tar_bytes

Item = Sample | Rejection | ShardEnd
KINDS: dict[str, list[tuple[str, bytes | dict[str, Any]]]] = {
    "plain": [(".jpg", JPEG), (".txt", b"a caption")],
    "asks": [(".jpg", JPEG), (".json", {"questions": ["one?", 5, "three?"]})],
    "two images": [(".png", JPEG), (".jpg", JPEG)],
    "no image": [(".json", {"question": "of what?"})],
    "other": [(".mp3", b"noise")],
}


def read(ref: ShardRef, part: Slice | None = None) -> tuple[list[Item], ShardEnd]:
    *items, end = read_shard(replace(ref, task=part), "Why?", QUICK)
    assert isinstance(end, ShardEnd)
    return items, end


@given(
    samples=st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(sorted(KINDS))), max_size=8),
    kept=st.floats(0, 1),
    take=st.none() | st.integers(1, 8),
    cuts=st.sets(st.integers(0, 8)),
)
@settings(deadline=None)
def test_slices_together_give_what_the_shard_gives(
    samples: list[tuple[str, str]], kept: float, take: int | None, cuts: set[int]
) -> None:
    data = tar_bytes([(key + ending, content) for key, kind in samples for ending, content in KINDS[kind]])
    with tempfile.NamedTemporaryFile(suffix=".tar") as file:
        file.write(data[: int(kept * len(data))])
        file.flush()
        ref = ShardRef("s.tar", file.name, take=take)
        whole, end = read(ref)
        behind, end_alone = read(ref, END)
        borders = sorted({0, *(cut for cut in cuts if cut < end.numbered), end.numbered})
        parts = [read(ref, Slice(*pair))[0] for pair in itertools.pairwise(borders)]
    assert [item for part in parts for item in part] + behind == whole
    assert (end_alone, end_alone.numbered) == (end, end.numbered)


def test_a_slice_reads_no_further_than_its_end(tmp_path: Path) -> None:
    data = tar_bytes(numbered(6))
    (tmp_path / "s.tar").write_bytes(data[: len(data) // 2])
    items, end = read(ShardRef("s.tar", str(tmp_path / "s.tar")), Slice(1, 2))
    assert [item.key for item in items if isinstance(item, Sample)] == ["0001"]
    assert end.complete


def test_a_condemned_sample_is_rejected_unasked(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(tar_bytes([("a" + ending, content) for ending, content in KINDS["asks"]]))
    items, _ = read(ShardRef("s.tar", str(tmp_path / "s.tar")), Slice(0, 1, "it killed its replica"))
    told = sorted((item.question_index or 0, item.stage) for item in items if isinstance(item, Rejection))
    assert told == [(0, "model"), (1, "sample"), (2, "model")]
    assert len(items) == 3


@pytest.mark.parametrize("change", [lambda path: os.truncate(path, 4096), os.remove])
def test_a_shard_that_has_changed_under_its_slices_is_leased_again(tmp_path: Path, change: object) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(tar_bytes(numbered(6)))
    change(path)  # type: ignore[operator]
    with pytest.raises(SourceError, match="sliced"):
        read(ShardRef("s.tar", str(path)), Slice(3, 6))
