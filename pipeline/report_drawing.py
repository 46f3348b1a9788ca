"""One picture under one setting, drawn: kept patches clear, dropped ones dim, arrows to where their content went."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from pipeline.comparison import Flow
from pipeline.errors import UserError
from pipeline.report_overlay import Move, strongest

SIDE, MARGIN, GAP = 1440, 48, 40
"""Of a picture, around the whole and between two, at the size drawn at; what is returned is half of it."""
PAPER, INK, SOFT = (251, 250, 246), (31, 30, 27), (109, 106, 98)
ARROW, HALO = (255, 210, 94), (11, 12, 16)
DIM = 0.27
"""Of its light a dropped patch keeps."""


def draw(picture: npt.NDArray[np.uint8], grid: int, flow: Flow, title: Sequence[str], arrows: int) -> Image.Image:
    """The picture, (side, side, 3), as it is and with `flow` over it; `title` above, its first line in large type.

    Raises:
        UserError: this machine cannot draw text.
    """
    lines = _wrapped(title, 2 * SIDE + GAP)
    top = MARGIN + sum(round(1.4 * font.size) for _, font, _ in lines) + 16
    canvas = Image.new("RGB", (2 * (SIDE + MARGIN) + GAP, top + SIDE + MARGIN), PAPER)
    pen, y = ImageDraw.Draw(canvas), MARGIN - 12
    for text, font, colour in lines:
        pen.text((MARGIN, y), text, font=font, fill=colour)
        y += round(1.4 * font.size)
    whole = Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    canvas.paste(whole, (MARGIN, top))
    canvas.paste(_overlaid(whole, grid, flow, arrows), (MARGIN + SIDE + GAP, top))
    return canvas.resize((canvas.width // 2, canvas.height // 2), Image.Resampling.LANCZOS)


def _overlaid(whole: Image.Image, grid: int, flow: Flow, arrows: int) -> Image.Image:
    light = np.full(grid * grid, DIM)
    light[list(flow.kept)] = 1.0
    edges = np.arange(SIDE) * grid // SIDE
    shade = light.reshape(grid, grid)[edges][:, edges]
    drawn = Image.fromarray((np.asarray(whole) * shade[..., None]).astype(np.uint8))
    pen = ImageDraw.Draw(drawn)
    for move in reversed(strongest(flow.moved, arrows)):
        _arrow(pen, move, grid)
    return drawn


def _arrow(pen: ImageDraw.ImageDraw, move: Move, grid: int) -> None:
    """From the middle of the dropped patch to the edge of its target, which is framed; the wider the more moved."""
    cell = SIDE / grid
    (x1, y1), (x2, y2) = (((place % grid + 0.5) * cell, (place // grid + 0.5) * cell) for place in move[:2])
    width, angle = round(SIDE / 480 * (1 + move[2])), math.atan2(y2 - y1, x2 - x1)
    length = min(SIDE / 45, 0.6 * cell)
    x2, y2 = x2 - 0.3 * cell * math.cos(angle), y2 - 0.3 * cell * math.sin(angle)
    column, row = move[1] % grid * cell, move[1] // grid * cell
    for colour, more in ((HALO, 3), (ARROW, 0)):
        pen.rectangle([column, row, column + cell, row + cell], outline=colour, width=width + more)
        reach = length + 2 * more
        wings = [(x2 - reach * math.cos(angle + side), y2 - reach * math.sin(angle + side)) for side in (-0.4, 0.4)]
        pen.line(
            [(x1, y1), (x2 - 0.8 * length * math.cos(angle), y2 - 0.8 * length * math.sin(angle))],
            colour,
            width + 2 * more,
        )
        spot = 1.3 * width + more
        pen.ellipse([x1 - spot, y1 - spot, x1 + spot, y1 + spot], fill=colour)
        pen.polygon([(x2 + more * math.cos(angle), y2 + more * math.sin(angle)), *wings], fill=colour)


def _wrapped(title: Sequence[str], width: int) -> list[tuple[str, ImageFont.FreeTypeFont, tuple[int, int, int]]]:
    """Lines that fit the width, each with its font and colour."""
    found = []
    for number, text in enumerate(title):
        font, colour = _font(38 if number else 56), SOFT if number else INK
        line = ""
        for word in " ".join(text.split()).split(" "):
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > width:
                found.append((line, font, colour))
                longer = word
            line = longer
        found.append((line, font, colour))
    return found


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise UserError("this Pillow was built without FreeType and cannot draw text: install Pillow's own wheel")
    return font
