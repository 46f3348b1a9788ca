"""Every method of the table through the engine: answers as `model.generate` gives them, whatever the batch."""

from __future__ import annotations

import pytest

from pipeline.engine import Request
from reduction.methods import METHODS
from tests.pipeline.test_engine import PREFIX, generated_by_transformers, make_engine, pictures, suffixes
from tests.tiny import tiny_llava

TEXTS = [f"{method}:9" for method in METHODS if method != "dense" and not method.startswith("ficoco")]


@pytest.mark.parametrize("text", [*TEXTS, "sparsevlm:9,positions=packed", "pyramiddrop:9,positions=packed"])
def test_greedy_answers_are_those_of_generate_alone_and_together(text: str) -> None:
    model, images, asked = tiny_llava(3), pictures(4), suffixes(4)
    engine = make_engine(model, text)
    together = engine.answer(images, PREFIX, [Request(i, tuple(s)) for i, s in enumerate(asked)])
    assert [one.tokens for one in together] == generated_by_transformers(model, text, images, asked)
    for row, suffix in enumerate(asked):
        (alone,) = engine.answer(images[row : row + 1], PREFIX, [Request(0, tuple(suffix))])
        assert alone.tokens == together[row].tokens
