"""Images that are too large or too long for the processor's own arithmetic, and those that only say so."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import images
from pipeline.images import ImageError, decode_image
from pipeline.limits import ReadLimits
from tests.pipeline.shard_bytes import encoded, noise
from tests.pipeline.test_images import CLIP, CROP, LLAVA, PAD, PHOTOGRAPHS, distance, processed


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(100))))
    body = b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("size", [(20_000, 20_000), (2**31 - 1, 1), (14_000, 13_000)])
def test_decompression_bombs_are_refused_before_they_are_decoded(size: tuple[int, int], monkeypatch) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("the bomb was decoded"))
    with pytest.raises(ImageError, match=r"the limit is|decompression bomb"):
        decode_image(png_header(*size), PAD)


def test_the_limit_on_pixels_is_settable() -> None:
    stored = encoded(noise(100, 100))
    with pytest.raises(ImageError, match="the image has 10000 pixels; the limit is 9999"):
        decode_image(stored, PAD, ReadLimits(max_pixels=9999))
    assert decode_image(stored, PAD, ReadLimits(max_pixels=10_000)).any()


def assert_close(off: np.ndarray) -> None:
    """Less than JPEG compression itself changes; the most at the border between picture and padding."""
    assert off.mean() < 0.5
    assert np.quantile(off, 0.99) <= 4
    assert off.max() <= 32


def enlarged(photograph: Image.Image, factor: int) -> Image.Image:
    return photograph.resize((photograph.width * factor, photograph.height * factor + 1), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("factor", [1, 3, 7])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_large_images_are_close_to_the_processors(factor: int, image_format: str, monkeypatch) -> None:
    monkeypatch.setattr(images, "_EXACT_PIXELS", 1000)
    image = enlarged(PHOTOGRAPHS[2], factor)
    stored = encoded(image, image_format, **({"quality": 95} if image_format == "JPEG" else {"compress_level": 1}))
    image = Image.open(io.BytesIO(stored))
    for transform, processor in ((PAD, LLAVA), (CROP, CLIP)):
        assert_close(distance(stored, transform, processed(processor, image)))
        turned = image.transpose(Image.Transpose.ROTATE_90)
        assert_close(distance(encoded(turned, compress_level=1), transform, processed(processor, turned)))


@pytest.mark.parametrize("orientation", [3, 6])
def test_the_orientation_of_large_images_is_applied(orientation: int, monkeypatch) -> None:
    monkeypatch.setattr(images, "_EXACT_PIXELS", 1000)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = encoded(PHOTOGRAPHS[1].resize((1280, 960)), "JPEG", exif=exif)
    turned = Image.open(io.BytesIO(stored)).rotate({3: 180, 6: -90}[orientation], expand=True)
    assert_close(distance(stored, PAD, processed(LLAVA, turned)))


class Watch:
    """Notes how many pixels every resize reads and makes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pixels: list[int] = []
        resize = Image.Image.resize

        def watched(image: Image.Image, size: tuple[int, int], *arguments: Any, **options: Any) -> Image.Image:
            self.pixels += [image.width * image.height, size[0] * size[1]]
            return resize(image, size, *arguments, **options)

        monkeypatch.setattr(Image.Image, "resize", watched)


def test_a_hundred_megapixels_are_answered_in_bounded_memory(monkeypatch) -> None:
    stored = encoded(Image.new("RGB", (10_000, 10_000), (10, 20, 30)), "JPEG")
    watch = Watch(monkeypatch)
    assert np.abs(decode_image(stored, PAD).astype(int) - (10, 20, 30)).max() <= 1
    assert max(watch.pixels) < 3_000_000


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 3), (5000, 1)])
def test_slivers_do_not_become_enormous(size: tuple[int, int], monkeypatch) -> None:
    stored = encoded(Image.new("RGB", size, (9, 8, 7)))
    watch = Watch(monkeypatch)
    assert (decode_image(stored, CROP) == (9, 8, 7)).all()
    assert decode_image(stored, PAD).shape == (336, 336, 3)
    assert max(watch.pixels) <= images._EXACT_PIXELS
