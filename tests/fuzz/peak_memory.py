"""Reads a shard with the default limits and prints by how many MB the peak grew; run as a program."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.limits import ReadLimits
from pipeline.records import ShardRef
from tests.fuzz.hostile import Entry, archive, good
from tests.fuzz.input_path import InputPath
from tests.pipeline.shard_bytes import JPEG

JSON_BYTES = 4 * 2**20 - 64


def filled(start: bytes, unit: bytes, end: bytes) -> bytes:
    """JSON of as many bytes as are read."""
    return start + unit * ((JSON_BYTES - len(start) - len(end)) // len(unit)) + end


SHEETS: dict[str, bytes] = {
    "numbers as questions": filled(b'{"questions":[', b"1,", b"1]}"),
    "numbers as turns": filled(b'{"conversations":[', b"1,", b"1]}"),
    "questions of a letter": filled(b'{"questions":[', b'"a",', b'"a"]}'),
    "a wide field for many questions": filled(b'{"questions":[' + b'"a",' * 9000 + b'"a"],"x":"', b"x", b'"}'),
    "objects": filled(b'{"x":[', b'{"a":1},', b"1]}"),
    "answers": filled(b'{"question":"a","answers":[', b"1,", b"1]}"),
    "nesting": b'{"a":' * (JSON_BYTES // 6) + b"1" + b"}" * (JSON_BYTES // 6),
    "a long question": filled(b'{"question":"', b"a", b'"}'),
}


def with_sheet(sheet: bytes) -> bytes:
    samples = [entry for n in range(3) for entry in (Entry(f"k{n}.jpg", JPEG), Entry(f"k{n}.json", sheet))]
    return archive([*good(0), *samples, *good(1)])


SHARDS: dict[str, Callable[[], bytes]] = {
    **{name: (lambda sheet=sheet: with_sheet(sheet)) for name, sheet in SHEETS.items()},  # type: ignore[misc]
    "zeros behind the end": lambda: gzip.compress(archive(good(0)) + bytes(2**28), compresslevel=1),
    "a member of zeros": lambda: gzip.compress(archive([Entry("a.bin", bytes(2**27))]), compresslevel=1),
    "headers without end": lambda: archive([Entry("a.jpg", JPEG, records={"comment": "x" * 2**25})]),
    "rows without end": lambda: gzip.compress(many_rows(), compresslevel=1),
}


def many_rows() -> bytes:
    """Samples of little that become rows of much."""
    sheet = b'{"questions":[' + b'"a",' * 999 + b'"a"],"x":"' + b"x" * 20_000 + b'"}'
    return archive([entry for n in range(40) for entry in (Entry(f"{n}.jpg", JPEG), Entry(f"{n}.json", sheet))])


def main(path: str) -> None:
    reader = InputPath(limits=ReadLimits())
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is held now
    before = peak()
    rows = reader.rows(ShardRef("hostile.tar", path))
    assert rows.end is not None
    print((peak() - before) // 1024)


def peak() -> int:
    """KB of memory that this process has held at most."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


if __name__ == "__main__":
    main(sys.argv[1])
