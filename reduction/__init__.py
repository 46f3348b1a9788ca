"""Training-free visual token reduction for LLaVA models: filter, correlate, compress.

    with reduction.install(model, "ficoco-v:64"):
        model.generate(**inputs)

`Reduction` is quick to import; `install`, `encode_images` and `reduce_visual` bring torch when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reduction.settings import Reduction, ReductionError

if TYPE_CHECKING:
    from reduction.installation import install
    from reduction.language import reduce_visual
    from reduction.vision import encode_images

__all__ = ["Reduction", "ReductionError", "encode_images", "install", "reduce_visual"]

_HOMES = {"install": "installation", "encode_images": "vision", "reduce_visual": "language"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'reduction' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"reduction.{_HOMES[name]}"), name)
