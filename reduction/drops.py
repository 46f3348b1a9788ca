"""How many tokens each layer of a place drops: evenly, in equal shares, or by counts that were published."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from reduction.errors import ReductionError
from reduction.methods import Counts, tokens_fewer


def spread(drop: int, layers: int) -> tuple[int, ...]:
    """`drop` tokens over `layers` layers as evenly as integers allow, the larger shares first."""
    share, extra = divmod(drop, layers)
    return (share + 1,) * extra + (share,) * (layers - extra)


def lengths(entering: int, drops: Sequence[int]) -> tuple[int, ...]:
    """Tokens entering each layer, and last those left."""
    return tuple(accumulate(drops, lambda length, drop: length - drop, initial=entering))


def even(drop: int, start: int, layers: int | None, depth: int, place: str) -> tuple[int, ...]:
    """Drops for each of `depth` layers; `layers` None means all from `start` on."""
    count = depth - start if layers is None else layers
    if not 0 <= start < depth:
        raise ReductionError(f"{place} reduction cannot start at layer {start}: layers 0 to {depth - 1} run.")
    if count < 1 or start + count > depth:
        raise ReductionError(
            f"{place} reduction cannot use {count} layers from layer {start} on: layers 0 to {depth - 1} run."
        )
    return (0,) * start + spread(drop, count) + (0,) * (depth - start - count)


def geometric(total: int, drop: int, at: Sequence[int], depth: int) -> tuple[int, ...]:
    """Drops at some of `depth` layers, each leaving the same share of what enters it, rounded."""
    share = (total - drop) / total
    left = [round(total * share ** (step / len(at))) for step in range(len(at) + 1)]
    drops = dict(zip(at, (before - after for before, after in pairwise(left)), strict=True))
    return tuple(drops.get(layer, 0) for layer in range(depth))


def counts_for(keep: int, total: int, published: Counts) -> tuple[int, ...]:
    """The tokens that the filter keeps at each step for a budget of `keep` of `total` tokens.

    Published counts as they are; between two published budgets on the line between their counts, rounded, above the
    highest on the line to keeping everything, below the lowest in proportion to it. Budgets and counts are those of the
    published total (the last entry's), and scaled with it.
    """
    whole = published[-1][0]
    budget = keep * whole / total
    lower = (0, (0,) * len(published[0][1]))
    for upper in published:
        if budget <= upper[0]:
            break
        lower = upper
    share = (budget - lower[0]) / (upper[0] - lower[0])
    wanted = (a + share * (b - a) for a, b in zip(lower[1], upper[1], strict=True))
    return tuple(max(1, round(count * total / whole)) for count in wanted)


def by_counts(total: int, counts: Sequence[int], at: Sequence[int], depth: int, compress: str) -> tuple[int, ...]:
    """Drops at some of `depth` layers where the filter keeps `counts`, less the tokens that are made anew there.

    Where a shallow model puts several steps into one layer, the last of them stands.
    """
    drops, left = dict.fromkeys(range(depth), 0), total
    for layer, count in dict(zip(at, counts, strict=True)).items():
        # Where no fewer would be left with those made anew, all stay.
        drops[layer] = tokens_fewer(compress, max(0, left - count))
        left -= drops[layer]
    return tuple(drops.values())
