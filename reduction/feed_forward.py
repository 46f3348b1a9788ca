"""The feed-forward part of Hugging Face's layers, without the temporary tensors that cost most of its time on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from reduction.tensors import Float

INNER_BYTES = 10 * 2**20
"""Of inner states at once on a CPU: more leave its cache, and are given back to the system and asked of it anew."""


def _quick_gelu(mlp: Any, tokens: Float[Tensor, "b t w"]) -> Float[Tensor, "b t w"]:
    inner = mlp.fc1(tokens)
    return mlp.fc2(torch.mul(inner, 1.702).sigmoid_().mul_(inner))


def _sequences_at_once(widen: Any, tokens: Float[Tensor, "b t w"]) -> int:
    """How many go through the layer together."""
    if tokens.device.type != "cpu":
        return len(tokens)
    return max(1, INNER_BYTES // (tokens.shape[1] * widen.out_features * tokens.element_size()))


def feed_forward(mlp: Any, tokens: Float[Tensor, "b t w"]) -> Float[Tensor, "b t w"]:
    """`mlp(tokens)` by the same operations, in place on what the layer has just made.

    On a CPU an encoder's sequences go through some at a time. That may round the last bit otherwise in float32; in
    bfloat16, and at CLIP's own sizes, it was not seen to.

    For CLIP's and LLaMA's with their own activations; any other, and whatever needs a gradient, takes its own forward.
    """
    if torch.is_grad_enabled():
        return mlp(tokens)
    # By name: which class it is differs between versions of transformers.
    activation = type(getattr(mlp, "activation_fn", None) or getattr(mlp, "act_fn", None)).__name__
    if activation == "QuickGELUActivation" and hasattr(mlp, "fc1"):
        parts = [_quick_gelu(mlp, part) for part in tokens.split(_sequences_at_once(mlp.fc1, tokens))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)
    if activation in ("SiLU", "SiLUActivation") and hasattr(mlp, "gate_proj"):
        return mlp.down_proj(functional.silu(mlp.gate_proj(tokens), inplace=True).mul_(mlp.up_proj(tokens)))
    return mlp(tokens)
