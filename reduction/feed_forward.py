"""The feed-forward part of Hugging Face's layers, without the temporary tensors that cost most of its time on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from reduction.norms import normalise
from reduction.tensors import Float

INNER_BYTES = 10 * 2**20
"""Of inner states at once on a CPU: more leave its cache, and are given back to the system and asked of it anew."""


def add_feed_forward(mlp: Any, norm: Any, hidden: Float[Tensor, "b t w"]) -> Float[Tensor, "b t w"]:
    """`hidden + mlp(norm(hidden))` by the same operations; without a gradient in place, on `hidden` itself.

    On a CPU an encoder's sequences go through some at a time. That may round the last bit otherwise in float32; in
    bfloat16, and at CLIP's own sizes, it was not seen to.
    """
    if torch.is_grad_enabled():
        return hidden + mlp(norm(hidden))
    for part in hidden.split(_sequences_at_once(mlp, hidden)):
        part.add_(_feed_forward(mlp, normalise(norm, part)))
    return hidden


def _sequences_at_once(mlp: Any, hidden: Float[Tensor, "b t w"]) -> int:
    """How many go through the layer together. A decoder's gain nothing: reading its weights again costs as much."""
    if hidden.device.type != "cpu" or not hasattr(mlp, "fc1"):
        return len(hidden)
    return max(1, INNER_BYTES // (hidden.shape[1] * mlp.fc1.out_features * hidden.element_size()))


def _feed_forward(mlp: Any, tokens: Float[Tensor, "b t w"]) -> Float[Tensor, "b t w"]:
    """`mlp(tokens)`, in place on what the layer has just made: CLIP's and LLaMA's with their own activations. Any
    other takes its own forward.
    """
    # By name: which class it is differs between versions of transformers.
    activation = type(getattr(mlp, "activation_fn", None) or getattr(mlp, "act_fn", None)).__name__
    if activation == "QuickGELUActivation" and hasattr(mlp, "fc1"):
        inner = mlp.fc1(tokens)
        return mlp.fc2(torch.mul(inner, 1.702).sigmoid_().mul_(inner))
    if activation in ("SiLU", "SiLUActivation") and hasattr(mlp, "gate_proj"):
        return mlp.down_proj(functional.silu(mlp.gate_proj(tokens), inplace=True).mul_(mlp.up_proj(tokens)))
    return mlp(tokens)
