"""The driver's loop: keeps replicas running, leases shards to them, and replaces what dies or hangs.

Plain Python: the cluster is whatever offers `Cluster`'s methods (`fleet.RayCluster`, or a stand-in in tests).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.cluster import Call, Cluster, Pulse, ReplicaLost, RunStopped, ShardFailed
from pipeline.dispatch_events import BatchesAnswered, Event, ReplicaReplaced, ReplicaStarted, Tick
from pipeline.leases import Lease, LeaseQueue
from pipeline.patience import Patience
from pipeline.records import ShardRef, ShardReport
from pipeline.tasks import LETHAL
from pipeline.watched_replica import WatchedReplica

POLL_SECONDS = 0.5
CAPACITY_SECONDS = 5.0
"""How often the cluster is asked whether machines have joined."""
RETRY_SECONDS = 1.0
"""Wait after a replica that could not start; doubled with every further one."""
PULSE_SECONDS = 30.0
"""How often a replica is asked for its pulse, or four times within the lease's timeout; few replicas more often."""
FAILED_STARTS = 3
"""Failed starts in a row that end the run when no replica works; one more for every further replica started at once."""


@dataclass(frozen=True, slots=True)
class DispatchSettings:
    replicas: int | None = None
    """None: as many as the cluster holds."""
    max_attempts: int = 5
    lease_timeout: float = 600.0
    """Seconds without a change of pulse after which a working replica is replaced."""
    start_timeout: float = 1800.0
    """Seconds from its process being there until it must be ready; also the wait for a first process."""
    stop_grace: float = 2.0
    slices: bool = True
    """Whether shards may be leased in slices."""
    shown_every: float = PULSE_SECONDS
    """Seconds between looks at how far the run is."""


class Dispatcher:
    """Carries shards through a cluster's replicas; iterate over `run()` for what happens.

    Args:
        stopping: asked often; once it says True no shard is leased any more, and those under way get
            `settings.stop_grace` seconds.
    """

    def __init__(
        self,
        cluster: Cluster,
        refs: Sequence[ShardRef],
        settings: DispatchSettings,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.queue = LeaseQueue(refs, settings.max_attempts, settings.slices)
        self._cluster = cluster
        self._settings = settings
        self._stopping = stopping
        self._replicas: list[WatchedReplica] = []
        # With a thousand replicas an event must not cost a walk over all of them.
        self._waiting: dict[Call, WatchedReplica] = {}
        self._idle: deque[WatchedReplica] = deque()
        self._next_look = 0.0
        self._target = 0
        self._next_census = 0.0
        self._next_launch = 0.0
        self._failed_starts = 0
        self._patience = Patience()
        self._last_placed = time.monotonic()
        """When a machine last held a replica."""

    def run(self) -> Iterator[Event]:
        """Until every shard is finished or given up, or the run is stopped; replicas are gone afterwards.

        Raises:
            RunStopped: no replica can be started, or nothing but failures comes back.
        """
        try:
            deadline: float | None = None
            while self.queue.unfinished:
                if deadline is None and self._stopping():
                    deadline = time.monotonic() + self._settings.stop_grace
                if deadline is None:
                    self._grow()
                    self._lease_out()
                elif time.monotonic() >= deadline or not self._working():
                    return
                yield from self._collect()
                yield from self._replace_hung()
                yield Tick()
        finally:
            for replica in self._replicas:
                replica.handle.kill()
            self._replicas.clear()

    def _working(self) -> list[WatchedReplica]:
        return [replica for replica in self._replicas if replica.state == "working"]

    def _grow(self) -> None:
        now = time.monotonic()
        if now >= self._next_census:
            self._next_census = now + CAPACITY_SECONDS
            room = self._cluster.capacity()
            self._target = self._settings.replicas or room
        missing = self.queue.useful(self._target) - len(self._replicas)
        if now >= self._next_launch:
            for _ in range(missing):
                handle = self._cluster.launch()
                replica = WatchedReplica(handle, handle.start(), "placing", now, pulse=handle.pulse())
                self._replicas.append(replica)
                self._waiting |= {replica.call: replica, replica.pulse: replica}
        if any(replica.state != "placing" for replica in self._replicas):
            self._last_placed = now
        if now - self._last_placed > self._settings.start_timeout:
            raise RunStopped(
                f"no machine had room for a replica within {self._settings.start_timeout:g} s: free resources, "
                "or lower --cpus-per-replica or --gpus-per-replica"
            )

    def _lease_out(self) -> None:
        while self._idle:
            replica = self._idle[0]
            if replica.state == "idle":
                lease = self.queue.take(self._target, replica)
                if lease is None:
                    return
                replica.lease, replica.state, replica.changed = lease, "working", time.monotonic()
                replica.call = replica.handle.work(lease.ref)
                self._waiting[replica.call] = replica
                if ahead := self.queue.promise(replica, self._target):
                    replica.handle.expect(ahead)
            self._idle.popleft()

    def _collect(self) -> Iterator[Event]:
        """Wait for answers, at most a moment, and act on each."""
        if not self._waiting:
            time.sleep(POLL_SECONDS)
            return
        for call in self._cluster.wait(list(self._waiting), POLL_SECONDS):
            replica = self._waiting.pop(call, None)
            if replica is None:  # lost by an answer before this one
                continue
            try:
                answer = self._cluster.result(call)
            except ReplicaLost as lost:
                yield from self._lose(replica, str(lost), lost.blameless)
            except ShardFailed as failure:
                yield from self._fail(replica, str(failure))
            else:
                yield from self._pulsed(replica, answer) if call == replica.pulse else self._answered(replica, answer)

    def _pulsed(self, replica: WatchedReplica, beat: Pulse) -> Iterator[Event]:
        now = time.monotonic()
        # As often as it is looked at, but no more than one a second in all.
        wanted = max(self._settings.shown_every, len(self._replicas))
        batches = replica.pulsed(beat, now, min(PULSE_SECONDS, self._settings.lease_timeout / 4, wanted))
        if batches:
            yield BatchesAnswered(batches)

    def _answered(self, replica: WatchedReplica, answer: Any) -> Iterator[Event]:
        now = time.monotonic()
        replica.call, replica.state, replica.changed = None, "idle", now
        self._idle.append(replica)
        if replica.lease is None:
            replica.description, self._failed_starts = answer, 0
            yield ReplicaStarted(answer, now - replica.launched)
            return
        lease, replica.lease, replica.failures = replica.lease, None, 0
        attempts = self.queue.finish(lease, answer)
        if answer.answers or lease.whole:
            self._patience.success()
        if isinstance(answer, ShardReport):
            answer.attempts = attempts
            yield answer

    def _fail(self, replica: WatchedReplica, reason: str) -> Iterator[Event]:
        """An exception came back instead of an answer."""
        lease, replica.lease = replica.lease, None
        if lease is None:
            yield from self._lose(replica, reason)
            return
        replica.call, replica.state = None, "idle"
        self._idle.append(replica)
        replica.failures += 1
        yield from self._count_failure(lease, reason)
        if replica.failures > 1:
            yield from self._lose(replica, f"two shards in a row failed on it, the last with: {reason}")

    def _lose(self, replica: WatchedReplica, reason: str, blameless: bool = False) -> Iterator[Event]:
        self._replicas.remove(replica)
        self.queue.release(replica)
        replica.state = "lost"
        for call in (replica.call, replica.pulse):
            self._waiting.pop(call, None)
        replica.handle.kill()
        yield ReplicaReplaced(replica.description, reason)
        if not replica.description:
            self._count_failed_start(reason, blameless)
        elif replica.lease is not None and blameless:
            self.queue.give_back(replica.lease)
        elif replica.lease is not None:
            yield from self._count_failure(replica.lease, f"{LETHAL}: {reason}", lost=True)

    def _count_failure(self, lease: Lease, reason: str, lost: bool = False) -> Iterator[Event]:
        outcome = self.queue.lose(lease, reason) if lost else self.queue.fail(lease, reason)
        if outcome:
            yield outcome
        self._patience.failure(lease.whole, outcome, reason, max(self._target, len(self._replicas)))

    def _count_failed_start(self, reason: str, blameless: bool) -> None:
        """A machine that vanished while a replica loaded says nothing about the next one."""
        if blameless:
            self._next_launch = time.monotonic() + RETRY_SECONDS
            return
        self._failed_starts += 1
        self._next_launch = time.monotonic() + RETRY_SECONDS * 2 ** min(self._failed_starts - 1, 6)
        works = any(replica.state in ("idle", "working") for replica in self._replicas)
        most = FAILED_STARTS - 1 + max(1, self.queue.useful(self._target))
        if self._failed_starts >= most and not works:
            raise RunStopped(f"no replica could be started in {self._failed_starts} tries: {reason}")

    def _replace_hung(self) -> Iterator[Event]:
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + min(POLL_SECONDS, self._settings.lease_timeout / 8)
        limits = {"starting": self._settings.start_timeout, "working": self._settings.lease_timeout}
        for replica in list(self._replicas):
            if replica.pulse is None and now >= replica.next_pulse:
                replica.pulse = replica.handle.pulse()
                self._waiting[replica.pulse] = replica
            limit = limits.get(replica.state)
            if limit is not None and now - replica.changed > limit:
                yield from self._lose(replica, f"no progress for {limit:g} s")
