"""Shapes in signatures are checked while the tests run; at run time they cost nothing."""

from __future__ import annotations

from hypothesis import settings
from jaxtyping import install_import_hook

CHECKED = (
    *(
        "attention",
        "block",
        "compress",
        "correlate",
        "diversity",
        "feed_forward",
        "filter",
        "grid",
        "language",
        "layout",
        "matching",
        "norms",
    ),
    *("patches", "pivots", "prumerge", "relevance", "selection", "stages", "text_tower", "views", "vision"),
)
"""The modules of `reduction` that take tensors; the others check their values themselves, with better sentences."""

ENGINE = ("decoder", "decoding", "engine", "generation", "kept_steps", "kv_cache", "step_graphs", "steps")

HOOK = install_import_hook(
    [*(f"reduction.{name}" for name in CHECKED), *(f"pipeline.{name}" for name in ENGINE)], "beartype.beartype"
)
"""Stays installed for the whole session: the modules are imported under it wherever they are first used."""

settings.register_profile("default", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("default")
