"""Which errors leave a process that cannot go on."""

from __future__ import annotations

NO_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""How lack of memory reads where it is no OutOfMemoryError: met by a library, or while a graph is recorded."""


def breaks_device(error: Exception) -> bool:
    """Whether a CUDA error other than lack of memory is behind an exception: only a new process can work again."""
    cause: BaseException | None = error
    while cause is not None:
        name, text = type(cause).__name__, str(cause)
        if name == "OutOfMemoryError" or any(words in text for words in NO_MEMORY):
            return False
        if name == "AcceleratorError" or "CUDA error" in text or "cuDNN error" in text or "NCCL error" in text:
            return True
        cause = cause.__cause__ or cause.__context__
    return False
