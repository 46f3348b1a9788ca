"""A shard of photograph-like JPEGs with a question each, for measuring what reading it costs."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.records import ShardRef


def photograph(rng: np.random.Generator, side: int) -> bytes:
    """Return a JPEG with the spectrum of a photograph (smooth shapes and some grain), 4:3."""
    height = side * 3 // 4
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((side, height), Image.Resampling.BICUBIC), np.float32)
    pixels = np.clip(smooth + rng.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_shard(path: Path, images: int, side: int) -> ShardRef:
    """Write `images` samples of JPEGs whose longer side has `side` pixels; the same ones on every call."""
    rng = np.random.default_rng(0)
    pool = [photograph(rng, side) for _ in range(min(images, 32))]
    with tarfile.open(path, "w") as archive:
        for index in range(images):
            words = " ".join(["thing"] * int(rng.integers(1, 12)))
            question = json.dumps({"question": f"What {words} is on the left?"}).encode()
            for extension, content in (("jpg", pool[index % len(pool)]), ("json", question)):
                member = tarfile.TarInfo(f"{index:06d}.{extension}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return ShardRef(path.name, str(path), path.stat().st_size, "benchmark")
