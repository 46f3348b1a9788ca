"""The names that shapes in signatures are written with.

jaxtyping checks them in the tests. Without it, as on a machine that only runs the model, the names mean nothing:
annotations are not evaluated there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
else:
    try:
        from jaxtyping import Bool, Float, Int
    except ImportError:
        Bool = Float = Int = Any

__all__ = ["Bool", "Float", "Int"]
