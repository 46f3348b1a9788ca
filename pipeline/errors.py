"""Errors meant for the person who started the run."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from pipeline.locations import redact_urls


class UserError(ValueError):
    """Something the user gave cannot be used; the message is one sentence: what, where, what to do.

    Credentials in URLs are cut out of it, whatever quotes them: an option's value, a file's line, a library's error.
    """

    def __init__(self, message: str) -> None:
        super().__init__(redact_urls(message))


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like ``name`` (case ignored), or None when nothing is near enough to be suggested."""
    spelled = {candidate.casefold(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.casefold(), list(spelled), n=1, cutoff=0.6)
    return spelled[matches[0]] if matches else None
