"""Builds tar shards and encoded images for the tests of the input side."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.limits import ReadLimits
from pipeline.records import Rejection, Sample, ShardRef
from pipeline.shards import ShardEnd, read_shard

QUICK = ReadLimits(attempts=3, retry_seconds=0.01)


def encoded(image: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def noise(width: int, height: int, seed: int = 0, channels: int = 3) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze())


JPEG = encoded(noise(8, 8), "JPEG")


def tar_bytes(
    members: Iterable[tuple[str, bytes | dict[str, Any] | list[Any]]], tar_format: int = tarfile.PAX_FORMAT
) -> bytes:
    """An archive of the members in order; dicts and lists are stored as JSON."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as archive:
        for name, content in members:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return buffer.getvalue()


def numbered(count: int) -> list[tuple[str, bytes | dict[str, Any]]]:
    """Samples 0000, 0001, ... of a JPEG and a question each."""
    members: list[tuple[str, bytes | dict[str, Any]]] = []
    for index in range(count):
        members += [(f"{index:04d}.jpg", JPEG), (f"{index:04d}.json", {"question": f"What is {index}?"})]
    return members


class Reading:
    """Everything that one shard gave."""

    def __init__(self, ref: ShardRef, prompt: str | None = None, limits: ReadLimits = QUICK) -> None:
        *items, end = read_shard(ref, prompt, limits)
        assert isinstance(end, ShardEnd)
        self.end = end
        self.samples = [item for item in items if isinstance(item, Sample)]
        self.rejections = [item for item in items if isinstance(item, Rejection)]
        assert len(self.samples) + len(self.rejections) == len(items)

    @property
    def reasons(self) -> list[str]:
        return [rejection.reason for rejection in self.rejections]

    @property
    def identities(self) -> list[tuple[str, int]]:
        return [(sample.key, question.index) for sample in self.samples for question in sample.questions]


def read_bytes(
    folder: Path, data: bytes, prompt: str | None = None, limits: ReadLimits = QUICK, name: str = "shard.tar"
) -> Reading:
    path = folder / name
    path.write_bytes(data)
    return Reading(ShardRef(name, str(path)), prompt, limits)
