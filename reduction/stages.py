"""Filter, correlate, compress at any place: the three stages of a setting applied to one layer's visual tokens.

Shapes: b batch, n visual tokens, k kept, s dropped, w width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from reduction.attention import take
from reduction.filter import Partition
from reduction.methods import ADAPTIVE, COMPRESSIONS, CORRELATIONS, FILTERS, REORDERS, tokens_dropped, tokens_fewer
from reduction.settings import Reduction
from reduction.tensors import Float, Int
from reduction.views import View, behind, function_of, imported, in_raster_order


class Reduced(NamedTuple):
    """The visual tokens that are left, behind the tokens that never go."""

    states: Float[Tensor, "b t w"]
    """First the `View.first` tokens before the visual ones, then those left."""
    kept: Int[Tensor, "b k"]
    """Which tokens they were. A token made anew stands where the dropped token stood that gives most to it."""
    sizes: Float[Tensor, "b k"] | None = None
    """How many tokens each stands for, where the compress stage counts them."""
    counts: Int[Tensor, " b"] | None = None
    """How many visual tokens of a row are real, the first ones, where rows differ; the rest pads, as in `kept`."""


def reorders(stages: tuple[str, str, str]) -> bool:
    """Whether these stages leave tokens out of raster order."""
    return any(stage in REORDERS for stage in stages)


def reduce_tokens(
    view: View,
    states: Float[Tensor, "b t w"],
    n_drop: int,
    reduction: Reduction,
    sizes: Float[Tensor, "b n"] | None = None,
) -> Reduced:
    """What is left of `states` when there shall be `n_drop` fewer visual tokens, which begin at `view.first`.

    `sizes` are how many tokens each stands for so far, None where each is one.
    """
    filter_, correlate, compress = reduction.stages(view.place)
    if reduction.adaptive:
        return _row_by_row(view, states, reduction, sizes)
    dropped = tokens_dropped(compress, n_drop)
    split: Partition = function_of(FILTERS, filter_, view.place)(view, dropped, reduction)
    left = take(states, behind(view.first, split.kept))
    if compress == "prune":
        return Reduced(left, split.kept)
    targets, sources = left[:, view.first :], take(states, split.dropped + view.first)
    correlation = function_of(CORRELATIONS, correlate, view.place)(view, split, reduction)
    both = None if sizes is None else (sizes.gather(1, split.kept), sizes.gather(1, split.dropped))
    tokens, counts = function_of(COMPRESSIONS, compress, view.place)(targets, sources, correlation, reduction, both)
    kept = split.kept
    if fresh := dropped - n_drop:
        given = correlation[..., -fresh:].argmax(1)
        kept = torch.cat([kept, split.dropped.gather(1, given)], dim=1)
    if tokens is not targets:
        left = torch.cat([left[:, : view.first], tokens], dim=1) if view.first else tokens
    return Reduced(left, kept, counts)


def _row_by_row(
    view: Any, states: Float[Tensor, "b t w"], reduction: Reduction, sizes: Float[Tensor, "b n"] | None
) -> Reduced:
    """Each image by itself, as its number of tokens is its own; then padded with zeros to the longest.

    The one place that waits for the host: how large the result is depends on the pictures.
    """
    filter_, _, compress = reduction.stages(view.place)
    counts: Tensor = imported(ADAPTIVE[filter_])(view, reduction)
    total = states.shape[1] - view.first
    left = []
    for row, count in enumerate(counts.tolist()):
        fewer, one = tokens_fewer(compress, total - count), slice(row, row + 1)
        own = None if sizes is None else sizes[one]
        left.append(reduce_tokens(view.row(row), states[one], fewer, replace(reduction, keep=total - fewer), own))
    lengths = [one.kept.shape[1] for one in left]
    return Reduced(
        torch.cat([functional.pad(one.states, (0, 0, 0, max(lengths) - one.kept.shape[1])) for one in left]),
        torch.cat([functional.pad(one.kept, (0, max(lengths) - one.kept.shape[1])) for one in left]),
        counts=torch.tensor(lengths, device=counts.device),
    )


def sort_raster(reduced: Reduced, cells: Int[Tensor, "b k"]) -> Reduced:
    """The tokens sorted by the raster index of where they stood."""
    order = in_raster_order(cells)
    sizes = None if reduced.sizes is None else reduced.sizes.gather(1, order)
    return Reduced(take(reduced.states, order), reduced.kept.gather(1, order), sizes, reduced.counts)
