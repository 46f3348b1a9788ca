"""What a replica is asked to do with a shard, where that is not simply all of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Slice:
    """The samples `first` to `stop` (excluded) of a shard, numbered from 0 in the order in which they stand there.

    Everything with a key of its own counts, also what is rejected, so that numbers do not depend on what is readable.
    """

    first: int
    stop: int | None
    """None: as far as the shard goes, and how it ends."""
    condemned: str = ""
    """Where given, its questions go to quarantine for this reason, without being asked."""


@dataclass(frozen=True, slots=True)
class Assembly:
    """Commit a shard from its slices, all of which are staged."""

    slices: tuple[Slice, ...]
    """In the shard's order."""


@dataclass(frozen=True, slots=True)
class Begun:
    """Do what is left of a shard of which slices are staged. The driver cuts it up; no replica is asked this."""

    staged: tuple[Slice, ...]
    """In the shard's order, none over another."""
    numbered: int = 0
    """What the slices count in; known where `END` is staged."""
    window: int = 1
    """As in `records.SliceReport`."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Ask again what the shard's quarantine holds."""

    spare_lethal: bool = False
    """Leave out what has killed replicas."""


LETHAL = "its replica was lost"
"""How the reason begins for which a sample is condemned."""
WHOLE = Slice(0, None)
END = Slice(2**62, None)
"""What comes behind the samples: how many there are, and whether the shard is whole. Nothing is decoded for it."""

Task = Slice | Assembly | Begun | Retry
