"""Errors meant for the user: one sentence each."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class ReductionError(ValueError):
    """A reduction that cannot be done, in one sentence for the user."""


def unknown(what: str, name: str, known: Iterable[str]) -> ReductionError:
    """The error for an unknown `what`, naming the nearest known one and all of them."""
    names = list(known)
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}."
    return ReductionError(f"unknown {what} {name!r}: {hint}")
