"""Images of every kind come out as the model's own processor would make them, or with a reason why not."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_images
from transformers import LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from pipeline import images
from pipeline.errors import UserError
from pipeline.images import ImageError, ImageTransform, decode_image
from pipeline.limits import ReadLimits
from tests.pipeline.shard_bytes import encoded, noise
from tests.pipeline.tokenizers_of_kinds import llama_tokenizer

SIZES: dict[str, Any] = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
CLIP = CLIPImageProcessorPil(**SIZES)
LLAVA = LlavaImageProcessorPil(**SIZES, do_pad=True)
PAD = ImageTransform.from_processor(CLIP, "pad")
CROP = ImageTransform.from_processor(CLIP, "crop")
PHOTOGRAPHS = [Image.fromarray(data.astronaut()), *(Image.fromarray(photo) for photo in load_sample_images().images)]


def processed(processor: Any, image: Image.Image) -> np.ndarray:
    pixels = processor(image, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"]
    return pixels[0].transpose(1, 2, 0)


def distance(image: Image.Image | bytes, transform: ImageTransform, expected: np.ndarray) -> np.ndarray:
    stored = image if isinstance(image, bytes) else encoded(image)
    return np.abs(decode_image(stored, transform).astype(int) - expected)


@pytest.mark.parametrize("photograph", PHOTOGRAPHS)
@pytest.mark.parametrize("box", [None, (0, 0, 300, 427), (0, 0, 427, 100), (5, 5, 206, 206), (0, 0, 512, 337)])
def test_photographs_are_what_the_processors_make_of_them(photograph: Image.Image, box) -> None:
    image = photograph.crop(box) if box else photograph
    assert distance(image, CROP, processed(CLIP, image)).max() == 0
    assert distance(image, PAD, processed(LLAVA, image)).max() == 0


@settings(max_examples=40)
@given(width=st.integers(1, 400), height=st.integers(1, 400), edge=st.sampled_from([200, 224, 257]))
def test_any_shape_is_what_the_processors_make_of_it(width: int, height: int, edge: int) -> None:
    image = noise(width, height)
    sizes: dict[str, Any] = {"size": {"shortest_edge": edge}, "crop_size": {"height": 224, "width": 224}}
    clip, llava = CLIPImageProcessorPil(**sizes), LlavaImageProcessorPil(**sizes, do_pad=True)
    assert distance(image, ImageTransform.from_processor(llava, "pad"), processed(llava, image)).max() == 0
    if max(width, height) < 40 * min(width, height):  # beyond, the processor makes an enormous image on its way
        assert distance(image, ImageTransform.from_processor(clip, "crop"), processed(clip, image)).max() == 0


def test_the_pad_colour_is_llavas() -> None:
    square = decode_image(encoded(Image.new("RGB", (100, 10), (255, 0, 0))), PAD)
    assert square.shape == (336, 336, 3)
    assert square.dtype == np.uint8
    assert tuple(square[0, 0]) == (122, 116, 104)
    assert tuple(square[168, 168]) == (255, 0, 0)


def test_the_transform_comes_from_what_a_model_folder_holds(tmp_path: Path) -> None:
    CLIP.save_pretrained(str(tmp_path / "image"))
    LlavaProcessor(CLIP, llama_tokenizer(), patch_size=14).save_pretrained(str(tmp_path / "whole"))
    assert not (tmp_path / "whole/preprocessor_config.json").exists()
    assert ImageTransform.from_folder(str(tmp_path / "image")) == PAD
    assert ImageTransform.from_folder(str(tmp_path / "whole"), "crop") == CROP
    assert PAD.mean == (0.48145466, 0.4578275, 0.40821073)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"crop_size": {"height": 336, "width": 224}}, "only squares"),
        ({"do_normalize": False}, "does not resize"),
        ({"rescale_factor": 1.0}, "does not resize"),
    ],
)
def test_a_processor_that_cannot_be_reproduced_is_refused(options: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        ImageTransform.from_processor(CLIPImageProcessorPil(**{**SIZES, **options}))


def test_a_wrong_folder_or_aspect_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no image processor can be read"):
        ImageTransform.from_folder(str(tmp_path))
    with pytest.raises(UserError, match="unknown image aspect 'stretch'"):
        ImageTransform.from_processor(CLIP, "stretch")  # type: ignore[arg-type]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, image_format: str) -> None:
    image = noise(300, 200).resize((60, 40))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = encoded(image, image_format, exif=exif)
    turned = np.asarray(Image.open(io.BytesIO(encoded(image, image_format))).convert("RGB"))
    expected = {
        1: turned,
        2: turned[:, ::-1],
        3: turned[::-1, ::-1],
        4: turned[::-1],
        5: turned.transpose(1, 0, 2),
        6: np.rot90(turned, 3),
        7: turned[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(turned),
    }[orientation]
    assert distance(stored, PAD, processed(LLAVA, Image.fromarray(np.ascontiguousarray(expected)))).max() == 0


def test_damaged_exif_is_passed_over() -> None:
    stored = encoded(noise(50, 50), "JPEG", exif=b"Exif\0\0II*\0" + b"\xff" * 40)
    assert decode_image(stored, PAD).shape == (336, 336, 3)


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK"])
def test_other_colour_modes_become_rgb(mode: str) -> None:
    stored = encoded(noise(64, 48).convert(mode), "JPEG" if mode == "CMYK" else "PNG")
    reopened = Image.open(io.BytesIO(stored))
    assert reopened.mode == mode
    assert distance(stored, PAD, processed(LLAVA, reopened.convert("RGB"))).max() == 0


def test_alpha_is_dropped_as_llava_does() -> None:
    image = Image.new("RGBA", (10, 10), (10, 20, 30, 0))
    assert tuple(decode_image(encoded(image), PAD)[100, 100]) == (10, 20, 30)


def test_sixteen_bit_grey_keeps_its_tones() -> None:
    ramp = np.linspace(0, 65535, 336 * 336).reshape(336, 336).astype(np.uint16)
    decoded = decode_image(encoded(Image.fromarray(ramp)), PAD)
    assert np.abs(decoded[:, :, 0].astype(int) - (ramp >> 8)).max() == 0


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_the_first_frame_of_an_animation_is_taken(image_format: str) -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    stored = encoded(frames[0], image_format, save_all=True, append_images=frames[1:], lossless=True)
    assert tuple(decode_image(stored, PAD)[100, 100]) == (255, 0, 0)


def test_a_single_pixel_fills_the_square() -> None:
    stored = encoded(Image.new("RGB", (1, 1), (1, 2, 3)))
    for transform in (PAD, CROP):
        assert (decode_image(stored, transform) == (1, 2, 3)).all()


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (b"", "the image is empty (0 bytes)"),
        (b"a text named .jpg", "it is not a JPEG, PNG or WebP image"),
        (encoded(noise(8, 8), "GIF"), "it is not a JPEG, PNG or WebP image"),
        (encoded(noise(8, 8), "BMP"), "it is not a JPEG, PNG or WebP image"),
        (encoded(noise(99, 99), "JPEG")[:500], "cannot be decoded"),
        (encoded(noise(99, 99), "JPEG")[:-2000], "cannot be decoded (image file is truncated"),
        (encoded(noise(99, 99))[:-5000], "cannot be decoded"),
        (encoded(noise(99, 99), "WEBP")[:-500], "cannot be decoded"),
    ],
)
def test_what_is_no_whole_image_is_refused_with_the_reason(stored: bytes, reason: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(stored, PAD)
    assert reason in str(caught.value)


def assert_close(off: np.ndarray) -> None:
    """Less than JPEG compression itself changes; the most at the border between picture and padding."""
    assert off.mean() < 0.5
    assert np.quantile(off, 0.99) <= 4
    assert off.max() <= 32


def enlarged(photograph: Image.Image, factor: int) -> Image.Image:
    return photograph.resize((photograph.width * factor, photograph.height * factor + 1), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("photograph", PHOTOGRAPHS)
@pytest.mark.parametrize("aspect", ["pad", "crop"])
def test_drafted_jpegs_are_close(photograph: Image.Image, aspect: images.Aspect) -> None:
    stored = encoded(enlarged(photograph, 5), "JPEG", quality=90)
    exact, drafted = (
        decode_image(stored, ImageTransform.from_processor(CLIP, aspect, draft=draft)).astype(int)
        for draft in (False, True)
    )
    assert_close(np.abs(exact - drafted))
    assert (exact != drafted).any()


@pytest.mark.parametrize(("side", "same"), [(1343, True), (1344, False)])
def test_a_jpeg_that_cannot_be_drafted_to_twice_the_target_is_exact(side: int, same: bool) -> None:
    stored = encoded(PHOTOGRAPHS[0].resize((side, side // 2)), "JPEG")
    exact, drafted = (
        decode_image(stored, ImageTransform.from_processor(CLIP, "pad", draft=draft)) for draft in (False, True)
    )
    assert (exact == drafted).all() == same


def test_threads_decode_the_same() -> None:
    stored = [encoded(photograph, "JPEG") for photograph in PHOTOGRAPHS] * 4
    with ThreadPoolExecutor(4) as pool:
        decoded = list(pool.map(lambda image: decode_image(image, PAD), stored))
    assert all((one == decode_image(image, PAD)).all() for one, image in zip(decoded, stored, strict=True))


WHOLE = {name: encoded(noise(40, 30), name) for name in ("JPEG", "PNG", "WEBP")}


@settings(max_examples=150)
@given(
    image_format=st.sampled_from(sorted(WHOLE)),
    edits=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=5),
    cut=st.floats(0.1, 1),
)
def test_any_damage_gives_an_image_or_a_reason(image_format: str, edits, cut: float) -> None:
    stored = bytearray(WHOLE[image_format])
    for place, patch in edits:
        offset = int(place * (len(stored) - 1))
        stored[offset : offset + len(patch)] = patch
    with suppress(ImageError):
        decoded = decode_image(bytes(stored[: int(cut * len(stored))]), CROP, ReadLimits(max_pixels=10**6))
        assert decoded.shape == (336, 336, 3)
