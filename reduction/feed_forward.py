"""The feed-forward part of Hugging Face's layers, without the temporary tensors that cost most of its time on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from reduction.tensors import Float


def feed_forward(mlp: Any, tokens: Float[Tensor, "b t w"]) -> Float[Tensor, "b t w"]:
    """`mlp(tokens)`, bit for bit: the same operations, in place on what the layer has just made.

    For CLIP's and LLaMA's with their own activations; any other, and whatever needs a gradient, takes its own forward.
    """
    if torch.is_grad_enabled():
        return mlp(tokens)
    # By name: which class it is differs between versions of transformers.
    activation = type(getattr(mlp, "activation_fn", None) or getattr(mlp, "act_fn", None)).__name__
    if activation == "QuickGELUActivation" and hasattr(mlp, "fc1"):
        inner = mlp.fc1(tokens)
        return mlp.fc2(torch.mul(inner, 1.702).sigmoid_().mul_(inner))
    if activation in ("SiLU", "SiLUActivation") and hasattr(mlp, "gate_proj"):
        return mlp.down_proj(functional.silu(mlp.gate_proj(tokens), inplace=True).mul_(mlp.up_proj(tokens)))
    return mlp(tokens)
