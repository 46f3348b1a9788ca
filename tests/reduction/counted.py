"""What PyTorch's own counter sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from reduction import compress


@contextmanager
def as_on_a_device() -> Iterator[None]:
    """The stages' general form, in which nothing depends on values: what runs where the host would have to wait."""
    with patch.object(compress, "on_host", lambda values: False):
        yield


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Counts what runs inside in its general form, attention decomposed into its matrix products."""
    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        as_on_a_device(),
        FlopCounterMode(display=False) as counter,
    ):
        yield counter


def operations(run: Callable[[], object]) -> dict[str, int]:
    """FLOPs by ATen operator as PyTorch's counter sees them.

    Without the rotary angles, an outer product that some versions of PyTorch run as a matrix product.
    """
    with counting() as counter:
        run()
    counts = counter.get_flop_counts()
    angles = [part for module, part in counts.items() if module.endswith("rotary_emb")]
    return {
        str(operator).removeprefix("aten."): count - sum(part.get(operator, 0) for part in angles)
        for operator, count in counts["Global"].items()
    }
