"""What PyTorch's own counter sees."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def operations(run: Callable[[], object]) -> dict[str, int]:
    """FLOPs by ATen operator as PyTorch's counter sees them; attention decomposed into its matrix products.

    Without the rotary angles, an outer product that some versions of PyTorch run as a matrix product.
    """
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    counts = counter.get_flop_counts()
    angles = [part for module, part in counts.items() if module.endswith("rotary_emb")]
    return {
        str(operator).removeprefix("aten."): count - sum(part.get(operator, 0) for part in angles)
        for operator, count in counts["Global"].items()
    }
