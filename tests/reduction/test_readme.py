"""The README's method of one's own runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import reduction
from reduction.language import reduce_visual
from reduction.methods import FILTERS, METHODS
from reduction.settings import Reduction
from tests.tiny import tiny_images, tiny_llava, tiny_prompts

README = Path(reduction.__file__).with_name("README.md").read_text(encoding="utf-8")


def test_a_method_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    example = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "METHODS[" in block)
    # What the example adds to the tables is gone after the test.
    for table in (FILTERS, METHODS):
        monkeypatch.setitem(table, "unusual", {})
        monkeypatch.setitem(table, "nearest_to_mean", {})
    model = tiny_llava(1)
    inputs = {**tiny_prompts([1, 5], [[3, 4, 5], [6]]), "pixel_values": tiny_images(2)}
    exec(example.replace("unusual:64", "unusual:5"), {"model": model, "inputs": inputs})
    with reduction.install(model, "unusual:5,correlate=cosine,compress=merge") as chosen, torch.no_grad():
        assert chosen.visual_tokens_left == 5
        assert bool(model(**inputs).logits.isfinite().all())
    hidden, queries, keys = torch.randn(1, 20, 8), torch.randn(1, 4, 20, 2), torch.randn(1, 2, 20, 2)
    setting = Reduction.parse("fastv:5,filter=nearest_to_mean")
    _, kept = reduce_visual(hidden, queries, keys, start=2, count=16, n_drop=11, reduction=setting)
    visual = hidden[0, 2:18]
    likeness = [float(torch.cosine_similarity(token, visual.mean(0), dim=0)) for token in visual]
    assert kept[0].tolist() == sorted(sorted(range(16), key=likeness.__getitem__)[:5])


def test_every_method_and_stage_is_named() -> None:
    from reduction.methods import COMPRESSIONS, CORRELATIONS

    for table in (METHODS, FILTERS, CORRELATIONS, COMPRESSIONS):
        assert [name for name in table if f"`{name}`" not in README] == []
