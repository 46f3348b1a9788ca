"""The annotation job: from a configuration to an output in which every question is accounted for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from pipeline.answer_sample import answer_sample
from pipeline.cluster import Cluster, WorkerSpec
from pipeline.commit import sweep
from pipeline.config import RunConfig
from pipeline.driver_lock import DriverLock
from pipeline.first_samples import first_samples
from pipeline.ledger import Ledger, LedgerScan
from pipeline.listing import list_shards
from pipeline.meter import Meter
from pipeline.metrics_log import MetricsLog
from pipeline.progress import Progress
from pipeline.records import ShardRef
from pipeline.run_folder import METRICS_PATH, RUN_PATH, RunFolder, prepare
from pipeline.shard_loop import Ending, ShardLoop, on_cluster
from pipeline.shutdown import Shutdown
from pipeline.staged_slices import taken_up
from pipeline.storage import StorageError, open_output
from pipeline.tasks import Begun, Retry
from pipeline.totals import Totals
from pipeline.tracked_run import about_run
from pipeline.tracking import CLOSE_SECONDS, Tracker
from pipeline.verification import verify

ClusterFactory = Callable[[RunConfig, WorkerSpec], AbstractContextManager[Cluster]]
SpecFactory = Callable[[RunConfig, RunFolder], WorkerSpec]
FINDINGS_SHOWN = 20


@dataclass(frozen=True)
class JobParts:
    """What the job is put together from; tests put in lighter ones."""

    check_model: Callable[[RunConfig], str]
    """The model's digest; raises UserError or ReductionError where the run cannot work."""
    worker_spec: SpecFactory
    cluster: ClusterFactory
    check_text_tower: Callable[[RunConfig], str | None] = lambda config: None
    """The text tower's digest where answers depend on it; raises as `check_model` does."""


@dataclass(frozen=True)
class JobResult:
    exit_code: int
    summary: dict[str, Any]
    """The job's last line on stdout."""


def run(
    config: RunConfig,
    parts: JobParts,
    remarks: Mapping[str, Any] | None = None,
    shutdown: Shutdown | None = None,
) -> JobResult:
    """Annotate what is not annotated yet. `config` has absolute paths (`places.located`).

    Args:
        remarks: stand beside the settings in run.json and MLflow and change no row.
        shutdown: what listens for signals since before this; without it, they are heeded while shards are done.

    Raises:
        UserError, ReductionError: the run cannot work; nothing has been done.
    """
    began = time.monotonic()
    digests = {"model_digest": parts.check_model(config), "text_tower_digest": parts.check_text_tower(config)}
    settings = {**config.as_dict(), **digests, **(remarks or {})}
    output = open_output(config.output, config.storage_timeout)
    with DriverLock(output) as lock:
        scan = LedgerScan() if config.overwrite else Ledger(output).scan()
        refs = first_samples(list_shards(config.input, scan.known_names), config.limit, config.read_limits)
        folder = prepare(output, settings, config.overwrite)
        return _Job(config, parts, folder, refs, scan, lock, shutdown or Shutdown(), began).run()


class _Job:
    """One start of a run, once it is clear that it can work."""

    def __init__(
        self,
        config: RunConfig,
        parts: JobParts,
        folder: RunFolder,
        refs: list[ShardRef],
        scan: LedgerScan,
        lock: DriverLock,
        shutdown: Shutdown,
        began: float,
    ) -> None:
        self.config, self.parts, self.folder, self.refs, self.scan, self.lock = config, parts, folder, refs, scan, lock
        self.shutdown, self.output = shutdown, folder.output
        self._types: list[str] = []
        self.pending = scan.pending(refs)
        self.meter = Meter(scan.totals, len(refs), began, done=len(refs) - len(self.pending))
        self.progress = Progress(self.meter, config.log_every)
        self.log = MetricsLog(self.output)
        self.tracker = Tracker(
            config.tracking_uri,
            about_run(config, folder, refs),
            run_id=folder.mlflow_run_id,
            logged=self.log.lines,
            on_run=self._remember_tracking_run,
            warn=self.progress.say,
        )

    def run(self) -> JobResult:
        ending, totals = Ending(1, "stopped by an error"), self.meter.whole
        try:
            ending = self._work(self._pending())
            self.progress.close()
            if ending.exit_code == 0:
                totals, ending = self._verified()
            else:
                self.output.hurry()
            if ending.exit_code == 0:
                self.folder.succeed(totals)
            elif ending.reason:
                self.progress.say(f"{ending.reason}; {self._done()}, run the same command again to continue")
            self._write_metrics(self.log.flush)
        except KeyboardInterrupt:
            ending = Ending.stopped(self.shutdown)
            raise
        finally:
            # Also on the way out of an error: the tracking run must not seem to go on.
            table = answer_sample(self.output) if ending.exit_code == 0 else {}
            # After SIGTERM Ray waits three seconds before it kills.
            seconds = 0.5 if ending.exit_code > 128 else CLOSE_SECONDS
            self.tracker.close(ending.tracking_status, table, seconds)
        return JobResult(ending.exit_code, self._summary(totals, ending))

    def _done(self) -> str:
        return f"{self.meter.shards_done} of {len(self.refs)} shards are done"

    def _pending(self) -> list[ShardRef]:
        pending = self.pending
        for sentence in self.scan.damaged:
            self.progress.say(f"{sentence}; the shard is done again")
        if self.folder.resumed:
            self.progress.say(f"continuing: {self._done()}")
            if others := len(self.scan.entries) - len(self.scan.recorded(self.refs)):
                self.progress.say(f"the output holds {others} shards that --input does not name; they stay, and count")
            for report in Ledger(self.output).reports(self.scan.recorded(pending)):
                self.meter.redo(report)
            pending = self._taken_up(pending)
        return [*pending, *self._retries()] if self.config.retry_quarantined else pending

    def _taken_up(self, pending: list[ShardRef]) -> list[ShardRef]:
        """The same shards, and what an earlier start has done of them."""
        refs = taken_up(self.output, pending, self.folder.provenance)
        slices = [len(ref.task.staged) for ref in refs if isinstance(ref.task, Begun)]
        if slices:
            self.progress.say(f"{sum(slices)} slices of {len(slices)} unfinished shards are done")
        return refs

    def _retries(self) -> list[ShardRef]:
        """The shards whose quarantine is asked again."""
        retries = self.scan.quarantined(self.refs)
        for report in Ledger(self.output).reports(retries):
            self.meter.retry(report)
        self.progress.say(f"asking again what is quarantined in {len(retries)} shards")
        return [replace(ref, task=Retry()) for ref in retries]

    def _work(self, pending: list[ShardRef]) -> Ending:
        if not pending:
            return Ending()
        self.folder.reopen()
        spec = self.parts.worker_spec(self.config, self.folder)
        watched = self.meter, self.progress, self._record, self._hindrance, self.shutdown
        return on_cluster(
            self.shutdown,
            self.parts.cluster(self.config, spec),
            lambda cluster: ShardLoop(self.config, cluster, *watched, started=self._note_replica).run(pending),
        )

    def _hindrance(self) -> str:
        return self.lock.hindrance or self.output.trouble

    def _note_replica(self, description: Mapping[str, Any]) -> None:
        try:
            types = self.folder.remember_replica(description)
        except (OSError, StorageError) as error:
            self.progress.say(f"{RUN_PATH} cannot be written now: {error}")
            return
        if len(types) > 1 and types != self._types:
            self.progress.say(f"replicas compute in {' and '.join(types)}: answers may differ by machine, give --dtype")
        self._types = types

    def _record(self) -> None:
        self._write_metrics(lambda: self.tracker.log(self.log.append(self.meter.metrics())))

    def _write_metrics(self, write: Callable[[], None]) -> None:
        """Metrics are for looking at: an output that does not take them now must not stop the shards."""
        try:
            write()
        except (OSError, StorageError) as error:
            self.progress.say(f"{METRICS_PATH} cannot be written now: {error}")

    def _remember_tracking_run(self, run_id: str) -> None:
        if run_id != self.folder.mlflow_run_id:
            self.folder.set_mlflow_run(run_id)

    def _verified(self) -> tuple[Totals, Ending]:
        """Recount the whole output; no replica is writing any more."""
        scan = Ledger(self.output).scan()
        sweep(self.output, scan.entries.values())
        result = verify(self.output, self.refs, finished=False)
        for remark in result.remarks():
            self.progress.say(remark)
        for finding in result.findings[:FINDINGS_SHOWN]:
            self.progress.say(f"not in order: {finding}")
        if result.findings:
            return result.totals, Ending(1, f"{len(result.findings)} things are not in order in the output")
        if not result.totals.reconciled:
            return result.totals, Ending(1, "questions are not answers and quarantined together")
        return result.totals, Ending()

    def _summary(self, totals: Totals, ending: Ending) -> dict[str, Any]:
        return {
            **self.meter.summary(totals),
            "output": self.output.url,
            "mlflow_run_id": self.tracker.run_id or self.folder.mlflow_run_id,
            "complete": ending.exit_code == 0,
            "shards_listed": len(self.refs),
            **({"recovered": self.meter.recovered} if self.config.retry_quarantined else {}),
            "failed_shards": {one.ref.name: one.reason for one in ending.failed},
        }


def real_parts() -> JobParts:
    """LLaVA replicas on Ray. Imported here, so that a wrong command line is answered before torch and Ray are there."""
    from pipeline.fleet import ray_cluster
    from pipeline.model_check import check_model, text_tower_digest
    from pipeline.worker_spec import worker_spec

    return JobParts(
        lambda config: check_model(config.model, config.parsed_reduction, config.text_tower),
        worker_spec,
        ray_cluster,
        lambda config: text_tower_digest(config.text_tower, config.parsed_reduction),
    )
