"""Which stages fit together, and with a model, and why others do not."""

from __future__ import annotations

from collections.abc import Iterable

from reduction.errors import ReductionError, unknown
from reduction.methods import (
    ADAPTIVE,
    COMPRESSIONS,
    CORRELATIONS,
    FILTERS,
    FRESH,
    LEADS_TO,
    METHODS,
    NEEDS_WINDOWS,
    PLACES,
    Place,
)
from reduction.shapes import ModelShape


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
    for place, row in METHODS[method].items():
        _check_combination(place, filter_ or row.filter, correlate or row.correlate, compress or row.compress)


def check_adaptive(method: str, filters: Iterable[str]) -> None:
    """Raises ReductionError unless every filter can decide for each image how many tokens stay."""
    for name in filters:
        if name not in ADAPTIVE:
            raise ReductionError(
                f"filter={name} of {method} keeps as many tokens as it is told to, never as many as an image needs: "
                f"give a number, or use prumerge or trim (filter={' or '.join(ADAPTIVE)})."
            )


def check_text_tower(method: str, filter_: str, shape: ModelShape) -> None:
    """Raises ReductionError where a filter that compares with the question finds no text tower, or none that fits."""
    needs = f"{method} (filter={filter_}) compares the question with the image by CLIP's text tower"
    if shape.text is None:
        raise ReductionError(
            f"{needs}, which a LLaVA checkpoint does not carry: give one with --text-tower (in Python text_tower=), or "
            "take divprune, the nearest method that needs the image alone."
        )
    if not shape.vision.has_cls or shape.projector_in != shape.vision.width:
        raise ReductionError(
            f"{needs}, for which the decoder must see one layer of a CLIP's vision tower: {shape.name} has another "
            "tower, or reads several layers."
        )
    if shape.text.vision_width != shape.vision.width:
        raise ReductionError(
            f"the text tower belongs to a vision tower of width {shape.text.vision_width}, and that of {shape.name} "
            f"has {shape.vision.width}: give the CLIP that the model's vision tower was taken from."
        )


def _names(places: Iterable[Place]) -> str:
    return " and ".join(PLACES[place] for place in places)


def _check_combination(place: Place, filter_: str, correlate: str, compress: str) -> None:
    if compress == "prune":
        return
    pairs = [name for name in CORRELATIONS if name != "none" and name not in LEADS_TO]
    if compress in FRESH and LEADS_TO.get(correlate) != compress:
        fitting = next(name for name, taker in LEADS_TO.items() if taker == compress and place in CORRELATIONS[name])
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
