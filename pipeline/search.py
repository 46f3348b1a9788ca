"""What a search for shards finds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Found:
    url: str
    parts: tuple[str, ...]
    """Folders and file name, with the bucket or host first."""
    root: int
    """How many of the parts belong to the input rather than to the shard's name."""
    size: int | None = None
    fingerprint: str = ""
    missing: bool = False
    unknown: bool = False
    """A remote file that was named and not yet looked up."""
