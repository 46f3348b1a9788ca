"""Drawn scenes are reproducible, and their questions have the answers that the picture shows."""

from __future__ import annotations

import io
import math
import re
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from infra.demo.questions import KINDS, ask, caption
from infra.demo.scenes import COLOURS, EVALUATION, RGB, SHAPES, TRAINING, draw, encode_jpeg, instance_map, sample_scene

indices = st.integers(0, 50_000)


def shown(index: int) -> list[tuple[str, str, int]]:
    """(shape, colour, pixels) of each object, colour and size read off the picture, not off the scene."""
    scene = sample_scene(EVALUATION, index)
    pixels, instances = np.asarray(draw(scene), np.float32), np.asarray(instance_map(scene))
    found = []
    for number, o in enumerate(scene.objects, 1):
        mine = pixels[instances == number]
        median = np.median(mine, axis=0)
        nearest = min(COLOURS, key=lambda name: float(np.linalg.norm(median - np.array(RGB[name]))))
        found.append((o.shape, nearest, len(mine)))
    return found


@given(indices)
def test_the_same_number_gives_the_same_scene_and_another_stream_another(index: int) -> None:
    assert encode_jpeg(sample_scene(TRAINING, index)) == encode_jpeg(sample_scene(TRAINING, index))
    assert sample_scene(TRAINING, index).objects != sample_scene(EVALUATION, index).objects


@given(indices)
def test_objects_lie_inside_apart_and_the_first_is_the_largest(index: int) -> None:
    scene = sample_scene(EVALUATION, index)
    for i, one in enumerate(scene.objects):
        assert one.radius - 1e-6 <= one.x <= scene.width - one.radius + 1e-6
        assert one.radius - 1e-6 <= one.y <= scene.height - one.radius + 1e-6
        for other in scene.objects[:i]:
            assert math.hypot(one.x - other.x, one.y - other.y) > one.radius + other.radius
    areas = [count for _, _, count in shown(index)]
    assert all(areas[0] > 1.2 * area for area in areas[1:])


@given(indices, st.integers(0, 1000))
def test_answers_are_what_the_picture_shows(index: int, seed: int) -> None:
    scene, objects = sample_scene(EVALUATION, index), shown(index)
    for one in ask(scene, np.random.default_rng(seed), per_kind=3):
        assert one.answer == answer_from_picture(one.question, objects, [o.digit for o in scene.objects]), one


def answer_from_picture(question: str, objects: list[tuple[str, str, int]], digits: list[int | None]) -> str:
    if match := re.fullmatch(r"What color is the (\w+)\?", question):
        (colour,) = [c for s, c, _ in objects if s == match[1]]
        return colour
    if match := re.fullmatch(r"What shape is the (\w+) object\?", question):
        (shape,) = [s for s, c, _ in objects if c == match[1]]
        return shape
    if match := re.fullmatch(r"How many (\w+) ?(shapes)? are there\?", question):
        word = match[1].removesuffix("s").removesuffix("crosse") or "cross"
        word = "cross" if match[1] == "crosses" else word
        if match[1] == "shapes":
            return str(len(objects))
        return str(sum(word in (s, c) for s, c, _ in objects))
    if match := re.fullmatch(r"Is there an? (\w+)( shape)?\?", question):
        return "yes" if any(match[1] in (s, c) for s, c, _ in objects) else "no"
    if match := re.fullmatch(r"Is there an? (\w+) (\w+)\?", question):
        return "yes" if any((s, c) == (match[2], match[1]) for s, c, _ in objects) else "no"
    if match := re.fullmatch(r"What digit is on the (\w+) (\w+)\?", question):
        (digit,) = [d for (s, c, _), d in zip(objects, digits, strict=True) if (s, c) == (match[2], match[1])]
        return str(digit)
    assert question == "Describe the image."
    shape, colour, _ = max(objects, key=lambda o: o[2])
    rest = len(objects) - 1
    head = f"{'an' if colour == 'orange' else 'a'} {colour} {shape}"
    return head if not rest else f"{head} and {rest} smaller shape{'s' if rest > 1 else ''}"


def test_every_kind_is_asked_and_presence_is_balanced() -> None:
    asked = [one for i in range(300) for one in ask(sample_scene(EVALUATION, i), np.random.default_rng(i))]
    assert {one.kind for one in asked} == set(KINDS)
    presence = [one.answer for one in asked if one.kind == "presence"]
    assert 0.4 < presence.count("yes") / len(presence) < 0.6
    assert {one.answer for one in asked if one.kind == "colour"} == set(COLOURS)
    assert {one.answer for one in asked if one.kind == "shape"} == set(SHAPES)
    assert {one.answer for one in asked if one.kind == "digit"} == set("0123456789")


def test_sizes_aspect_ratios_and_jpeg_qualities_vary() -> None:
    pictures: list[Any] = [Image.open(io.BytesIO(encode_jpeg(sample_scene(EVALUATION, i)))) for i in range(60)]
    ratios = [p.width / p.height for p in pictures]
    assert min(ratios) < 0.75 < 1.33 < max(ratios)
    assert len({p.size for p in pictures}) > 50
    assert len({tuple(p.quantization[0]) for p in pictures}) > 10


def test_a_caption_names_the_largest_object() -> None:
    scene = next(s for s in (sample_scene(EVALUATION, i) for i in range(100)) if len(s.objects) == 3)
    first = scene.objects[0]
    assert caption(scene).endswith(f"{first.colour} {first.shape} and 2 smaller shapes")
