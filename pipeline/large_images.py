"""Resizes images that are too large, or too long, to be handled as the model's own processor handles them.

The same geometry with less memory: libjpeg scales while decoding, whole blocks of pixels are averaged, and only then is
there a square or a resize. Positions stay exact: the extents of the scaled image are kept as fractions.
"""

from __future__ import annotations

import math

from PIL import Image

Extent = tuple[float, float]
"""Width and height of the picture within an image whose last column or row it fills only in part."""
_GAP = 3
"""Block averaging stops at this multiple of the target, where the resize still hides it."""


def padded_square(
    image: Image.Image, extent: Extent, margins: Extent, edge: int, background: tuple[int, int, int], resample: int
) -> Image.Image:
    """The picture on a square of the background colour, resized to ``edge`` x ``edge``.

    Args:
        margins: left and upper margin as shares of the square's side.
    """
    image, extent = _averaged(image, extent, max(extent) / edge)
    side = max(extent)
    left, top = margins[0] * side, margins[1] * side
    corner = math.ceil(left), math.ceil(top)
    room = [size if margin == 0 else math.ceil(side) + 2 for size, margin in zip(image.size, (left, top), strict=True)]
    canvas = Image.new("RGB", (max(room[0], math.ceil(side)), max(room[1], math.ceil(side))), background)
    canvas.paste(image, corner)
    start = corner[0] - left, corner[1] - top
    box = (*start, min(start[0] + side, canvas.width), min(start[1] + side, canvas.height))
    return canvas.resize((edge, edge), resample, box=box)


def resized_middle(image: Image.Image, extent: Extent, edge: int, size: int, resample: int) -> Image.Image:
    """The picture resized to the shortest side ``edge``, or as much of it as its central ``size`` square needs."""
    image, extent = _averaged(image, extent, min(extent) / edge)
    scale = edge / min(extent)
    target = [max(1, int(side * scale + 1e-6)) for side in extent]
    wanted = [min(side, 2 * size + (side - 2 * size) % 2) for side in target]
    margins = [(whole - part) / 2 / whole * side for whole, part, side in zip(target, wanted, extent, strict=True)]
    box = (margins[0], margins[1], extent[0] - margins[0], extent[1] - margins[1])
    return image.resize((wanted[0], wanted[1]), resample, box=box)


def _averaged(image: Image.Image, extent: Extent, shrink: float) -> tuple[Image.Image, Extent]:
    factor = int(shrink / _GAP)
    if factor < 2:
        return image, extent
    across, down = min(factor, image.width), min(factor, image.height)
    return image.reduce((across, down)), (extent[0] / across, extent[1] / down)
