"""What an example of the report says about a picture against the trace and the engine's own answer."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

from pipeline.engine import Request
from pipeline.prompts import PromptFormat
from pipeline.report_flows import answer_and_flow, make_example, patch_moves
from reduction.methods import Place
from reduction.shapes import from_config
from reduction.trace import Step, Trace
from tests.checkpoint import tiny_tokenizer
from tests.pipeline.test_engine import make_engine, pictures
from tests.tiny import IMAGE_TOKEN, tiny_config, tiny_llava

VISION: Place = "vision"


def trace_of(kept: list[int], shares: list[list[float]], strategy: str = "default") -> Trace:
    """A pass over 2 x 2 patches that ended like this."""
    config = tiny_config(grid=2, strategy="full" if strategy == "full" else "default")
    return Trace(from_config(config), [Step(VISION, torch.tensor([kept]), torch.tensor([shares]))])


def test_a_patch_goes_where_most_of_it_went() -> None:
    trace = trace_of([1, 3], [[0.5, 0.5, 0.0, 0.0], [0.1, 0.0, 0.0, 0.9]])
    kept, moved = patch_moves(trace)
    assert kept == (1, 3)
    assert [(cell, target, round(share, 4)) for cell, target, share in moved] == [(0, 1, 0.8333)]


def test_cls_among_the_tokens_is_no_patch() -> None:
    shares = [[0.6, 0.4, 0.0, 0.0, 0.0], [0.0, 0.1, 0.5, 0.4, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0]]
    assert patch_moves(trace_of([0, 2, 4], shares, "full")) == ((1, 3), ((2, 1, 1.0),))


@pytest.mark.parametrize("setting", ["dense", "ficoco-v:5", "tome:5", "ficoco-l:5", "random:5"])
def test_the_flow_is_the_engines_own_pass(setting: str) -> None:
    model, tokenizer, picture = tiny_llava(3), tiny_tokenizer(), pictures(1)
    prompt = PromptFormat(tokenizer, IMAGE_TOKEN).encode("How many?")
    flow = answer_and_flow(make_engine(model, setting), picture[0].numpy(), prompt, tokenizer)
    (plain,) = make_engine(model, setting).answer(picture, prompt.prefix_ids, [Request(0, prompt.suffix_ids)])
    assert flow.answer == str(tokenizer.decode(list(plain.tokens), skip_special_tokens=True)).strip()
    assert len(flow.kept) == (16 if setting == "dense" else 5)
    sources = [cell for cell, _, _ in flow.moved]
    assert {target for _, target, _ in flow.moved} <= set(flow.kept)
    assert not set(sources) & set(flow.kept)
    assert len(sources) == (0 if setting in ("dense", "random:5") else 11)
    assert all(0 < share <= 1 for _, _, share in flow.moved)


def test_an_example_is_a_small_jpeg() -> None:
    example = make_example(pictures(1)[0].numpy(), 4, "key", "Why?", ["so"], [], side=28)
    with Image.open(io.BytesIO(example.jpeg)) as image:
        assert (image.format, image.size) == ("JPEG", (28, 28))
    assert (example.grid, example.references) == (4, ("so",))
