"""Questions about a drawn scene, with their answers: colour, shape, count, presence, digit and caption."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from infra.demo.scenes import COLOURS, SHAPES, Object, Scene

KINDS = ("colour", "shape", "count", "presence", "digit", "caption")
CAPTION_PROMPT = "Describe the image."


@dataclass(frozen=True, slots=True)
class Asked:
    kind: str
    question: str
    answer: str


def caption(scene: Scene) -> str:
    """Return the scene's caption: its largest object, and how many smaller ones there are."""
    first, rest = scene.objects[0], len(scene.objects) - 1
    head = f"{_article(first.colour)} {first.colour} {first.shape}"
    if rest == 0:
        return head
    return f"{head} and {rest} smaller shape{'s' if rest > 1 else ''}"


def ask(
    scene: Scene, rng: np.random.Generator, per_kind: int = 1, extra: Mapping[str, int] | None = None
) -> list[Asked]:
    """Return up to `per_kind` questions, and `extra` ones, of every kind that has an unambiguous answer here."""
    asked: list[Asked] = []
    for kind in KINDS:
        for _ in range(1 if kind == "caption" else per_kind + (extra or {}).get(kind, 0)):
            one = _ASK[kind](scene, rng)
            if one is not None and one not in asked:
                asked.append(one)
    return asked


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _pick(rng: np.random.Generator, objects: list[Object]) -> Object | None:
    return objects[int(rng.integers(len(objects)))] if objects else None


def _unique(scene: Scene, attribute: str) -> list[Object]:
    counts = Counter(getattr(o, attribute) for o in scene.objects)
    return [o for o in scene.objects if counts[getattr(o, attribute)] == 1]


def _ask_colour(scene: Scene, rng: np.random.Generator) -> Asked | None:
    one = _pick(rng, _unique(scene, "shape"))
    return Asked("colour", f"What color is the {one.shape}?", one.colour) if one else None


def _ask_shape(scene: Scene, rng: np.random.Generator) -> Asked | None:
    one = _pick(rng, _unique(scene, "colour"))
    return Asked("shape", f"What shape is the {one.colour} object?", one.shape) if one else None


def _ask_count(scene: Scene, rng: np.random.Generator) -> Asked | None:
    form = rng.random()
    if form < 0.25:
        return Asked("count", "How many shapes are there?", str(len(scene.objects)))
    present = scene.objects[int(rng.integers(len(scene.objects)))]
    if form < 0.7:
        shape = present.shape if rng.random() < 0.8 else str(rng.choice(SHAPES))
        plural = "crosses" if shape == "cross" else f"{shape}s"
        return Asked("count", f"How many {plural} are there?", str(sum(o.shape == shape for o in scene.objects)))
    colour = present.colour if rng.random() < 0.8 else str(rng.choice(COLOURS))
    return Asked("count", f"How many {colour} shapes are there?", str(sum(o.colour == colour for o in scene.objects)))


def _ask_presence(scene: Scene, rng: np.random.Generator) -> Asked | None:
    """Ask for a shape, a colour or both; half of the answers are yes, most noes to both share one of the two."""
    form, wanted = rng.random(), bool(rng.random() < 0.5)
    one = scene.objects[int(rng.integers(len(scene.objects)))]
    answer = "yes" if wanted else "no"
    if form < 0.25:
        shape = one.shape if wanted else _absent(rng, SHAPES, {o.shape for o in scene.objects})
        return Asked("presence", f"Is there {_article(shape)} {shape}?", answer)
    if form < 0.5:
        colour = one.colour if wanted else _absent(rng, COLOURS, {o.colour for o in scene.objects})
        return Asked("presence", f"Is there {_article(colour)} {colour} shape?", answer)
    pairs = {(o.colour, o.shape) for o in scene.objects}
    colour, shape = one.colour, one.shape
    while not wanted and (colour, shape) in pairs:
        colour = str(rng.choice(COLOURS)) if rng.random() < 0.6 else colour
        shape = str(rng.choice(SHAPES)) if rng.random() < 0.6 else shape
    return Asked("presence", f"Is there {_article(colour)} {colour} {shape}?", answer)


def _absent(rng: np.random.Generator, names: tuple[str, ...], present: set[str]) -> str:
    return str(rng.choice([name for name in names if name not in present]))


def _ask_digit(scene: Scene, rng: np.random.Generator) -> Asked | None:
    pairs = Counter((o.colour, o.shape) for o in scene.objects)
    one = _pick(rng, [o for o in scene.objects if o.digit is not None and pairs[o.colour, o.shape] == 1])
    return Asked("digit", f"What digit is on the {one.colour} {one.shape}?", str(one.digit)) if one else None


def _ask_caption(scene: Scene, rng: np.random.Generator) -> Asked | None:
    return Asked("caption", CAPTION_PROMPT, caption(scene))


_ASK = {
    "colour": _ask_colour,
    "shape": _ask_shape,
    "count": _ask_count,
    "presence": _ask_presence,
    "digit": _ask_digit,
    "caption": _ask_caption,
}
