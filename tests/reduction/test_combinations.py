"""The whole product of the table: every (place, filter, correlate, compress) runs, or says what does not fit."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from reduction.methods import COMPRESSIONS, CORRELATIONS, FILTERS, METHODS, Place
from reduction.settings import Reduction, ReductionError
from tests.clip_checkpoint import installed
from tests.tiny import tiny_images, tiny_llava, tiny_prompts

HOSTS: dict[Place, str] = {
    "vision": "hired:9",
    "projector": "random:9",
    "language": "fastv:9",
}
"""A method of each place, to put stages into."""
STAGES = list(product(FILTERS, CORRELATIONS, COMPRESSIONS))


def written(host: str, stages: tuple[str, str, str]) -> str:
    return host + "".join(
        f",{what}={name}" for what, name in zip(("filter", "correlate", "compress"), stages, strict=True)
    )


def fits(place: Place, stages: tuple[str, str, str]) -> bool:
    """What makes sense, told a second time: stages of the place; something moved has somewhere to go."""
    filter_, correlate, compress = stages
    if any(place not in table[name] for table, name in zip((FILTERS, CORRELATIONS, COMPRESSIONS), stages, strict=True)):
        return False
    if compress == "prune":
        return True
    if correlate == "window" and filter_ != "windows":
        return False
    makers = {"importance": "fuse", "equal": "fuse", "nearest": "add", "clusters": "recycle"}
    return (
        compress == makers[correlate]
        if correlate in makers
        else compress not in makers.values() and correlate != "none"
    )


@pytest.mark.parametrize("place", HOSTS)
@torch.no_grad()
def test_every_combination_runs_or_says_why_not(place: Place) -> None:
    model = tiny_llava(vision_layers=3, decoder_layers=3)
    images, inputs = tiny_images(2), tiny_prompts([1, 5], [[3, 4, 5], [9]])
    ran = 0
    for stages in STAGES:
        text = written(HOSTS[place], stages)
        if not fits(place, stages):
            with pytest.raises(ReductionError) as error:
                Reduction.parse(text)
            assert any(name in str(error.value) for name in stages), text
            assert str(error.value).endswith("."), text
            continue
        if stages[2] == "prune" and stages[1] != "none":
            continue  # What is pruned has no correlation: the same as with none.
        with installed(model, text) as chosen:
            logits = model(**inputs, pixel_values=images, logits_to_keep=1).logits
        assert bool(logits.isfinite().all()), text
        assert chosen.visual_tokens_left == 9, text
        ran += 1
    assert ran > 20


@pytest.mark.parametrize("method", [name for name in METHODS if name != "dense"])
def test_every_method_takes_what_its_places_take(method: str) -> None:
    places = list(METHODS[method])
    for stages in STAGES:
        text = written(f"{method}:9", stages)
        if all(fits(place, stages) for place in places):
            setting = Reduction.parse(text)
            assert all(setting.stages(place) == stages for place in places)
            assert Reduction.parse(str(setting)) == setting
        else:
            with pytest.raises(ReductionError, match=r"made for the|needs a weight|does not say|does not keep one"):
                Reduction.parse(text)
