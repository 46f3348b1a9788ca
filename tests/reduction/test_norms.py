"""Norms and feed-forward parts against Hugging Face's own forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from reduction import norms
from reduction.feed_forward import add_feed_forward
from reduction.norms import normalise
from reduction.vision import tower_parts
from tests.tiny import tiny_llava

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def llama_norm(width: int, dtype: torch.dtype) -> LlamaRMSNorm:
    norm = LlamaRMSNorm(width)
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    return norm.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 7, 64), (1, 1, 64), (3, 0, 64), (1, 40, 320)])
@torch.no_grad()
def test_some_tokens_at_a_time_are_normalised_to_the_same_bits(
    dtype: torch.dtype, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(norms, "CACHED_VALUES", 3 * shape[-1])
    torch.manual_seed(0)
    states, norm = 3 * torch.randn(shape).to(dtype), llama_norm(shape[-1], dtype)
    before = states.clone()
    assert torch.equal(normalise(norm, states), norm(states))
    assert torch.equal(states, before)
    swapped = states.transpose(0, 1)
    assert torch.equal(normalise(norm, swapped), norm(swapped))


@torch.no_grad()
def test_a_weight_of_another_type_promotes_as_in_hugging_face() -> None:
    states, norm = torch.randn(2, 3, 8).bfloat16(), llama_norm(8, torch.float32)
    got = normalise(norm, states)
    assert got.dtype == torch.float32
    assert torch.equal(got, norm(states))


def test_other_devices_keep_shape_and_type() -> None:
    states, norm = torch.empty(2, 3, 8, dtype=torch.bfloat16, device="meta"), llama_norm(8, torch.bfloat16).to("meta")
    with torch.no_grad():
        got = normalise(norm, states)
    assert (got.shape, got.dtype) == (states.shape, states.dtype)


def test_gradients_go_through() -> None:
    norm, states = llama_norm(8, torch.float32), torch.randn(2, 3, 8, requires_grad=True)
    normalise(norm, states).sum().backward()
    assert states.grad is not None
    assert norm.weight.grad is not None


def layers(dtype: torch.dtype) -> dict[str, tuple[Any, Any]]:
    """Feed-forward parts with the norms before them."""
    clip, siglip = tiny_llava(1, dtype=dtype), tiny_llava(1, dtype=dtype, tower="siglip")
    pairs = {name: tower_parts(model).layers[0] for name, model in (("clip", clip), ("siglip", siglip))}
    llama: Any = clip.model.language_model.layers[0]
    found: dict[str, tuple[Any, Any]] = {name: (layer.mlp, layer.layer_norm2) for name, layer in pairs.items()}
    return {**found, "llama": (llama.mlp, llama.post_attention_layernorm)}


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("kind", ["clip", "siglip", "llama"])
def test_a_feed_forward_part_is_added_in_place_only_without_gradients(kind: str, dtype: torch.dtype) -> None:
    mlp, norm = layers(dtype)[kind]
    width = mlp.fc1.in_features if hasattr(mlp, "fc1") else mlp.gate_proj.in_features
    hidden = torch.randn(3, 5, width).to(dtype)
    with torch.no_grad():
        expected = hidden + mlp(norm(hidden))
    kept = hidden.clone()
    assert torch.equal(add_feed_forward(mlp, norm, hidden).detach(), expected)
    assert torch.equal(hidden, kept)
    with torch.no_grad():
        added = add_feed_forward(mlp, norm, hidden)
    assert added is hidden
    assert torch.equal(added, expected)
