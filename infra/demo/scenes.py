"""Drawn scenes: coloured shapes, some with a digit, on textured backgrounds with clutter that nobody asks about.

A `Scene` is only numbers, drawn from a seed; `draw` turns it into a picture and `instance_map` into the ground truth
of which object lies under which pixel. Sizes, aspect ratios, backgrounds and clutter vary widely, so that a model
which answers from proportions ("how much of the picture is red") fails and one that looks things up does not.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SHAPES = ("circle", "square", "triangle", "star", "cross")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
RGB = {
    "red": (215, 30, 35),
    "green": (30, 160, 55),
    "blue": (35, 70, 215),
    "yellow": (240, 220, 40),
    "purple": (135, 45, 165),
    "orange": (245, 135, 25),
}
ROUND_RADIUS = {"circle": 1.0, "square": 1.253, "triangle": 1.555, "star": 1.462, "cross": 1.226}
"""Circumscribed radius of each shape with the area of a unit circle: "largest" means area, whatever the shape."""
TEXTURES = ("plain", "gradient", "stripes", "checks", "noise", "dots")
MAX_OBJECTS = 4
TRAINING, EVALUATION = 1, 2
"""Seed streams: scenes of different streams never share a generator state."""


@dataclass(frozen=True, slots=True)
class Object:
    shape: str
    colour: str
    digit: int | None
    x: float
    y: float
    """Centre in pixels."""
    size: float
    """Radius of the circle of the same area, in pixels."""
    angle: float
    rgb: tuple[int, int, int]

    @property
    def radius(self) -> float:
        """Of the circumscribed circle, in pixels."""
        return self.size * ROUND_RADIUS[self.shape]


@dataclass(frozen=True, slots=True)
class Scene:
    width: int
    height: int
    objects: tuple[Object, ...]
    """Largest first."""
    texture: str
    seed: tuple[int, int]
    """Seeds the background and the clutter, which carry no information."""


def sample_scene(stream: int, index: int) -> Scene:
    """Return scene number `index` of a stream (`TRAINING` or `EVALUATION`); the same arguments give the same scene."""
    rng = np.random.default_rng([stream, index])
    long_side = int(rng.integers(224, 449))
    aspect = float(np.exp(rng.uniform(-0.6, 0.6)))
    width, height = (long_side, int(long_side / aspect)) if aspect >= 1 else (int(long_side * aspect), long_side)
    shapes, colours = _palette(rng)
    objects: list[Object] = []
    for size in _sizes(rng, int(rng.choice([1, 2, 3, 4], p=[0.2, 0.3, 0.28, 0.22])), long_side):
        shape, colour = str(rng.choice(SHAPES, p=shapes)), str(rng.choice(COLOURS, p=colours))
        placed = _place(rng, objects, width, height, shape, size)
        if placed is not None:
            objects.append(_paint(rng, shape, colour, placed, long_side))
    return Scene(width, height, tuple(objects), str(rng.choice(TEXTURES)), (stream, index))


def _palette(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities over shapes and colours: in some scenes one shape or colour prevails, to give counts."""
    shapes, colours = np.ones(len(SHAPES)), np.ones(len(COLOURS))
    theme = rng.random()
    if theme < 0.3:
        shapes[rng.integers(len(SHAPES))] = 12
    elif theme < 0.5:
        colours[rng.integers(len(COLOURS))] = 12
    return shapes / shapes.sum(), colours / colours.sum()


def _sizes(rng: np.random.Generator, count: int, long_side: int) -> list[float]:
    """Return sizes, largest first; the largest stands out by a fifth, so that "the largest" has an answer."""
    largest = float(rng.uniform(0.105, 0.20 if count > 1 else 0.26)) * long_side
    others = [float(rng.uniform(0.07 * long_side, largest / 1.2)) for _ in range(count - 1)]
    return [largest, *sorted(others, reverse=True)]


def _place(
    rng: np.random.Generator, objects: list[Object], width: int, height: int, shape: str, size: float
) -> tuple[float, float, float] | None:
    """Return a free place as (x, y, size), or None where the scene is too full."""
    size = min(size, 0.46 * min(width, height) / ROUND_RADIUS[shape])
    if objects:
        size = min(size, objects[0].size / 1.2)
    radius = size * ROUND_RADIUS[shape]
    for _ in range(40):
        x, y = rng.uniform(radius, width - radius), rng.uniform(radius, height - radius)
        if all(math.hypot(x - o.x, y - o.y) > radius + o.radius + 2 for o in objects):
            return float(x), float(y), size
    return None


def _paint(
    rng: np.random.Generator, shape: str, colour: str, placed: tuple[float, float, float], long_side: int
) -> Object:
    x, y, size = placed
    digit = int(rng.integers(10)) if size > 0.085 * long_side and rng.random() < 0.6 else None
    r, g, b = (int(v) for v in np.clip(np.array(RGB[colour]) + rng.integers(-18, 19, 3), 0, 255))
    return Object(shape, colour, digit, x, y, size, float(rng.uniform(-0.35, 0.35)), (r, g, b))


def outline(o: Object) -> list[tuple[float, float]]:
    """Return the polygon of an object, in pixels (a circle as 40 points)."""
    r = o.radius
    if o.shape == "circle":
        polar = [(2 * math.pi * i / 40, r) for i in range(40)]
    elif o.shape == "square":
        polar = [(math.pi / 4 + math.pi / 2 * i, r) for i in range(4)]
    elif o.shape == "triangle":
        polar = [(-math.pi / 2 + 2 * math.pi / 3 * i, r) for i in range(3)]
    elif o.shape == "star":
        polar = [(-math.pi / 2 + math.pi / 5 * i, r if i % 2 == 0 else 0.5 * r) for i in range(10)]
    else:
        arm = math.atan2(0.34, 0.94)
        inner = 0.34 * math.sqrt(2)
        polar = []
        for i in range(4):
            base = math.pi / 2 * i
            polar += [(base - arm, r), (base + arm, r), (base + math.pi / 4, inner * r)]
    return [(o.x + d * math.cos(a + o.angle), o.y + d * math.sin(a + o.angle)) for a, d in polar]


def draw(scene: Scene) -> Image.Image:
    """Return the scene as an RGB picture of its own size."""
    rng = np.random.default_rng([7, *scene.seed])
    image = Image.fromarray(_background(rng, scene))
    pen = ImageDraw.Draw(image)
    _clutter(rng, pen, scene)
    for o in scene.objects:
        pen.polygon(outline(o), fill=o.rgb, outline=tuple(int(v * 0.6) for v in o.rgb))
        if o.digit is not None:
            ink = (10, 10, 10) if o.colour in ("yellow", "orange") else (250, 250, 250)
            font = ImageFont.load_default(size=max(10, int(o.size * 1.15)))
            pen.text((o.x, o.y), str(o.digit), fill=ink, font=font, anchor="mm", stroke_width=1, stroke_fill=ink)
    return image


def instance_map(scene: Scene) -> Image.Image:
    """Return which object lies under each pixel, at the picture's size: 0 is none, i is `objects[i - 1]`."""
    image = Image.new("L", (scene.width, scene.height))
    pen = ImageDraw.Draw(image)
    for i, o in enumerate(scene.objects, 1):
        pen.polygon(outline(o), fill=i)
    return image


def encode_jpeg(scene: Scene) -> bytes:
    """Return the scene's picture as JPEG, its quality varying from scene to scene."""
    quality = int(np.random.default_rng([9, *scene.seed]).integers(75, 96))
    buffer = io.BytesIO()
    draw(scene).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _background(rng: np.random.Generator, scene: Scene) -> np.ndarray:
    h, w = scene.height, scene.width
    grey, tint = rng.integers(60, 215), rng.integers(-18, 19, 3)
    a = np.clip(grey + tint, 0, 255).astype(np.float32)
    b = np.clip(grey + rng.integers(-45, 46) + rng.integers(-18, 19, 3), 0, 255).astype(np.float32)
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    period = float(rng.uniform(8, 40))
    angle = float(rng.uniform(0, math.pi))
    along = x * math.cos(angle) + y * math.sin(angle)
    if scene.texture == "plain":
        mix: np.ndarray = np.zeros((h, w), np.float32)
    elif scene.texture == "gradient":
        mix = (along - along.min()) / np.float32(np.ptp(along) + 1)
    elif scene.texture == "stripes":
        mix = (0.5 + 0.5 * np.sin(along * 2 * math.pi / period)).astype(np.float32)
    elif scene.texture == "checks":
        mix = ((x // period + y // period) % 2).astype(np.float32)
    elif scene.texture == "dots":
        mix = ((x % period - period / 2) ** 2 + (y % period - period / 2) ** 2 < (period / 4) ** 2).astype(np.float32)
    else:
        coarse = Image.fromarray(rng.integers(0, 256, (h // 12 + 2, w // 12 + 2), dtype=np.uint8))
        mix = np.asarray(coarse.resize((w, h), Image.Resampling.BILINEAR), np.float32) / 255
    grain = rng.normal(0, 5, (h, w, 1)).astype(np.float32)
    return np.clip(a + (b - a) * mix[..., None] + grain, 0, 255).astype(np.uint8)


def _clutter(rng: np.random.Generator, pen: ImageDraw.ImageDraw, scene: Scene) -> None:
    """Draw thin lines and specks, half of them in the objects' colours."""
    long_side = max(scene.width, scene.height)
    for _ in range(int(rng.integers(0, 9))):
        x, y = float(rng.uniform(0, scene.width)), float(rng.uniform(0, scene.height))
        palette = (
            RGB[str(rng.choice(COLOURS))] if rng.random() < 0.5 else tuple(int(v) for v in rng.integers(30, 226, 3))
        )
        reach = float(rng.uniform(0.01, 0.03)) * long_side
        if rng.random() < 0.5:
            dx, dy = rng.uniform(-6, 6, 2) * reach
            pen.line((x, y, x + float(dx), y + float(dy)), fill=palette, width=2)
        else:
            pen.ellipse((x - reach, y - reach, x + reach, y + reach), fill=palette)
