"""A tiny model shared by the tests of `install`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.reduction.installed import generate
from tests.tiny import tiny_llava


@pytest.fixture(scope="module")
def model() -> Any:
    llava = tiny_llava(1, dtype=torch.float64)
    generate(llava)  # the first call leaves attributes of its own
    return llava
