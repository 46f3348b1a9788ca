"""What the tests of `install` feed a tiny model with."""

from __future__ import annotations

from typing import Any

import torch

from tests.tiny import tiny_images, tiny_prompts

SUFFIXES = [[3, 4, 5, 6], [7, 8]]
TEXTS = ["ficoco-v:5", "ficoco-l:5", "ficoco-vl:5", "ficoco-vl:5,positions=packed"]


def inputs(side: str = "left", **more: Any) -> dict[str, Any]:
    images = tiny_images(2, dtype=torch.float64)
    return {**tiny_prompts([1, 9], SUFFIXES, side=side), "pixel_values": images, **more}


def generate(model: Any, **options: Any) -> torch.Tensor:
    return model.generate(**inputs(**options), max_new_tokens=7, min_new_tokens=7, do_sample=False)
