"""Whole and damaged shards: what was whole comes out, what was not is named, nothing is missed."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import pytest
import webdataset
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.records import ShardRef
from pipeline.shards import ShardEnd, read_shard
from tests.pipeline.shard_bytes import JPEG, QUICK, Reading, numbered, read_bytes, tar_bytes

BLOCK = tarfile.BLOCKSIZE
PLAIN = tar_bytes(numbered(3), tarfile.USTAR_FORMAT)
END = len(PLAIN.rstrip(b"\0")) + (-len(PLAIN.rstrip(b"\0"))) % BLOCK
"""Where the last member's padding ends and the end-of-archive blocks begin."""


def header_offsets(data: bytes) -> list[int]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return [member.offset for member in archive.getmembers()]


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_whole_shard_gives_every_sample_and_a_clean_end(tmp_path: Path, tar_format: int) -> None:
    reading = read_bytes(tmp_path, tar_bytes(numbered(3), tar_format))
    assert reading.identities == [("0000", 0), ("0001", 0), ("0002", 0)]
    assert [sample.image for sample in reading.samples] == [JPEG] * 3
    assert reading.samples[1].questions[0].text == "What is 1?"
    assert reading.end == ShardEnd(3, complete=True, members_skipped={})


def test_the_webdataset_writer_is_read(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "shard.tar")) as writer:
        for index in range(3):
            writer.write({"__key__": f"{index:09d}", "jpg": JPEG, "json": {"caption": "c"}, "txt": "a caption"})
    reading = Reading(ShardRef("shard.tar", str(tmp_path / "shard.tar")), "Describe.")
    assert [sample.questions[0].references for sample in reading.samples] == [("a caption",)] * 3
    assert reading.end.complete


@pytest.mark.parametrize("name", ["s.tar.gz", "s.tgz", "s.tar.zst", "s.tar"])
@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
def test_compression_is_recognised_by_content(tmp_path: Path, name: str, compress) -> None:
    reading = read_bytes(tmp_path, compress(PLAIN), name=name)
    assert reading.end == ShardEnd(3, complete=True)


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
def test_files_that_were_compressed_in_pieces_are_read_to_their_end(tmp_path: Path, compress) -> None:
    middle = header_offsets(PLAIN)[3] + 100
    reading = read_bytes(tmp_path, compress(PLAIN[:middle]) + compress(PLAIN[middle:]))
    assert reading.end == ShardEnd(3, complete=True)


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
def test_cut_compressed_shards_give_their_whole_samples_and_say_so(tmp_path: Path, compress) -> None:
    members = [(f"{index:04d}.jpg", os.urandom(30_000)) for index in range(40)]
    packed = compress(tar_bytes(members))
    reading = read_bytes(tmp_path, packed[: len(packed) // 2], "Describe.")
    assert 5 <= len(reading.samples) < 40
    assert [rejection.stage for rejection in reading.rejections] == ["read"]
    assert not reading.end.complete


def test_a_wrong_gzip_checksum_is_reported(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(PLAIN))
    packed[-8] ^= 1
    reading = read_bytes(tmp_path, bytes(packed))
    assert len(reading.samples) == 3
    assert "CRC" in reading.reasons[0]
    assert not reading.end.complete


@pytest.mark.parametrize(
    ("magic", "named"), [(b"BZh91AY&SY", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"PK\x03\x04....", "zip")]
)
def test_other_compressions_are_named(tmp_path: Path, magic: bytes, named: str) -> None:
    reading = read_bytes(tmp_path, magic)
    assert f"{named}-compressed" in reading.reasons[0]


def test_a_shard_cut_between_members_is_incomplete(tmp_path: Path) -> None:
    reading = read_bytes(tmp_path, PLAIN[:END])
    assert [key for key, _ in reading.identities] == ["0000", "0001", "0002"]  # the last looks like those before it
    assert not reading.end.complete
    assert "end-of-archive blocks are missing" in reading.reasons[0]
    assert "members 6" in reading.reasons[0]
    assert reading.rejections[0].key == "0002"


def test_a_last_sample_that_lost_a_member_is_not_answered(tmp_path: Path) -> None:
    reading = read_bytes(tmp_path, PLAIN[: header_offsets(PLAIN)[5]], "Describe.")
    assert [key for key, _ in reading.identities] == ["0000", "0001"]  # 0002's question is cut off, --prompt is not it
    assert "'0002' is not whole" in reading.reasons[0]
    assert reading.end.samples == 2


def test_a_shard_cut_within_a_member_gives_the_samples_before(tmp_path: Path) -> None:
    offset = header_offsets(PLAIN)[4]
    reading = read_bytes(tmp_path, PLAIN[: offset + BLOCK + 100])
    assert [key for key, _ in reading.identities] == ["0000", "0001"]
    assert "cut off 100 bytes into a member" in reading.reasons[0]
    assert reading.rejections[0].stage == "read"


def test_a_shard_cut_within_a_header_says_so(tmp_path: Path) -> None:
    reading = read_bytes(tmp_path, PLAIN[: header_offsets(PLAIN)[4] + 100])
    assert len(reading.samples) == 2
    assert "cut off within a header" in reading.reasons[0]


def test_a_corrupt_header_in_the_middle_is_not_an_end(tmp_path: Path) -> None:
    damaged = bytearray(PLAIN)
    offset = header_offsets(PLAIN)[2]
    damaged[offset : offset + 20] = b"x" * 20
    reading = read_bytes(tmp_path, bytes(damaged))
    assert len(reading.samples) <= 1
    assert "the header after member 2 is corrupt" in reading.reasons[0]
    assert f"bytes {offset + BLOCK}" in reading.reasons[0]
    assert not reading.end.complete


def test_zeroed_headers_in_the_middle_are_not_an_end(tmp_path: Path) -> None:
    damaged = bytearray(PLAIN)
    offset = header_offsets(PLAIN)[2]
    damaged[offset : offset + BLOCK] = bytes(BLOCK)
    reading = read_bytes(tmp_path, bytes(damaged))
    assert "follow the end of the archive" in reading.reasons[0]


def test_archives_that_were_joined_are_read_to_their_end(tmp_path: Path) -> None:
    second = tar_bytes([("0009.jpg", JPEG), ("0009.json", {"question": "And?"})])
    reading = read_bytes(tmp_path, PLAIN + second)
    assert [key for key, _ in reading.identities] == ["0000", "0001", "0002", "0009"]
    assert reading.end.complete


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty (0 bytes)"),
        (b"this is no archive", "not a tar archive"),
        (b"no archive either " * 100, "not a tar archive"),
    ],
)
def test_files_that_are_no_archive_are_rejected_once(tmp_path: Path, data: bytes, reason: str) -> None:
    reading = read_bytes(tmp_path, data)
    assert reason in reading.reasons[0]
    assert len(reading.rejections) == 1
    assert not reading.end.complete


def test_an_archive_without_members_is_whole(tmp_path: Path) -> None:
    reading = read_bytes(tmp_path, tar_bytes([]))
    assert reading.rejections == []
    assert reading.end == ShardEnd(0, complete=True)


def test_a_missing_shard_is_one_rejection(tmp_path: Path) -> None:
    for ref in (ShardRef("a.tar", str(tmp_path / "a.tar"), missing=True), ShardRef("a.tar", str(tmp_path / "a.tar"))):
        reading = Reading(ref)
        assert [(r.stage, r.reason) for r in reading.rejections] == [("open", "the shard is missing")]
        assert not reading.end.complete


def test_a_folder_in_a_shards_place_is_one_rejection(tmp_path: Path) -> None:
    assert Reading(ShardRef("a", str(tmp_path))).reasons == ["the shard is a folder"]


@pytest.mark.parametrize(("name", "text"), [("s_stats.json", json.dumps({"successes": 5})), ("s.idx", "v1.2 5\n1 2\n")])
def test_a_sibling_that_names_more_samples_makes_the_shard_incomplete(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    reading = read_bytes(tmp_path, PLAIN, name="s.tar")
    assert len(reading.samples) == 3
    assert reading.reasons == ["the shard holds 3 samples of the 5 that its index names"]
    assert not reading.end.complete


@pytest.mark.parametrize("text", ['{"successes": 3}', "not json", '{"successes": "many"}', "[1]", "[" * 100_000])
def test_a_sibling_that_agrees_or_says_nothing_changes_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "s_stats.json").write_text(text)
    assert read_bytes(tmp_path, PLAIN, name="s.tar.gz").end.complete
    assert read_bytes(tmp_path, PLAIN, name="s.tar").end.complete


def test_a_key_that_comes_again_later_is_rejected(tmp_path: Path) -> None:
    reading = read_bytes(tmp_path, tar_bytes([*numbered(2), ("0000.jpg", JPEG)]), "Describe.")
    assert reading.identities == [("0000", 0), ("0001", 0)]
    assert [rejection.key for rejection in reading.rejections] == ["0000"]
    assert "comes twice" in reading.reasons[0]
    assert reading.end.complete


def test_an_abandoned_reading_closes_its_file(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(PLAIN)
    before = len(list(Path("/proc/self/fd").iterdir()))
    reading = read_shard(ShardRef("s", str(tmp_path / "s.tar")), None, QUICK)
    next(reading)
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 1
    reading.close()  # type: ignore[attr-defined]
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@settings(max_examples=150)
@given(
    edits=st.lists(st.tuples(st.integers(0, len(PLAIN) - 1), st.binary(min_size=1, max_size=600)), max_size=4),
    cut=st.integers(0, len(PLAIN)),
    compress=st.sampled_from([bytes, gzip.compress, zstandard.compress]),
)
def test_any_damage_is_survived_and_accounted_for(tmp_path_factory, edits, cut: int, compress) -> None:
    data = bytearray(PLAIN)
    for offset, patch in edits:
        data[offset : offset + len(patch)] = patch
    folder = tmp_path_factory.getbasetemp()
    reading = read_bytes(folder, compress(bytes(data))[:cut], "Describe.", name="fuzz.tar")
    assert reading.end.complete == (reading.end.incomplete_reason is None)
    assert sum(rejection.stage == "read" for rejection in reading.rejections) == (not reading.end.complete)
    assert len(set(reading.identities)) == len(reading.identities)
    for text in (value for rejection in reading.rejections for value in (rejection.reason, rejection.key)):
        text.encode()


@settings(max_examples=60)
@given(cut=st.integers(0, END))
def test_no_cut_passes_for_a_whole_shard(tmp_path_factory, cut: int) -> None:
    reading = read_bytes(tmp_path_factory.getbasetemp(), PLAIN[:cut], "Describe.", name="cut.tar")
    assert not reading.end.complete
    whole = [("0000", 0), ("0001", 0), ("0002", 0)]
    assert reading.identities == whole[: len(reading.identities)]
    assert all(sample.questions[0].text.startswith("What is") for sample in reading.samples)


@settings(max_examples=60)
@given(data=st.binary(max_size=3000))
def test_arbitrary_bytes_are_rejected_once(tmp_path_factory, data: bytes) -> None:
    reading = read_bytes(tmp_path_factory.getbasetemp(), data, "Describe.", name="bytes.tar")
    assert reading.samples == []
    assert len(reading.rejections) == (0 if reading.end.complete else 1)
