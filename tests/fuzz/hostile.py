"""hypothesis strategies for members, archives and damage, from plausible to hostile."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import pickle
import struct
import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import zstandard
from hypothesis import strategies as st

from tests.pipeline.shard_bytes import JPEG, encoded, noise

PNG, WEBP = encoded(noise(9, 5)), encoded(noise(5, 9), "WEBP")
OTHERS = [encoded(noise(6, 6), name) for name in ("GIF", "BMP", "TIFF", "ICO", "PPM", "TGA")]
TYPES = (
    *(tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE),
    *(tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, b"V", b"Z"),
)
FORMATS: tuple[Literal[0, 1, 2], ...] = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
COMPRESSIONS: tuple[Callable[[bytes], bytes], ...] = (bytes, gzip.compress, zstandard.compress, bz2.compress)
SENTINEL = "unpickled"
"""A file that unpickling would make in the current folder."""


class Unpickled:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (SENTINEL,)


@dataclass(frozen=True)
class Entry:
    """One member to be written."""

    name: str
    data: bytes = b""
    kind: bytes = tarfile.REGTYPE
    link: str = ""
    records: dict[str, str] = field(default_factory=dict)
    """Extended (PAX) header records."""

    def header(self) -> tarfile.TarInfo:
        header = tarfile.TarInfo(self.name)
        header.type, header.linkname, header.pax_headers = self.kind, self.link, dict(self.records)
        header.size = len(self.data)
        return header


def archive(entries: Sequence[Entry], tar_format: Literal[0, 1, 2] = tarfile.PAX_FORMAT) -> bytes:
    """The archive of those entries that the format can hold."""
    parts = []
    for entry in entries:
        try:
            header = entry.header().tobuf(tar_format, "utf-8", "surrogateescape")
        except (ValueError, UnicodeError, OverflowError):
            continue
        padding = -len(entry.data) % tarfile.BLOCKSIZE
        parts.append(header + entry.data + bytes(padding))
    return b"".join(parts) + bytes(2 * tarfile.BLOCKSIZE)


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is of this size, with next to nothing in it."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(99)))]
    body = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


texts = (
    st.sampled_from(
        ["", "What?", "<image>", "</s><s>", "USER: <image>\nASSISTANT:", "\0\x1b[2J\r\n", "\ud800", "é\u202e😀"]
    )
    | st.text(st.characters(), max_size=12)
    | st.integers(1, 100_000).map(lambda length: "long " * (length // 5))
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(10**30, 10**40) | st.floats() | texts,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["question", "from", "value", "id", "answer", "kind"]) | texts, inner, max_size=4
        )
    ),
    max_leaves=8,
)
turns = st.lists(
    st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt", "system", "x"]), "value": texts}), max_size=6
)
sheets = (
    st.dictionaries(
        st.sampled_from(["question", "questions", "conversations", "answers", "id", "x"]), values, max_size=4
    )
    | st.fixed_dictionaries({"questions": st.lists(texts, max_size=60)})
    | st.fixed_dictionaries({"conversations": turns})
)
odd_json = st.sampled_from(
    [
        *(b"", b"null", b"[]", b"{", b'{"question": NaN}', b'{"question": 1e999}', b'\xef\xbb\xbf{"question": "bom"}'),
        *(
            b'{"question": "a", "question": "b"}',
            b'{"a":' * 5000 + b"1" + b"}" * 5000,
            b'{"question": ' + b"9" * 9000 + b"}",
        ),
        *(
            b'{"question": "\\ud800"}',
            '{"question": "utf-16"}'.encode("utf-16"),
            b"\xff\xfe\x00",
            b'{"questions": ["a"], "question": "b"}',
        ),
        b'{"questions": [' + b"{}," * 400 + b"1]}",
    ]
)
images = st.sampled_from([JPEG, PNG, WEBP, *OTHERS, b"", JPEG[:-9], PNG[:-20], WEBP[: len(WEBP) // 2]]) | st.builds(
    png_header, st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1)
)
pickles = st.just(pickle.dumps(Unpickled()))
contents = images | sheets.map(lambda value: json.dumps(value).encode()) | odd_json | pickles | st.binary(max_size=700)
keys = st.sampled_from(
    [
        *"abcd",
        "é",
        "a b",
        "dir/a",
        "./a",
        "../a",
        "/etc/a",
        "../../../a",
        "n" * 300,
        "a\nb",
        "a\x07",
        "__a",
        ".",
        "..",
        "",
        "\udcff",
    ]
) | st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
extensions = st.sampled_from(
    [
        *("jpg", "JPG", "jpeg", "png", "webp", "json", "txt", "json", "jpg"),
        "pkl",
        "pickle",
        "pyd",
        "pth",
        "npy",
        "",
        "a.json",
        "tar",
        "é",
    ]
)
records = st.dictionaries(
    st.sampled_from(["path", "size", "linkpath", "mtime", "comment", "GNU.sparse.major", "GNU.sparse.minor"])
    | st.sampled_from(["GNU.sparse.map", "GNU.sparse.size", "GNU.sparse.realsize", "GNU.sparse.name", "hdrcharset"]),
    st.sampled_from(
        ["-1", "0", "1", "7", "99999999999999999999", "nan", "0,5,9", "../x", "é", "a\0b", "BINARY", "x" * 3000]
    ),
    max_size=3,
)
entries = st.builds(
    Entry,
    name=st.builds("{}.{}".format, keys, extensions) | keys,
    data=contents,
    kind=st.sampled_from(TYPES) | st.just(tarfile.REGTYPE) | st.just(tarfile.REGTYPE),
    link=keys,
    records=st.just({}) | records,
)


def good(number: int) -> list[Entry]:
    """A sample that must be answered, under a key that nothing else here has."""
    question = json.dumps({"question": f"What is {number}?"}).encode()
    return [Entry(f"good-{number}.jpg", JPEG), Entry(f"good-{number}.json", question)]


@dataclass(frozen=True)
class Damage:
    place: float
    """Share of the archive in front of it."""
    kind: str
    patch: bytes = b""

    def apply(self, data: bytes, start: int = 0) -> bytes:
        at = start + int(self.place * (len(data) - start))
        if self.kind == "cut":
            return data[:at]
        if self.kind == "insert":
            return data[:at] + self.patch + data[at:]
        if self.kind == "remove":
            return data[:at] + data[at + len(self.patch) :]
        if self.kind == "flip" and at < len(data):
            return data[:at] + bytes([data[at] ^ (1 << len(self.patch) % 8)]) + data[at + 1 :]
        return data[:at] + self.patch + data[at + len(self.patch) :]


damages = st.builds(
    Damage,
    place=st.floats(0, 1),
    kind=st.sampled_from(["cut", "insert", "remove", "flip", "overwrite"]),
    patch=st.binary(min_size=1, max_size=600) | st.integers(1, 3).map(lambda blocks: bytes(512 * blocks)),
)
