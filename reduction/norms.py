"""Norms of Hugging Face's layers, without the temporary tensors in float32 that cost most of their time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from reduction.attention import CACHED_VALUES
from reduction.tensors import Float


def normalise(norm: Any, states: Float[Tensor, "b t w"]) -> Float[Tensor, "b t w"]:
    """`norm(states)`.

    LLaMA's root mean square norm (Zhang and Sennrich 2019) makes copies in float32 of all states, one for each of its
    operations. Without a gradient a CPU does the same operations on some tokens at a time, to the same bits, and
    other devices take torch's own kernel, which rounds once where Hugging Face rounds twice.
    """
    # By name: which class it is differs between versions of transformers.
    known = type(norm).__name__ == "LlamaRMSNorm" and norm.weight.dtype == states.dtype
    if not known or torch.is_grad_enabled():
        return norm(states)
    if states.device.type != "cpu":
        return functional.rms_norm(states, norm.weight.shape, norm.weight, norm.variance_epsilon)
    normed = torch.empty(states.shape, dtype=states.dtype)
    some = max(1, CACHED_VALUES // states.shape[-1])
    for part, target in zip(states.flatten(0, 1).split(some), normed.flatten(0, 1).split(some), strict=True):
        precise = part.float()
        precise = precise * torch.rsqrt(precise.square().mean(-1, keepdim=True) + norm.variance_epsilon)
        torch.mul(norm.weight, precise.to(states.dtype), out=target)
    return normed
