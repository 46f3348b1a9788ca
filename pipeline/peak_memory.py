"""The most memory that a piece of work took."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

_FORGET = Path("/proc/self/clear_refs")


def forget_peak(device: torch.device) -> None:
    """Begin anew: on the CPU where the system can (Linux: 5 written to `clear_refs` resets the resident peak)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            _FORGET.write_text("5")


def peak_bytes(device: torch.device) -> int:
    """The peak since `forget_peak`: memory allocated on the device, or this process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
