"""A coverage-guided fuzz target over the readers of untrusted bytes: tar, compression, JSON, images, prompts.

`make fuzz` runs it; so does `python -m tests.fuzz.coverage_guided CORPUS -max_total_time=600` (libFuzzer's options).
An input that breaks something is written to `out/fuzz`; add it to `seeds`, which a test reads.
"""

from __future__ import annotations

import gzip
import sys
import tempfile
from pathlib import Path

import zstandard

if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports(include=["pipeline", "tarfile", "json", "gzip", "PIL"]):
        from tests.fuzz.untrusted import Untrusted
else:
    from tests.fuzz.untrusted import Untrusted

from tests.fuzz.hostile import PNG, WEBP, Entry, archive, good, png_header
from tests.pipeline.shard_bytes import JPEG


def seeds() -> list[bytes]:
    """Small inputs of every kind; the first byte chooses the reader."""
    shard = archive([*good(0), Entry("a.png", PNG), Entry("a.txt", b"caption"), Entry("é.webp", WEBP), *good(1)])
    long_name = archive([Entry("n" * 200 + ".jpg", JPEG, records={"comment": "x"})])
    sheets = [
        b'{"questions": ["a", {"id": 1, "question": "b", "answers": ["c"], "kind": "d"}]}',
        b'{"conversations": [{"from": "human", "value": "<image>\\nWhy?"}, {"from": "gpt", "value": "So."}]}',
        b'{"question": "\\ud800", "answers": [{"answer": 1.5e3}, NaN]}',
    ]
    shards = [b"\0" + packed for packed in (shard, long_name, gzip.compress(shard), zstandard.compress(shard))]
    images = [b"\1" + data for data in (JPEG, PNG, WEBP, png_header(70_000, 3))]
    return shards + images + [b"\2" + data for data in sheets] + [b"\3What is </s> in the <image>?"]


def main(arguments: list[str]) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        untrusted = Untrusted(Path(folder))
        corpus = next((Path(word) for word in arguments if not word.startswith("-")), None)
        if corpus is not None:
            corpus.mkdir(parents=True, exist_ok=True)
            for number, data in enumerate(seeds()):
                (corpus / f"seed-{number}").write_bytes(data)
        atheris.Setup([sys.argv[0], *arguments], untrusted.read)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
