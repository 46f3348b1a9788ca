"""Which shard is to be done next, which are being done, and which have failed too often. Plain Python, no Ray."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.records import ShardRef


@dataclass(frozen=True, slots=True)
class Lease:
    """A shard given to one replica for one attempt."""

    ref: ShardRef
    attempt: int
    """From 1."""


@dataclass(frozen=True, slots=True)
class FailedShard:
    """A shard that was given up after its last attempt."""

    ref: ShardRef
    attempts: int
    reason: str


class LeaseQueue:
    """Shards in order; one that failed goes to the end, so it never holds up the others.

    Args:
        max_attempts: failures after which a shard is given up.
    """

    def __init__(self, refs: Iterable[ShardRef], max_attempts: int) -> None:
        self._waiting = deque(Lease(ref, 1) for ref in refs)
        self._out: set[Lease] = set()
        self._max_attempts = max_attempts

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def unfinished(self) -> int:
        """Shards waiting or being worked on."""
        return len(self._waiting) + len(self._out)

    def take(self) -> Lease | None:
        """The next shard to work on; None when none is waiting."""
        if not self._waiting:
            return None
        lease = self._waiting.popleft()
        self._out.add(lease)
        return lease

    def finish(self, lease: Lease) -> None:
        self._out.remove(lease)

    def fail(self, lease: Lease, reason: str) -> FailedShard | None:
        """Queue the shard for another attempt, or give it up."""
        self._out.remove(lease)
        if lease.attempt >= self._max_attempts:
            return FailedShard(lease.ref, lease.attempt, reason)
        self._waiting.append(Lease(lease.ref, lease.attempt + 1))
        return None

    def give_back(self, lease: Lease) -> None:
        """Queue the shard first again without counting an attempt: its node vanished, the shard is not to blame."""
        self._out.remove(lease)
        self._waiting.appendleft(lease)
