"""What this machine can do at best, to hold an engine's figures against: matrix products and memory."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import transformers

from pipeline.machine import processor

LARGEST_PROBE = 2048
"""Width of the layer that `bfloat16_gain` times; wider ones take longer and tell no more."""


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """Return the shortest time of `work` after one warm-up."""
    work()
    best = float("inf")
    for _ in range(repeats):
        synchronise(device)
        began = time.perf_counter()
        work()
        synchronise(device)
        best = min(best, time.perf_counter() - began)
    return best


def matmul_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the best TFLOP/s (10^12, 2 per multiply-add) of a matrix product over some large sizes."""
    sizes = (4096, 8192) if device.type == "cuda" else (1024, 2048)
    best = 0.0
    for n in sizes:
        a, b = torch.randn(n, n, device=device, dtype=dtype), torch.randn(n, n, device=device, dtype=dtype)
        out = torch.empty(n, n, device=device, dtype=dtype)
        best = max(best, 2 * n**3 / seconds_of(partial(torch.mm, a, b, out=out), device) / 1e12)
    return best


@cache
def bfloat16_gain(width: int) -> float:
    """Return how many times faster than in float32 the CPU does a decoder's linear layer in bfloat16.

    The shortest of alternating runs, which a loaded machine changes little; measured once in a process. Units that
    a processor claims to have are slow on some virtual machines, so the claim alone does not decide.
    """
    width, device, rows = min(width, LARGEST_PROBE), torch.device("cpu"), 256
    best = dict.fromkeys((torch.float32, torch.bfloat16), float("inf"))
    layers = {dtype: torch.ones(2 * width, width, dtype=dtype) for dtype in best}
    for _ in range(3):
        for dtype, weight in layers.items():
            states = torch.ones(rows, width, dtype=dtype)
            work = partial(torch.nn.functional.linear, states, weight)
            best[dtype] = min(best[dtype], seconds_of(work, device, repeats=2))
    return best[torch.float32] / best[torch.bfloat16]


def copy_gigabytes_per_second(device: torch.device) -> float:
    """Return the bandwidth of a copy, bytes read and bytes written together, in 10^9 bytes per second."""
    count = 2**30 if device.type == "cuda" else 2**28
    source = torch.zeros(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * count / seconds_of(lambda: target.copy_(source), device) / 1e9


def hardware(device: torch.device) -> dict[str, Any]:
    """Return what a result must carry: processor or GPU, threads, versions."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
