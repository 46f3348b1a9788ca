"""What a measurement was made on, and of which code; needs no torch."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path


def commit() -> str:
    """Return the commit that runs, with a mark where files differ from it."""
    call = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def processor() -> str:
    """Return the processor's name and which of its units compute in bfloat16."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    units = [name for name in ("amx_bf16", "avx512_bf16") if name in flags]
    return (
        f"{names[0] if names else platform.processor() or platform.machine()} ({', '.join(units) or 'no bf16 units'})"
    )
