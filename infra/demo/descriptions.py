"""Texts about a drawn scene for the contrastive training of the text tower: captions, and questions that fit it."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from infra.demo.conversations import AFTER
from infra.demo.questions import ask, caption
from infra.demo.scenes import COLOURS, SHAPES, Object, Scene

Named = tuple[str | None, str | None]
"""A colour and a shape that a text speaks of together; None for the one that it leaves open."""


@dataclass(frozen=True, slots=True)
class Description:
    text: str
    named: tuple[Named, ...]
    """What a scene must show for the text to fit it."""

    def fits(self, scene: Scene) -> bool:
        return all(objects_named(one, scene) for one in self.named)


ALL_NAMED: tuple[Named, ...] = tuple((colour, shape) for colour in (*COLOURS, None) for shape in (*SHAPES, None))


def shows(scene: Scene) -> Tensor:
    """Return which of `ALL_NAMED` the scene shows: bool (kinds)."""
    return torch.tensor([bool(objects_named(one, scene)) for one in ALL_NAMED])


def needs(description: Description) -> Tensor:
    """Return which of `ALL_NAMED` a scene must show for the text to fit it: bool (kinds)."""
    return torch.tensor([one in description.named for one in ALL_NAMED])


def objects_named(named: Named, scene: Scene) -> list[int]:
    """Return the numbers, as in `instance_map`, of the objects of that colour and shape."""
    colour, shape = named
    return [
        number
        for number, o in enumerate(scene.objects, 1)
        if (colour is None or o.colour == colour) and (shape is None or o.shape == shape)
    ]


def named_in(question: str) -> Named | None:
    """Return the colour and shape that one of the demo's questions asks about; None where it names neither."""
    named = _first(COLOURS, question), _first(SHAPES, question)
    return None if named == (None, None) else named


def describe(scene: Scene, rng: np.random.Generator) -> Description:
    """Return one text that fits the scene: half the time a caption, else a question about something that is there."""
    if rng.random() < 0.5:
        return _caption(scene, rng)
    fitting = [Description(one.question, (named,)) for one in ask(scene, rng) if (named := named_in(one.question))]
    fitting = [one for one in fitting if one.fits(scene)]
    if not fitting:
        return _caption(scene, rng)
    chosen = fitting[int(rng.integers(len(fitting)))]
    return Description(chosen.text + AFTER[int(rng.integers(len(AFTER)))], chosen.named)


def _first(names: tuple[str, ...], text: str) -> str | None:
    return next((name for name in names if re.search(rf"\b{name}(s|es)?\b", text)), None)


def _caption(scene: Scene, rng: np.random.Generator) -> Description:
    if rng.random() < 0.25:
        first = scene.objects[0]
        return Description(caption(scene), ((first.colour, first.shape),))
    order = [scene.objects[int(i)] for i in rng.permutation(len(scene.objects))]
    parts = [_phrase(o) for o in order]
    text = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return Description(text, tuple((o.colour, o.shape) for o in order))


def _phrase(o: Object) -> str:
    article = "an" if o.colour == "orange" else "a"
    return f"{article} {o.colour} {o.shape}"
