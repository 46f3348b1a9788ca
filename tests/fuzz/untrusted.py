"""The readers of untrusted bytes one by one, each with what must hold of it; the first byte chooses the reader."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from pipeline.images import ImageError, ImageTransform, decode_image
from pipeline.limits import ReadLimits
from pipeline.parquet import encode_rows
from pipeline.prompts import PromptError
from pipeline.questions import QuestionError, read_questions, well_formed
from pipeline.records import QUARANTINE_SCHEMA, Rejection, Sample, ShardRef
from pipeline.shards import ShardEnd, read_shard
from tests.fuzz.input_path import LIMITS, EchoReplica

GREY = (0.5, 0.5, 0.5)
TRANSFORMS = [
    ImageTransform(16, "pad", GREY, GREY),
    ImageTransform(16, "crop", GREY, GREY),
    ImageTransform(16, "crop", GREY, GREY, draft=True),
]
SMALL = ReadLimits(max_pixels=40_000)


class Untrusted:
    """Raises where something does not hold."""

    def __init__(self, folder: Path) -> None:
        self._shard = folder / "fuzz.tar"
        self._prompts = EchoReplica().prompts
        self._readers = [self.shard, self.image, self.sheet, self.prompt]

    def read(self, data: bytes) -> None:
        if data:
            self._readers[data[0] % len(self._readers)](data[1:])

    def shard(self, data: bytes) -> None:
        self._shard.write_bytes(data)
        *items, end = read_shard(ShardRef("fuzz.tar", str(self._shard)), "Describe.", LIMITS)
        assert isinstance(end, ShardEnd)
        rejections = [item for item in items if isinstance(item, Rejection)]
        named = [(item.key, one.index) for item in items if isinstance(item, Sample) for one in item.questions]
        named += [(one.key, one.question_index) for one in rejections if one.question_index is not None]
        assert len(named) == len(set(named))
        assert sum(one.stage in ("read", "open") for one in rejections) == (not end.complete)
        encode_rows(rejections, QUARANTINE_SCHEMA, {})
        for item in items:
            if isinstance(item, Sample):
                item.key.encode()
                json.loads(item.meta)

    def image(self, data: bytes) -> None:
        for transform in TRANSFORMS:
            with suppress(ImageError):
                assert decode_image(data, transform, SMALL).shape == (16, 16, 3)

    def sheet(self, data: bytes) -> None:
        with suppress(QuestionError):
            sheet = read_questions(data, "key", 50)
            assert isinstance(json.loads(sheet.meta), dict)
            sheet.meta.encode()
            assert [one.index for one in sheet.questions] == list(range(len(sheet.questions)))

    def prompt(self, data: bytes) -> None:
        text = well_formed(data.decode("utf-8", "replace"))
        with suppress(PromptError):
            assert self._prompts.encode(text).prefix_ids == self._prompts.encode("").prefix_ids
