"""What the driver's loop tells while it goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.leases import FailedShard, Narrowed
from pipeline.records import ShardReport


@dataclass(frozen=True, slots=True)
class ReplicaStarted:
    description: dict[str, Any]
    seconds: float


@dataclass(frozen=True, slots=True)
class ReplicaReplaced:
    description: dict[str, Any]
    reason: str


@dataclass(frozen=True, slots=True)
class BatchesAnswered:
    """Work got on within a shard."""

    number: int
    """Since the last of these events."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Gives the driver time for its own work, also when nothing happens."""


Event = ShardReport | FailedShard | Narrowed | ReplicaStarted | ReplicaReplaced | BatchesAnswered | Tick
