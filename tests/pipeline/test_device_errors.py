"""Which exceptions end a process, and which cost a batch."""

from __future__ import annotations

import pytest
import torch

from pipeline.device_errors import breaks_device


class AcceleratorError(RuntimeError):
    """As torch's own, which only an accelerator makes."""


@pytest.mark.parametrize(
    ("error", "breaks"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), False),
        (AcceleratorError("CUDA error: out of memory"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), False),
        (AcceleratorError("CUDA error: an illegal memory access was encountered"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True),
        (ValueError("shape mismatch"), False),
    ],
)
def test_only_lack_of_memory_is_survived(error: Exception, breaks: bool) -> None:
    assert breaks_device(error) == breaks
    outer = ValueError("a batch failed")
    outer.__cause__ = error
    assert breaks_device(outer) == breaks
