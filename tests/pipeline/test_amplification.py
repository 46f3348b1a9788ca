"""Input that is small to store and large to hold: how much it may take is bounded, and what is over it is named."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import pytest

from pipeline.archive import TarMembers
from pipeline.limits import ReadLimits
from pipeline.records import Rejection, ShardRef
from pipeline.row_size import row_bytes
from pipeline.sources import SourceError
from pipeline.tasks import Slice
from tests.pipeline.shard_bytes import JPEG, Reading, numbered, read_bytes, tar_bytes

PLAIN = tar_bytes(numbered(3))
BEHIND = ("nothing", "an archive", "a block", "a piece", "one byte")


@pytest.mark.parametrize(
    "content",
    [
        {"questions": [1] * 9},
        {"questions": ["Why?"] * 9},
        {"conversations": [None] * 9},
        {"conversations": [{"from": "human", "value": "Why?"}] * 9},
    ],
)
def test_an_image_with_too_many_questions_is_one_rejection(tmp_path: Path, content: dict[str, Any]) -> None:
    data = tar_bytes([("a.jpg", JPEG), ("a.json", content), *numbered(2)])
    reading = read_bytes(tmp_path, data, limits=ReadLimits(max_questions=8))
    assert reading.reasons == ["a.json: it asks 9 questions; the limit is 8"]
    assert len(reading.samples) == 2
    within = read_bytes(tmp_path, data, limits=ReadLimits(max_questions=9))
    assert len(within.identities) + len(within.rejections) == 11


def test_replies_are_not_counted_as_questions(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}] * 8
    data = tar_bytes([("a.jpg", JPEG), ("a.json", {"conversations": turns})])
    assert len(read_bytes(tmp_path, data, limits=ReadLimits(max_questions=8)).identities) == 8


def test_fields_that_would_stand_in_too_many_rows_reject_their_sample(tmp_path: Path) -> None:
    wide = {"questions": ["Why?"] * 50, "caption": "x" * 10_000}
    data = tar_bytes([("a.jpg", JPEG), ("a.json", wide), *numbered(2)])
    reading = read_bytes(tmp_path, data, limits=ReadLimits(max_row_bytes=8 * 400_000))
    assert len(reading.samples) == 2
    assert "its questions, each with the other fields of its JSON, take 52" in reading.reasons[0]
    assert reading.end.complete
    assert len(read_bytes(tmp_path, data).identities) == 52


def test_a_shard_whose_rows_take_too_much_ends_there(tmp_path: Path) -> None:
    data = tar_bytes(numbered(30))
    size = sum(row_bytes(sample) for sample in read_bytes(tmp_path, data).samples)
    reading = read_bytes(tmp_path, data, limits=ReadLimits(max_row_bytes=size // 2))
    assert 15 <= len(reading.samples) <= 17
    assert f"the rows of this shard take more than {size // 2} bytes; read before it: members" in reading.reasons[0]
    assert not reading.end.complete
    assert read_bytes(tmp_path, data, limits=ReadLimits(max_row_bytes=size)).end.complete


def test_a_slice_whose_rows_take_too_much_says_so(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(tar_bytes(numbered(30)))
    ref = ShardRef("s.tar", str(tmp_path / "s.tar"), task=Slice(0, 30))
    with pytest.raises(SourceError, match=r"fewer than the 30 samples .*\(the rows of this shard take more than 6000"):
        Reading(ref, limits=ReadLimits(max_row_bytes=6000))


def test_a_rejection_is_as_large_as_its_words() -> None:
    small, large = Rejection("s", "k", "image", "bad"), Rejection("s", "k", "image", "bad", 0, None, "x" * 1000)
    assert row_bytes(large) - row_bytes(small) == 1000


class Counted(io.BytesIO):
    reads = 0

    def read(self, size: int | None = -1) -> bytes:
        self.reads += 1
        return super().read(size)


@pytest.mark.parametrize("blocks", [2, 127, 128, 129, 4096, 40_001])
@pytest.mark.parametrize("behind", [b"", PLAIN, b"x" * 512, b"\0" * 100, b"\0" * 511 + b"x"], ids=BEHIND)
def test_zeros_behind_the_end_are_passed_over_quickly_whatever_follows(blocks: int, behind: bytes) -> None:
    stream = Counted(PLAIN + bytes(512 * blocks) + behind)
    reader = TarMembers(stream, ReadLimits())
    reason = ""
    names = []
    try:
        for member in reader:
            names.append(member.name)
            reader.skip()
    except ValueError as error:
        reason = str(error)
    assert names == [name for name, _ in numbered(3)] * (2 if behind == PLAIN else 1)
    assert bool(reason) == (behind not in (b"", PLAIN))
    assert stream.reads < 200 + blocks // 100


def test_a_small_file_of_many_zeros_ends_well(tmp_path: Path) -> None:
    packed = gzip.compress(PLAIN + bytes(2**27), compresslevel=1)
    reading = read_bytes(tmp_path, packed)
    assert len(reading.samples) == 3
    assert reading.end.complete
