"""Errors meant for the person who started the run."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user gave cannot be used; the message is one sentence: what, where, what to do."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like ``name`` (case ignored), or None when nothing is near enough to be suggested."""
    spelled = {candidate.casefold(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.casefold(), list(spelled), n=1, cutoff=0.6)
    return spelled[matches[0]] if matches else None
