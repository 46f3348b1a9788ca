"""How many samples a shard should hold, where a file beside it says so."""

from __future__ import annotations

import json
import re
from contextlib import closing, suppress

from pipeline.limits import ReadLimits
from pipeline.locations import SHARD_SUFFIXES
from pipeline.sources import open_source

_MAX_BYTES = 2**20


def expected_samples(location: str, limits: ReadLimits) -> int | None:
    """The count from img2dataset's ``<name>_stats.json`` (``successes``) or from a ``<name>.idx`` index; None if none.

    An index starts with a line ``v1.2 <samples>``. What is not readable as either says nothing.

    Raises:
        SourceError: remote storage failed through all attempts.
    """
    suffix = next((suffix for suffix in sorted(SHARD_SUFFIXES, key=len) if location.lower().endswith(suffix)), None)
    if suffix is None:
        return None
    stem = location[: -len(suffix)]
    stats = _start_of(f"{stem}_stats.json", limits)
    if stats is not None:
        with suppress(ValueError, RecursionError, AttributeError):
            successes = json.loads(stats).get("successes")
            if isinstance(successes, int):
                return successes
    index = re.match(rb"v\d+(?:\.\d+)* (\d{1,12})\s", _start_of(f"{stem}.idx", limits) or b"")
    return int(index.group(1)) if index else None


def _start_of(location: str, limits: ReadLimits) -> bytes | None:
    try:
        stream = open_source(location, limits)
    except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError):
        return None
    with closing(stream):
        return stream.read(_MAX_BYTES)
