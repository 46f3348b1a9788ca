"""The table: a method is the places it drops tokens at, and at each place a filter, a correlate and a compress stage.

Stages stand here by name; `vision` and `language` bind the names to functions. A filter may score tokens and take the
top or choose a set in any other way: it returns the indices that stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Place = Literal["vision", "language"]
"""In the encoder (knows the image only) or in the decoder (knows the question too)."""

FILTERS: dict[str, tuple[Place, ...]] = {
    "ficoco": ("vision", "language"),
    "random": ("vision", "language"),
    "stride": ("vision", "language"),
}
"""Filter stage -> where it works."""

CORRELATIONS: dict[str, tuple[Place, ...]] = {
    "attention": ("vision", "language"),
    "attention_and_text": ("language",),
}

COMPRESSIONS: dict[str, tuple[Place, ...]] = {
    "merge": ("vision", "language"),
    "mean": ("vision", "language"),
    "prune": ("vision", "language"),
}


@dataclass(frozen=True, slots=True)
class Stages:
    """What happens to the tokens at one place."""

    filter: str
    correlate: str
    compress: str


_FICOCO_V = Stages("ficoco", "attention", "merge")
_FICOCO_L = Stages("ficoco", "attention_and_text", "merge")

METHODS: dict[str, dict[Place, Stages]] = {
    "dense": {},
    "ficoco-v": {"vision": _FICOCO_V},
    "ficoco-l": {"language": _FICOCO_L},
    "ficoco-vl": {"vision": _FICOCO_V, "language": _FICOCO_L},
}
