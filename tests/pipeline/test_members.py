"""Members of a shard: which are read, by which names, and at what cost."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from pipeline.limits import ReadLimits
from pipeline.records import ShardRef
from pipeline.shards import read_shard
from tests.pipeline.shard_bytes import JPEG, QUICK, Reading, numbered, read_bytes, tar_bytes

BLOCK = tarfile.BLOCKSIZE
PLAIN = tar_bytes(numbered(3), tarfile.USTAR_FORMAT)
END = len(PLAIN.rstrip(b"\0")) + (-len(PLAIN.rstrip(b"\0"))) % BLOCK
"""Where the last member's padding ends and the end-of-archive blocks begin."""


def test_links_devices_directories_and_nameless_members_are_skipped_and_counted(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind in [
            ("train.2017", tarfile.DIRTYPE),
            ("latest", tarfile.SYMTYPE),
            ("null", tarfile.CHRTYPE),
            ("pipe", tarfile.FIFOTYPE),
            ("README", tarfile.REGTYPE),
            (".hidden.jpg", tarfile.REGTYPE),
            ("__meta__.json", tarfile.REGTYPE),
        ]:
            header = tarfile.TarInfo(name)
            header.type = kind
            header.linkname = "/etc/passwd"
            archive.addfile(header)
        header = tarfile.TarInfo("train.2017/0.jpg")
        header.size = len(JPEG)
        archive.addfile(header, io.BytesIO(JPEG))
    reading = read_bytes(tmp_path, buffer.getvalue(), "Describe.")
    assert reading.identities == [("train.2017/0", 0)]
    assert reading.rejections == []
    assert reading.end.members_skipped == {"device": 2, "directory": 1, "link": 1, "metadata": 1, "no extension": 2}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_an_image_that_is_a_link_rejects_its_sample(tmp_path: Path, kind: bytes) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        header = tarfile.TarInfo("a.jpg")
        header.type, header.linkname = kind, "/etc/passwd"
        archive.addfile(header)
    reading = read_bytes(tmp_path, buffer.getvalue(), "Describe.")
    assert reading.reasons == ["a.jpg is no file but a link"]
    assert reading.end.members_skipped == {"link": 1}


def test_sparse_members_are_skipped_and_the_rest_is_read(tmp_path: Path) -> None:
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(2**20)
        file.seek(2**19)
        file.write(b"data")
    (tmp_path / "b.jpg").write_bytes(JPEG)
    for options in (
        ["--format=gnu"],
        ["--format=pax", "--sparse-version=1.0"],
        ["--format=pax", "--sparse-version=0.1"],
    ):
        shard = tmp_path / "s.tar"
        assert (
            os.spawnlp(
                os.P_WAIT, "tar", "tar", "-C", str(tmp_path), "-S", *options, "-cf", str(shard), "a.jpg", "b.jpg"
            )
            == 0
        )
        reading = Reading(ShardRef("s.tar", str(shard)), "Describe.")
        assert [key for key, _ in reading.identities] == ["b"]
        assert reading.reasons == ["a.jpg is no file but a sparse file"]
        assert reading.end.complete


@pytest.mark.parametrize(
    "name",
    [
        "日本語/写真",
        "/absolute/a",
        "../../escape",
        "./here",
        "a b'c\"d",
        "x" * 300,
        "/".join(["deep"] * 60),
        "new\nline",
    ],
)
@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_are_keys_and_nothing_is_written_by_them(tmp_path: Path, name: str, tar_format: int) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    reading = read_bytes(inside, tar_bytes([(f"{name}.jpg", JPEG)], tar_format), "Describe.")
    assert [key for key, _ in reading.identities] == [name]
    assert [path.name for path in tmp_path.rglob("*")] == ["inside", "shard.tar"]


def test_a_name_that_is_not_utf8_becomes_a_key_that_is(tmp_path: Path) -> None:
    data = tar_bytes([("caf\udce9.jpg", JPEG)], tarfile.GNU_FORMAT)
    assert read_bytes(tmp_path, data, "Describe.").identities == [("caf\\xe9", 0)]


def test_members_over_the_limit_are_not_read(tmp_path: Path) -> None:
    data = tar_bytes([("a.jpg", bytes(50_000_000)), ("b.jpg", JPEG), ("c.jpg", JPEG), ("c.json", bytes(20_000_000))])
    tracemalloc.start()
    reading = read_bytes(tmp_path, data, "Describe.", ReadLimits(max_image_bytes=10**6, max_text_bytes=10**5))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [key for key, _ in reading.identities] == ["b"]
    assert reading.reasons == [
        "a.jpg has 50000000 bytes; the limit is 1000000",
        "c.json has 20000000 bytes; the limit is 100000",
    ]
    assert reading.end.members_skipped == {"too large": 2}
    assert peak < 8 * 2**20


def test_headers_of_any_size_take_bounded_memory(tmp_path: Path) -> None:
    bomb = tar_bytes([("a" * 50_000_000 + ".jpg", JPEG)], tarfile.GNU_FORMAT)
    packed = gzip.compress(bomb, 1)
    del bomb
    tracemalloc.start()
    reading = read_bytes(tmp_path, packed, "Describe.")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "larger than the limit max_header_bytes" in reading.reasons[0]
    assert peak < 8 * 2**20


@pytest.mark.parametrize("size", [b"\xff" * 12, b"77777777777\0", b"\x80" + b"\xff" * 11])
def test_sizes_that_lie_end_the_shard_with_a_reason(tmp_path: Path, size: bytes) -> None:
    header = bytearray(PLAIN[:BLOCK])
    header[124:136] = size
    header[148:156] = b"%06o\0 " % (256 + sum(header[:148]) + sum(header[156:]))
    reading = read_bytes(tmp_path, PLAIN[:END] + bytes(header) + bytes(1024))
    assert len(reading.samples) == 3
    assert not reading.end.complete
    assert len(reading.rejections) == 1


def test_a_long_shard_is_read_in_the_memory_of_a_sample(tmp_path: Path) -> None:
    image = os.urandom(500_000)
    data = tar_bytes([(f"{index}.jpg", image) for index in range(60)])
    (tmp_path / "s.tar").write_bytes(data)
    del data
    tracemalloc.start()
    count = sum(1 for _ in read_shard(ShardRef("s", str(tmp_path / "s.tar")), "Describe.", QUICK))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 61
    assert peak < 6 * 2**20


@pytest.mark.parametrize("claimed", ["-1", "0", "10", "1000000000", "nan", ""])
def test_a_member_is_read_as_it_is_stored_whatever_length_a_record_gives(tmp_path: Path, claimed: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, records in [("a.jpg", {"GNU.sparse.realsize": claimed}), ("b.jpg", {})]:
            header = tarfile.TarInfo(name)
            header.size, header.pax_headers = len(JPEG), records
            archive.addfile(header, io.BytesIO(JPEG))
    reading = read_bytes(tmp_path, buffer.getvalue(), "Describe.")
    assert reading.identities == [("a", 0), ("b", 0)]
    assert reading.end.complete
