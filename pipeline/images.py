"""Encoded image -> the square of bytes that the vision tower takes; normalising is left to the device."""

from __future__ import annotations

import io
import math
import threading
import warnings
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from pipeline.errors import UserError
from pipeline.large_images import Extent, padded_square, resized_middle
from pipeline.limits import ReadLimits

Aspect = Literal["pad", "crop"]
_FORMATS = ("JPEG", "PNG", "WEBP")
_EXACT_PIXELS = 24_000_000
"""Up to here the processor's arithmetic is reproduced bit for bit; above, memory counts for more."""
_LARGE = threading.Lock()
"""Large images are decoded one at a time, so that memory is bounded by one of them, not by one per thread."""

# Said of single images, to nobody who could act on it: the limit on pixels is ReadLimits', damaged EXIF is passed over.
warnings.filterwarnings("ignore", module=r"PIL\.")


_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By the value of EXIF's orientation."""


class ImageError(ValueError):
    """The image cannot be read; the message says why."""


@dataclass(frozen=True, slots=True)
class ImageTransform:
    """How an image becomes ``size`` x ``size`` pixels.

    ``pad``: centred on a square of the mean colour, then resized, as LLaVA-1.5 was trained and evaluated.
    ``crop``: the shortest edge resized to ``shortest_edge``, then the centre cropped, as the CLIP processor does.
    """

    size: int
    aspect: Aspect
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """Mean and standard deviation of each channel on the scale 0 to 1, for the normalisation on the device."""
    resample: int = Image.Resampling.BICUBIC
    shortest_edge: int | None = None
    """None: ``size``."""
    draft: bool = False
    """Let libjpeg scale large JPEGs down while decoding, to at least twice the target: faster, off by a few levels."""

    @classmethod
    def from_processor(cls, processor: Any, aspect: Aspect = "pad", draft: bool = False) -> ImageTransform:
        """Take the sizes and colours from a Hugging Face image processor, or a processor that has one.

        Raises:
            UserError: the processor does something else than resize, crop to a square, rescale and normalise.
        """
        if aspect not in get_args(Aspect):
            raise UserError(f"unknown image aspect '{aspect}': give pad or crop")
        processor = getattr(processor, "image_processor", processor)
        edge = _edge(processor.size)
        size = _edge(processor.crop_size) if getattr(processor, "do_center_crop", False) else edge
        mean, std = tuple(processor.image_mean), tuple(processor.image_std)
        usual = len(mean) == len(std) == 3 and abs(processor.rescale_factor * 255 - 1) < 1e-6
        if not (usual and processor.do_resize and processor.do_rescale and processor.do_normalize):
            raise UserError(
                "the model's image processor does not resize, rescale by 1/255 and normalise, as CLIP's does"
            )
        return cls(size, aspect, mean, std, int(processor.resample), edge, draft)

    @classmethod
    def from_folder(cls, folder: str, aspect: Aspect = "pad", draft: bool = False) -> ImageTransform:
        """The transform of a model folder (``preprocessor_config.json`` or ``processor_config.json``) or hub id.

        Raises:
            UserError: there is no image processor, or none that can be reproduced.
        """
        from transformers import AutoImageProcessor

        try:
            processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"no image processor can be read from {folder}: {first_line}") from None
        return cls.from_processor(processor, aspect, draft)

    @property
    def edge(self) -> int:
        return self.shortest_edge or self.size

    @property
    def background(self) -> tuple[int, int, int]:
        red, green, blue = (int(value * 255) for value in self.mean)
        return red, green, blue


def decode_image(data: bytes, transform: ImageTransform, limits: ReadLimits | None = None) -> npt.NDArray[np.uint8]:
    """Decode, turn upright by EXIF, convert to RGB, pad or crop, resize.

    Alpha is dropped, as LLaVA does; 16-bit grey is scaled to 8 bits; of an animation the first frame is taken.

    Args:
        data: a JPEG, PNG or WebP file.

    Returns:
        Array of shape (size, size, 3), RGB, 0 to 255: bit for bit what the processor computes, as long as the image
        (for ``pad``: the square around it) has at most 24 megapixels; above, it is resized in two steps.

    Raises:
        ImageError: not an image of these formats, truncated, damaged, or with more than ``limits.max_pixels``.
    """
    limits = limits or ReadLimits()
    if not data:
        raise ImageError("the image is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            pixels = image.width * image.height
            if pixels > limits.max_pixels:
                raise ImageError(f"the image has {pixels} pixels; the limit is {limits.max_pixels}")
            if _is_large(image, transform):
                with _LARGE:
                    square = _large_square(image, transform)
            else:
                drafting = transform.draft and _can_be_drafted(image, transform)
                square = _large_square(image, transform) if drafting else _exact_square(image, transform)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError("it is not a JPEG, PNG or WebP image") from None
    except Exception as error:  # Pillow's decoders raise many kinds: SyntaxError, struct.error, EOFError, MemoryError
        raise ImageError(f"the image cannot be decoded ({str(error) or type(error).__name__})") from None
    return np.array(square, dtype=np.uint8)


def _is_large(image: Image.Image, transform: ImageTransform) -> bool:
    side = max(image.size)
    needed = side * side if transform.aspect == "pad" else math.prod(_scaled(image.size, transform.edge))
    return max(image.width * image.height, needed) > _EXACT_PIXELS


def _can_be_drafted(image: Image.Image, transform: ImageTransform) -> bool:
    """Whether half of it, the least that libjpeg scales by, is still twice the target."""
    side = max(image.size) if transform.aspect == "pad" else min(image.size)
    return image.format == "JPEG" and side >= 4 * transform.edge


def _exact_square(image: Image.Image, transform: ImageTransform) -> Image.Image:
    """The processor's own steps, in its own order."""
    image.load()
    upright = _TO_UPRIGHT.get(_orientation(image))
    image = _rgb(image)
    if upright is not None:
        image = image.transpose(upright)
    target = _scaled(image.size, transform.edge)
    if transform.aspect == "pad":
        side = max(image.size)
        square = Image.new("RGB", (side, side), transform.background)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image, target = square, (transform.edge, transform.edge)
    return _centre(image.resize(target, transform.resample), transform.size)


def _large_square(image: Image.Image, transform: ImageTransform) -> Image.Image:
    extent: Extent = image.size
    side = max(image.size)
    margins = ((side - image.width) // 2 / side, (side - image.height) // 2 / side)
    if image.format == "JPEG":
        scale = 2 * transform.edge / (max(extent) if transform.aspect == "pad" else min(extent))
        drafted = image.draft(None, (max(1, int(image.width * scale)), max(1, int(image.height * scale))))
        extent = drafted[1][2:] if drafted else extent
    image.load()
    upright = _TO_UPRIGHT.get(_orientation(image))
    image = _rgb(image)
    if transform.aspect == "pad":
        image = padded_square(image, extent, margins, transform.edge, transform.background, transform.resample)
    else:
        image = resized_middle(image, extent, transform.edge, transform.size, transform.resample)
    image = _centre(image, transform.size)
    return image if upright is None else image.transpose(upright)


def _scaled(size: tuple[int, int], edge: int) -> tuple[int, int]:
    short = min(size)
    width, height = (edge if side == short else int(edge * side / short) for side in size)
    return width, height


def _centre(image: Image.Image, size: int) -> Image.Image:
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # convert() would clip 16 bits to 8 and leave white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(int(ExifTags.Base.Orientation))
    except Exception:  # damaged EXIF says nothing about the orientation, and the pixels are whole
        return None


def _edge(size: Any) -> int:
    if isinstance(size, int):
        return size
    sides = dict(size)
    edges = {int(sides[name]) for name in ("height", "width", "shortest_edge") if sides.get(name)}
    if len(edges) != 1:
        raise UserError(f"the model's image processor works with {size}: only squares can be reproduced")
    return edges.pop()
