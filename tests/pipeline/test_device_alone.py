"""The hot path never waits for the device: it runs on the meta device, where no value can be read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.decoder import Prompts, pad_suffixes
from pipeline.decoding import Decoding
from pipeline.engine import Engine
from pipeline.generation import GenerationSettings
from pipeline.step_graphs import StepGraphs
from reduction.methods import METHODS
from reduction.settings import Reduction
from tests.pipeline.test_engine import MEAN, PREFIX, STD, pictures, suffixes
from tests.tiny import tiny_llava

SETTINGS = [
    "dense",
    *(f"{name}:4" for name in METHODS if name not in ("dense", "cdpruner", "trim")),
    "ficoco-l:5,positions=packed",
    "ficoco-vl:5,positions=packed",
]


class HostReadError(RuntimeError):
    pass


class NoHostMemory(TorchDispatchMode):
    """What is recorded as a CUDA graph must not copy from the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor) and value.device.type == "cpu":
                raise HostReadError(f"{func} reads host memory")
        return func(*args, **(kwargs or {}))


class NoConstants(TorchFunctionMode):
    """Nor make a tensor of a list, whose copying the mode above is not told of."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.tensor, torch.as_tensor):
            raise HostReadError(f"{func} copies from the host")
        return func(*args, **(kwargs or {}))


def meta_engine(text: str) -> Engine:
    model: Any = tiny_llava(2, dtype=torch.bfloat16)
    model = model.to("meta")
    generation = GenerationSettings(max_new_tokens=12)
    return Engine(
        model, Reduction.parse(text), mean=MEAN, std=STD, stop_tokens=frozenset([2]), settings=generation, graphs=True
    )


def prefilled(engine: Engine) -> Decoding:
    asked = suffixes(3)
    visual, kept = engine.encode(pictures(3))
    suffix, lengths = pad_suffixes(asked, engine.device)
    ids = torch.tensor(PREFIX, device=engine.device)
    prompts = Prompts(ids, visual, kept, suffix, lengths, torch.arange(3, device=engine.device))
    steps = engine._steps(3, engine.decoder.base(len(PREFIX)), engine.decoder.room(30))
    decoding = Decoding(steps, engine.settings, engine.stop)
    logits = engine.decoder.prefill(prompts, decoding.places(3))
    decoding.join(range(3), [len(one) for one in asked], ["a", "b", "c"], logits)
    return decoding


@pytest.mark.parametrize("text", SETTINGS)
@torch.inference_mode()
def test_no_value_is_read_between_pictures_and_tokens(text: str) -> None:
    decoding = prefilled(meta_engine(text))
    for rows in ([0, 1, 2], [0, 2], [1]):
        decoding._keep(rows)
        decoding.advance()
        assert decoding._chosen.shape == (len(rows),)
        assert decoding._chosen.device.type == "meta"


@pytest.mark.parametrize("text", ["dense", "ficoco-v:5", "ficoco-l:5", "ficoco-l:5,positions=packed"])
@torch.inference_mode()
def test_a_recorded_step_touches_the_device_alone(text: str) -> None:
    decoding = prefilled(meta_engine(text))
    decoding.advance()
    steps = decoding._steps
    assert isinstance(steps, StepGraphs)
    (recorded,) = steps._recorded.values()
    with NoHostMemory(), NoConstants():
        recorded.replay()
    with NoHostMemory(), NoConstants():
        with pytest.raises(HostReadError):
            recorded.tokens.copy_(torch.zeros(len(recorded.tokens), dtype=torch.long))
        with pytest.raises(HostReadError):
            torch.tensor([0], device="meta")
