"""Which stages fit together, and why others do not."""

from __future__ import annotations

from collections.abc import Iterable

from reduction.errors import ReductionError, unknown
from reduction.methods import (
    ADAPTIVE,
    COMPRESSIONS,
    CORRELATIONS,
    FILTERS,
    FRESH,
    IMPOSSIBLE,
    LEADS_TO,
    METHODS,
    NEEDS_WINDOWS,
    PLACES,
    Place,
)


def check_possible(method: str) -> None:
    """Raises ReductionError for a method that is known and that no LLaVA checkpoint can do."""
    if method in IMPOSSIBLE:
        raise ReductionError(
            f"{method} is not possible here: {IMPOSSIBLE[method]}, which a LLaVA checkpoint does not carry; "
            "divprune is the nearest method that needs the image alone."
        )


def check_stages(method: str, filter_: str | None, correlate: str | None, compress: str | None) -> None:
    """Raises ReductionError unless the stages given, and the method's own for the rest, make sense at its places."""
    tables = {"filter": FILTERS, "correlate": CORRELATIONS, "compress": COMPRESSIONS}
    for (what, known), name in zip(tables.items(), (filter_, correlate, compress), strict=True):
        if name is None:
            continue
        if name not in known:
            raise unknown(f"{what} stage", name, known)
        if any(place not in known[name] for place in METHODS[method]):
            raise ReductionError(
                f"the {what} stage {name!r} is made for the {_names(known[name])} only, "
                f"and {method} reduces in the {_names(METHODS[method])}."
            )
    for row in METHODS[method].values():
        _check_combination(filter_ or row.filter, correlate or row.correlate, compress or row.compress)


def check_adaptive(method: str, filters: Iterable[str]) -> None:
    """Raises ReductionError unless every filter can decide for each image how many tokens stay."""
    for name in filters:
        if name not in ADAPTIVE:
            raise ReductionError(
                f"filter={name} of {method} keeps as many tokens as it is told to, never as many as an image needs: "
                f"give a number, or use prumerge (filter={', '.join(ADAPTIVE)})."
            )


def _names(places: Iterable[Place]) -> str:
    return " and ".join(PLACES[place] for place in places)


def _check_combination(filter_: str, correlate: str, compress: str) -> None:
    if compress == "prune":
        return
    pairs = [name for name in CORRELATIONS if name != "none" and name not in LEADS_TO]
    if compress in FRESH and LEADS_TO.get(correlate) != compress:
        fitting = next(name for name, taker in LEADS_TO.items() if taker == compress)
        raise ReductionError(
            f"compress={compress} makes a token out of all that are dropped, so it needs a weight for each of them, "
            f"and correlate={correlate} gives none that it can take: add correlate={fitting}."
        )
    if compress not in FRESH and correlate not in pairs:
        raise ReductionError(
            f"compress={compress} moves what is dropped into tokens that are kept, and correlate={correlate} does not "
            f"say into which: add correlate=cosine or another of {', '.join(pairs)}."
        )
    if correlate == NEEDS_WINDOWS[1] and filter_ != NEEDS_WINDOWS[0]:
        raise ReductionError(
            f"correlate={correlate} leads to the token kept in the same window, and filter={filter_} does not keep one "
            f"in each: use filter={NEEDS_WINDOWS[0]}, or another correlate stage."
        )
