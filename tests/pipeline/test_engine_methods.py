"""Every method of the table through the engine: the answers are those of `generate` under `install`."""

from __future__ import annotations

import pytest

from pipeline.engine import Request
from reduction.methods import METHODS
from tests.pipeline.test_engine import PREFIX, generated_by_transformers, make_engine, pictures, suffixes
from tests.tiny import tiny_llava

NEW = [name for name in METHODS if name != "dense" and not name.startswith("ficoco")]
EXCHANGED = [
    "ficoco-v:9,compress=prune",
    "ficoco-v:9,filter=bipartite,correlate=cosine,compress=size_mean",
    "fastv:9,filter=random",
    "fastv:9,correlate=importance,compress=fuse",
    "ficoco-l:9,filter=max_min,correlate=cosine,compress=merge",
]


@pytest.mark.parametrize("positions", ["original", "packed"])
@pytest.mark.parametrize("setting", [*(f"{name}:9" for name in NEW), *EXCHANGED])
def test_answers_are_those_of_generate_also_where_questions_share_an_image(setting: str, positions: str) -> None:
    text, model, asked = f"{setting},positions={positions}", tiny_llava(3), suffixes(5)
    images, image = pictures(2), [0, 1, 1, 0, 1]
    requests = [Request(i, tuple(s)) for i, s in zip(image, asked, strict=True)]
    got = make_engine(model, text).answer(images, PREFIX, requests)
    assert [g.tokens for g in got] == generated_by_transformers(model, text, images[image], asked)
