"""FLOPs of the stages that cost the same whatever the place: matrix products only, as in `reduction.flops`.

A stage that stands in no table here has no matrix products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from reduction.methods import FRESH, recycled


class Sizes(NamedTuple):
    """What one application of the stages works on."""

    n: int
    """Visual tokens that enter."""
    s: int
    """Of them, those that the filter drops; tokens made anew are not subtracted."""
    first: int
    """Tokens before the visual ones: 1 for CLS."""
    width: int
    """Of the states."""
    metric: int
    """Width of the keys that tokens are compared by."""
    importance: int
    """FLOPs of the importance of all tokens."""
    one_head: int = 0
    """FLOPs of the scores of all keys with CLS, its heads taken as one."""


def _nothing(sizes: Sizes) -> int:
    return 0


def _bipartite(sizes: Sizes) -> int:
    b = len(range(1 - sizes.first, sizes.n, 2))
    return 2 * (sizes.n - b) * b * sizes.metric


def _pairs(sizes: Sizes) -> int:
    return 2 * sizes.n * sizes.n * sizes.width


FILTER_FLOPS: dict[str, Callable[[Sizes], int]] = {
    "bipartite": _bipartite,
    "max_min": _pairs,
    "important_and_diverse": _pairs,
    # A step's row against the rows of all before it.
    "conditional_dpp": lambda sizes: sizes.n * (sizes.n - sizes.s) * (sizes.n - sizes.s - 1),
    # Four pivots each of image and text, one after the other compared with all visual tokens.
    "unlike_pivots": lambda sizes: 2 * (min(4, sizes.n - sizes.s) + 4) * sizes.n * sizes.width,
    "cls_one_head": lambda sizes: sizes.one_head,
}
CORRELATE_FLOPS: dict[str, Callable[[Sizes], int]] = {
    # All heads as one: keys as wide as the states, and the attention of CLS once more.
    "nearest": lambda sizes: 2 * sizes.s * (sizes.n - sizes.s) * sizes.width + sizes.one_head,
    "clusters": lambda sizes: 2 * recycled(sizes.s) ** 2 * sizes.width,
    "cosine": lambda sizes: 2 * sizes.s * (sizes.n - sizes.s) * sizes.metric,
}
BY_IMPORTANCE = ("cls", "last_token", "dominant", "important_and_diverse", "importance")
"""Stages that look at the tokens' importance, which is computed once in a layer."""


def shared_terms(stages: tuple[str, str, str], sizes: Sizes) -> dict[str, int]:
    """FLOPs by stage of one application of (filter, correlate, compress); those of FiCoCo's own stages come on top."""
    filter_, correlate, compress = stages
    used = stages[:1] if compress == "prune" else stages
    terms = {
        "filter": FILTER_FLOPS.get(filter_, _nothing)(sizes),
        "importance": sizes.importance if any(stage in BY_IMPORTANCE for stage in used) else 0,
    }
    if compress != "prune":
        made = FRESH[compress](sizes.s) if compress in FRESH else 0
        columns = made if compress in ("fuse", "recycle") else sizes.n - sizes.s + made
        terms["correlate"] = CORRELATE_FLOPS.get(correlate, _nothing)(sizes)
        terms["compress"] = 2 * sizes.s * columns * sizes.width
    return terms
