"""Training-free visual token reduction for LLaVA models: filter, correlate, compress.

    with reduction.install(model, "ficoco-v:64"):
        model.generate(**inputs)

`Reduction` is quick to import; the others bring torch when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reduction.settings import Reduction, ReductionError

if TYPE_CHECKING:
    from reduction.installation import ask, install
    from reduction.language import reduce_visual
    from reduction.text_checkpoint import load_text_tower
    from reduction.vision import encode_images

__all__ = [
    "Reduction",
    "ReductionError",
    "ask",
    "encode_images",
    "install",
    "load_text_tower",
    "reduce_visual",
]

_HOMES = {
    "install": "installation",
    "ask": "installation",
    "load_text_tower": "text_checkpoint",
    "encode_images": "vision",
    "reduce_visual": "language",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'reduction' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"reduction.{_HOMES[name]}"), name)
