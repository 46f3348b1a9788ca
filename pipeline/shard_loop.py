"""The driver's work while shards are under way: count, show, track, and stop when it must."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from pipeline.cluster import Cluster, RunStopped
from pipeline.config import RunConfig
from pipeline.dispatch import Dispatcher, DispatchSettings
from pipeline.dispatch_events import BatchesAnswered, Event, ReplicaReplaced, ReplicaStarted
from pipeline.leases import FailedShard, Narrowed
from pipeline.meter import Meter
from pipeline.progress import Progress
from pipeline.records import ShardRef, ShardReport
from pipeline.shutdown import Shutdown

FEWEST_FOR_SHARE = 100
"""A share of quarantined questions is taken of at least this many, so that one bad image at the start stops nothing."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended."""

    exit_code: int = 0
    reason: str = ""
    """Why it is not complete; empty when it is."""
    failed: tuple[FailedShard, ...] = ()

    @classmethod
    def stopped(cls, shutdown: Shutdown, failed: tuple[FailedShard, ...] = ()) -> Ending:
        return cls(shutdown.exit_code, f"stopped by {shutdown.name}", failed)

    @property
    def tracking_status(self) -> str:
        return "FINISHED" if self.exit_code == 0 else "KILLED" if self.exit_code > 128 else "FAILED"


def on_cluster(
    shutdown: Shutdown, cluster: AbstractContextManager[Cluster], work: Callable[[Cluster], Ending]
) -> Ending:
    """How `work` ends on a cluster that is started for it; a signal before that, lost ones too, keeps it from starting.

    Ray must not be left half started: a signal at that time is only remembered, and ends a loop before it begins.
    """
    try:
        shutdown.catch_up()
        with shutdown.asked_only(), cluster as started:
            return work(started)
    except KeyboardInterrupt:
        return Ending.stopped(shutdown)


class ShardLoop:
    """Runs shards on a cluster.

    Args:
        record: called every `config.log_every` seconds and at the end, to track the meter.
        hindrance: asked often; why the run must not go on, or nothing.
        shutdown: what asks the run to end in order; its second signal ends it at once.
        slices: whether the replicas can do slices of shards.
        started: called with the description of every replica that is ready.
    """

    def __init__(
        self,
        config: RunConfig,
        cluster: Cluster,
        meter: Meter,
        progress: Progress,
        record: Callable[[], None],
        hindrance: Callable[[], str],
        shutdown: Shutdown,
        slices: bool = True,
        started: Callable[[Mapping[str, Any]], None] = lambda description: None,
    ) -> None:
        self.config, self.cluster, self.meter, self.progress = config, cluster, meter, progress
        self._record, self._look_for_hindrance, self._slices = record, hindrance, slices
        self._shutdown, self._started = shutdown, started
        self._hindrance = ""
        self._warned = False
        self._failed: list[FailedShard] = []
        self._next_record = config.log_every

    def run(self, pending: Sequence[ShardRef]) -> Ending:
        """Until all shards are done or the run cannot go on; never raises for what happens to shards."""
        settings = DispatchSettings(
            replicas=self.config.replicas,
            max_attempts=self.config.max_attempts,
            lease_timeout=self.config.lease_timeout,
            start_timeout=self.config.start_timeout,
            stop_grace=self.config.stop_grace,
            slices=self._slices,
            shown_every=self.config.log_every,
        )
        dispatcher = Dispatcher(self.cluster, pending, settings, self._stopping)
        try:
            for event in dispatcher.run():
                self._handle(event)
        except RunStopped as stopped:
            return Ending(1, str(stopped), tuple(self._failed))
        except KeyboardInterrupt:
            return Ending(self._shutdown.exit_code, "stopped at once", tuple(self._failed))
        finally:
            self._record()
        return self._ending()

    def _stopping(self) -> bool:
        self._hindrance = self._hindrance or self._look_for_hindrance()
        return self._shutdown.requested() or bool(self._hindrance) or self._too_many_quarantined()

    def _handle(self, event: Event) -> None:
        match event:
            case ShardReport():
                first = self.meter.first_answer is None
                self.meter.add(event)
                if first and self.meter.first_answer is not None:
                    self.progress.say(f"first answer after {self.meter.first_answer:.1f} s")
                self._warn_of_quarantine(event)
                if event.incomplete:
                    self.progress.say(f"{event.shard} is not whole: {event.incomplete}")
            case BatchesAnswered():
                self.meter.batches += event.number
            case FailedShard():
                self._failed.append(event)
                self.progress.say(f"{event.ref.name} is given up after {event.attempts} attempts: {event.reason}")
            case Narrowed(sample=None):
                self.progress.say(f"{event.ref.name} goes on in slices, to find what does this: {event.reason}")
            case Narrowed():
                self.progress.say(f"sample {event.sample} of {event.ref.name} goes to quarantine: {event.reason}")
            case ReplicaStarted():
                self.meter.ready()
                told = ", ".join(f"{name} {value}" for name, value in event.description.items() if name != "node_id")
                self.progress.say(f"replica ready in {event.seconds:.1f} s ({told})")
                self._started(event.description)
            case ReplicaReplaced():
                self.progress.say(f"replica {event.description.get('pid', '')} is replaced: {event.reason}")
        self.progress.show()
        if self.meter.elapsed >= self._next_record:
            self._next_record = self.meter.elapsed + self.config.log_every
            self._record()

    def _warn_of_quarantine(self, report: ShardReport) -> None:
        """Once, and early: a whole corpus may be without questions, or unreadable."""
        if self._warned or report.incomplete or 2 * report.quarantined < max(1, report.questions):
            return
        self._warned = True
        self.progress.say(
            f"{report.quarantined} of {report.questions} questions of {report.shard} are quarantined; "
            "jobs/verify_output.py says why, and --max-quarantined stops a run where too many are"
        )

    def _too_many_quarantined(self) -> bool:
        most, whole = self.config.max_quarantined, self.meter.whole
        if isinstance(most, float):
            return whole.quarantined > most * max(whole.questions, FEWEST_FOR_SHARE)
        return most is not None and whole.quarantined > most

    def _ending(self) -> Ending:
        failed = tuple(self._failed)
        if self._shutdown.requested():
            return Ending.stopped(self._shutdown, failed)
        if self._hindrance:
            return Ending(1, self._hindrance, failed)
        if self._too_many_quarantined():
            whole = self.meter.whole
            return Ending(1, f"{whole.quarantined} of {whole.questions} questions are quarantined: too many", failed)
        if failed:
            return Ending(1, f"{len(failed)} shards were given up, the first with: {failed[0].reason}", failed)
        return Ending()
