"""Errors meant for the user: one sentence each."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class ReductionError(ValueError):
    """A reduction that cannot be done, in one sentence for the user."""


def first_line(error: Exception) -> str:
    """What a library's error says, without the advice that follows on further lines; its type where it says nothing.

    A line that ends in a colon goes on in the next.
    """
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    end = next((number for number, line in enumerate(lines) if not line.endswith(":")), 0)
    return " ".join(lines[: end + 1])


def unknown(what: str, name: str, known: Iterable[str]) -> ReductionError:
    """The error for an unknown `what`, naming the nearest known one and all of them."""
    names = list(known)
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}."
    return ReductionError(f"unknown {what} {name!r}: {hint}")
