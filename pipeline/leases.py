"""Which shard is to be done next, which are being done, and which have failed too often. Plain Python, no Ray.

A shard is leased whole where there are enough of them. It is leased in slices when there are fewer than replicas, and
when it kills replicas: then the slice that does is cut again, until one sample is left. Its questions are quarantined.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace

from pipeline.division import PIECES, Division
from pipeline.records import ShardRef, ShardReport, SliceReport
from pipeline.tasks import END, Begun, Retry, Slice, Task

LOSSES = 2
"""Replicas lost on the same work before it is cut: one may have died of something else."""
SLICES_PER_REPLICA = 3
"""Where shards are fewer than replicas: enough that none waits long for the last."""
SMALLEST_SLICED = 2**20
"""Bytes of a shard that is worth more than one replica."""
HOURS_OF_WORK = 4 * 2**30
"""Bytes of a shard that must not be lost with the run: a replica's last one is done in slices, which stay."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A shard's task given to one replica for one attempt."""

    ref: ShardRef
    attempt: int
    """From 1."""
    losses: int = 0
    """Replicas that this task has cost."""

    @property
    def whole(self) -> bool:
        """Whether it is not one of a shard's pieces."""
        return self.ref.task is None or isinstance(self.ref.task, Retry)


@dataclass(frozen=True, slots=True)
class FailedShard:
    """A shard that was given up after its last attempt."""

    ref: ShardRef
    attempts: int
    reason: str


@dataclass(frozen=True, slots=True)
class Narrowed:
    """Work that has killed its replicas goes on in smaller pieces; with `sample`, it is this one sample."""

    ref: ShardRef
    reason: str
    sample: int | None = None


class LeaseQueue:
    """Shards: those begun first, then the largest; one that failed goes to the end, so it never holds up the others.

    What has killed a replica is tried again at once: doing so again tells the work's fault from the machine's.

    Args:
        max_attempts: failures after which a shard is given up.
        slices: whether shards may be cut; without, each is leased whole, and given up when it keeps killing.
    """

    def __init__(self, refs: Iterable[ShardRef], max_attempts: int, slices: bool = True) -> None:
        ordered = sorted(refs, key=_urgency, reverse=True)
        self._waiting = deque(Lease(ref, 1) for ref in ordered)
        self._urgent: deque[Lease] = deque()
        """Slices, and what is tried again at once."""
        self._promised: dict[Hashable, Lease] = {}
        self._out: set[Lease] = set()
        self._divisions: dict[str, Division] = {}
        self._max_attempts = max_attempts
        self._slices = slices

    @property
    def waiting(self) -> int:
        return len(self._urgent) + len(self._promised) + len(self._waiting)

    @property
    def unfinished(self) -> int:
        """Leases waiting or being worked on."""
        return self.waiting + len(self._out)

    def useful(self, replicas: int) -> int:
        """How many of `replicas` the work is enough for."""
        scarce = len(self._waiting) < replicas and any(self._worth_slicing(lease) for lease in self._waiting)
        return replicas if scarce else min(replicas, self.unfinished)

    def promise(self, replica: Hashable, replicas: int) -> ShardRef | None:
        """Set a shard aside for a replica, which may then read it ahead; None where it has one, or few are left."""
        if self._urgent or replica in self._promised or len(self._waiting) <= SLICES_PER_REPLICA * replicas:
            return None
        if isinstance(self._waiting[0].ref.task, Begun):
            return None
        self._promised[replica] = self._waiting.popleft()
        return self._promised[replica].ref

    def release(self, replica: Hashable) -> None:
        """Queue what was promised to a replica that is gone."""
        if lease := self._promised.pop(replica, None):
            self._waiting.appendleft(lease)

    def take(self, replicas: int = 1, replica: Hashable = None) -> Lease | None:
        """The next work for one of `replicas`; None when none is waiting."""
        if self._urgent:
            lease = self._urgent.popleft()
        elif replica in self._promised:
            lease = self._promised.pop(replica)
        elif self._waiting:
            shards = len(self._waiting)
            lease = self._waiting.popleft()
            parts = math.ceil(SLICES_PER_REPLICA * replicas / shards)
            if isinstance(lease.ref.task, Begun) or (shards <= replicas and self._worth_slicing(lease, HOURS_OF_WORK)):
                lease = self._divide(lease, max(PIECES, parts))
            elif shards < replicas and self._worth_slicing(lease):
                lease = self._divide(lease, parts)
        elif self._promised:
            # Whoever is free first does it: the one it was promised to has other work.
            lease = self._promised.pop(next(iter(self._promised)))
        else:
            return None
        self._out.add(lease)
        return lease

    def finish(self, lease: Lease, report: ShardReport | SliceReport) -> int:
        """Take a result in; returns how many attempts the shard has needed so far."""
        self._out.remove(lease)
        division = self._divisions.get(lease.ref.url)
        if division is None:
            return lease.attempt
        if isinstance(report, SliceReport) and isinstance(lease.ref.task, Slice):
            self._hurry(division.ref, division.finished(lease.ref.task, report))
        else:
            del self._divisions[lease.ref.url]
        return division.failures + 1

    def fail(self, lease: Lease, reason: str) -> FailedShard | None:
        """Queue the work for another attempt, or give its shard up."""
        self._out.remove(lease)
        if self._given_up(lease):
            return None
        if division := self._divisions.get(lease.ref.url):
            division.failures += 1
        if lease.attempt >= self._max_attempts:
            return self._give_up(lease, reason)
        queue = self._urgent if division else self._waiting
        queue.append(replace(lease, attempt=lease.attempt + 1))
        return None

    def lose(self, lease: Lease, reason: str) -> FailedShard | Narrowed | None:
        """Like `fail`, for work whose replica died or hung; work that does so again is narrowed down to a sample."""
        task = lease.ref.task
        cut = self._slices and (task is None or isinstance(task, Retry) or _can_kill(task))
        if not cut or self._given_up(lease):
            return self.fail(lease, reason)
        self._out.remove(lease)
        if division := self._divisions.get(lease.ref.url):
            division.failures += 1
        if lease.losses + 1 < min(LOSSES, self._max_attempts):
            self._urgent.appendleft(replace(lease, attempt=lease.attempt + 1, losses=lease.losses + 1))
            return None
        return self._narrow(lease, reason)

    def give_back(self, lease: Lease) -> None:
        """Queue the work first again without counting an attempt: its node vanished, the shard is not to blame."""
        self._out.remove(lease)
        if not self._given_up(lease):
            self._urgent.appendleft(lease)

    def _narrow(self, lease: Lease, reason: str) -> FailedShard | Narrowed:
        ref, task = lease.ref, lease.ref.task
        if isinstance(task, Retry):
            if task.spare_lethal:
                again = replace(lease, ref=replace(ref, again=task))
                self._urgent.appendleft(self._divide(again, PIECES))
                self._divisions[ref.url].failures = lease.attempt
            else:
                self._hurry(ref, [Retry(spare_lethal=True)])
            return Narrowed(ref, reason)
        if not isinstance(task, Slice):
            self._urgent.appendleft(self._divide(lease, PIECES))
            self._divisions[ref.url].failures = lease.attempt
            return Narrowed(ref, reason)
        slices = self._divisions[ref.url].narrowed(task, reason)
        self._hurry(ref, list(slices))
        return Narrowed(ref, reason, task.first if slices[0].condemned else None)

    def _divide(self, lease: Lease, parts: int) -> Lease:
        division = self._divisions[lease.ref.url] = Division(lease.ref, parts)
        first, *others = division.first()
        self._hurry(division.ref, others)
        return Lease(replace(division.ref, task=first), 1)

    def _hurry(self, ref: ShardRef, tasks: list[Task]) -> None:
        self._urgent.extendleft(Lease(replace(ref, task=task), 1) for task in reversed(tasks))

    def _give_up(self, lease: Lease, reason: str) -> FailedShard:
        """The shard's other slices are of no use then."""
        division = self._divisions.pop(lease.ref.url, None)
        self._urgent = deque(other for other in self._urgent if other.ref.url != lease.ref.url)
        attempts = division.failures if division else lease.attempt
        return FailedShard(replace(lease.ref, task=None, again=None), attempts, reason)

    def _worth_slicing(self, lease: Lease, least: int = SMALLEST_SLICED) -> bool:
        large = lease.ref.task is None and (lease.ref.size or 0) >= least
        return self._slices and (large or isinstance(lease.ref.task, Begun))

    def _given_up(self, lease: Lease) -> bool:
        """Whether it is a piece of a shard that was given up while this was being worked on."""
        return (
            lease.ref.task is not None
            and not isinstance(lease.ref.task, Retry)
            and lease.ref.url not in self._divisions
        )


def _urgency(ref: ShardRef) -> tuple[bool, float]:
    return isinstance(ref.task, Begun), math.inf if ref.size is None else ref.size


def _can_kill(task: Task) -> bool:
    """Whether doing it touches images or the model."""
    return isinstance(task, Slice) and task != END and not task.condemned
