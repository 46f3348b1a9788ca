"""The CLIP text tower beside a model: loaded where a setting chooses by the question, and only there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from reduction.settings import Reduction
from reduction.text_checkpoint import load_text_tower
from reduction.text_tower import TextTower


def text_tower_for(reductions: Iterable[Reduction], name: str | None, model: Any) -> TextTower | None:
    """The tower on the model's device and in its type; None where no reduction needs one, or none was named.

    Raises ReductionError where it cannot be loaded.
    """
    if name is None or not any(reduction.by_question for reduction in reductions):
        return None
    weight = next(model.parameters())
    return load_text_tower(name, weight.device, weight.dtype)
