"""What the stages build: nothing of size N x N, and nothing the host must wait for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from reduction.language import reduce_visual
from reduction.patches import Patches
from reduction.settings import Reduction
from reduction.vision import reduce_patches
from tests.reduction.counted import as_on_a_device

COUNT, DROP = 100, 20
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "_unique2")


class Recorder(TorchDispatchMode):
    """Notes the operations and the shapes they make."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.squares: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.names.add(func.__name__.split(".")[0])
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and sum(size >= COUNT - DROP for size in tensor.shape) >= 2:
                self.squares.add(tuple(tensor.shape))
        return result


def reduce_in_tower(setting: Reduction) -> None:
    hidden, queries, keys = torch.randn(3, 2, COUNT + 1, 8)
    patches = Patches(queries, keys, first=1, heads=2, cells=torch.arange(COUNT).expand(2, -1), grid=10)
    reduce_patches(hidden, patches, DROP, setting)


def reduce_in_decoder(setting: Reduction) -> None:
    hidden, queries, keys = torch.randn(2, 120, 8), torch.randn(2, 4, 120, 2), torch.randn(2, 2, 120, 2)
    text = torch.ones(2, 12, dtype=torch.bool)
    reduce_visual(hidden, queries, keys, start=8, count=COUNT, n_drop=DROP, reduction=setting, text=text)


VISION = [
    "",
    "cls_scores=raw",
    "cls_scores=keys",
    "normalise=zscore",
    "compress=mean",
    "filter=random",
    "filter=stride",
]
LANGUAGE = ["", "text_scores=raw", "text_scores=raw,text_direction=vision_to_text", "correlate=attention"]


def record(text: str) -> Recorder:
    setting = Reduction.parse(text)
    reduce = reduce_in_tower if setting.method == "ficoco-v" else reduce_in_decoder
    reduce(setting)  # random orders are drawn once and kept
    with Recorder() as recorder:
        reduce(setting)
    return recorder


@pytest.mark.parametrize(
    "text", [f"ficoco-v:9,{o}".strip(",") for o in VISION] + [f"ficoco-l:9,{o}".strip(",") for o in LANGUAGE]
)
def test_cost_is_linear_and_nothing_waits(text: str) -> None:
    assert record(text).squares == set()
    with as_on_a_device():
        recorder = record(text)
    assert recorder.squares == set()
    assert not recorder.names & set(WAITS)


@pytest.mark.parametrize("text", ["ficoco-v:9,patch_scores=softmax", "ficoco-l:9,patch_scores=softmax"])
def test_softmax_among_patches_is_the_exception(text: str) -> None:
    with as_on_a_device():
        recorder = record(text)
    assert recorder.squares
    assert not recorder.names & set(WAITS)
