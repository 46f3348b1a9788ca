"""The comparison job: settings on the same samples, in the same batches, on the same replicas, then what follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from pipeline.cluster import Cluster, WorkerSpec
from pipeline.commit import sweep
from pipeline.compare_budgets import Settings, check_settings, choose_settings, mean_prompt_tokens, needs_budget
from pipeline.compare_config import DENSE, CompareConfig
from pipeline.compare_examples import examples_of
from pipeline.compare_folder import CompareFolder, known_names, prepare_comparison, setting_url
from pipeline.compare_results import gather
from pipeline.compare_tables import as_columns, as_csv, as_parquet, metrics, rows
from pipeline.comparison import Comparison
from pipeline.config import RunConfig
from pipeline.driver_lock import DriverLock
from pipeline.errors import UserError
from pipeline.ledger import Ledger
from pipeline.listing import list_shards
from pipeline.meter import Meter
from pipeline.metrics_log import MetricsLog
from pipeline.model_check import checked_shape
from pipeline.progress import Progress
from pipeline.records import ShardRef
from pipeline.report import write_report
from pipeline.run_folder import METRICS_PATH
from pipeline.shard_loop import Ending, ShardLoop, on_cluster
from pipeline.shutdown import Shutdown
from pipeline.spread_samples import spread_samples
from pipeline.storage import StorageError, open_output
from pipeline.totals import Totals
from pipeline.tracked_run import about_run
from pipeline.tracking import CLOSE_SECONDS, Tracker
from pipeline.verification import verify
from pipeline.worker_spec import replica_settings
from reduction.budget import Request
from reduction.shapes import ModelShape

FINDINGS_SHOWN = 20

CompareCluster = Callable[[RunConfig, WorkerSpec], AbstractContextManager[Cluster]]


@dataclass(frozen=True)
class CompareResult:
    exit_code: int
    summary: dict[str, Any]
    """The job's last line on stdout."""
    comparison: Comparison | None = None
    """None where the comparison is not complete."""
    folder: CompareFolder | None = None
    refs: tuple[ShardRef, ...] = ()
    """The samples compared on."""


def compare(config: CompareConfig, cluster: CompareCluster, shutdown: Shutdown | None = None) -> CompareResult:
    """Measure what is not measured yet and write the comparison. `config` has absolute paths (`places.located`).

    Raises:
        UserError, ReductionError: the comparison cannot work; nothing has been done.
    """
    written, budgets = config.wanted
    digest, shape = checked_shape(config.model, config.text_tower)
    check_settings(written, budgets, shape)
    output = open_output(config.output, config.storage_timeout)
    with DriverLock(output) as lock:
        names = {} if config.overwrite else known_names(config.output, DENSE)
        refs = spread_samples(list_shards(config.input, names), config.samples, config.read_limits)
        if not refs:
            raise UserError("the input has no sample to compare on; check --input")
        text = mean_prompt_tokens(config, refs) if needs_budget(written) else 0
        request = Request(text_tokens=text, new_tokens=config.max_new_tokens)
        settings = choose_settings(written, budgets, shape, request)
        folder = prepare_comparison(config, settings.names, digest, refs)
        return _Job(config, cluster, folder, refs, settings, shape, lock, shutdown or Shutdown()).run()


class _Job:
    """One start of a comparison, once it is clear that it can work."""

    def __init__(
        self,
        config: CompareConfig,
        cluster: CompareCluster,
        folder: CompareFolder,
        refs: list[ShardRef],
        settings: Settings,
        shape: ModelShape,
        lock: DriverLock,
        shutdown: Shutdown,
    ) -> None:
        self.config, self.cluster, self.folder, self.refs = config, cluster, folder, refs
        self.settings, self.shape, self.lock, self.shutdown = settings, shape, lock, shutdown
        self.pending = folder.pending(refs)
        self.meter = Meter(Totals(shards=len(refs) - len(self.pending)), len(refs))
        self.progress = Progress(self.meter, config.log_every)
        self.log = MetricsLog(folder.output)
        self.tracker = Tracker(
            config.tracking_uri,
            self._about(),
            run_id=folder.mlflow_run_id,
            logged=self.log.lines,
            on_run=lambda run_id: folder.remember(mlflow_run_id=run_id),
            warn=self.progress.say,
        )

    def run(self) -> CompareResult:
        ending, comparison = Ending(1, "stopped by an error"), None
        try:
            for sentence in self.settings.out_of_reach:
                self.progress.say(f"left out: {sentence}")
            ending = self._work()
            self.progress.close()
            if ending.exit_code == 0:
                ending = self._verified()
            else:
                self.lock.output.hurry()
                self.folder.output.hurry()
            if ending.exit_code == 0:
                comparison = self._compared()
                self.progress.say(comparison.recommendation)
            elif ending.reason:
                self.progress.say(f"{ending.reason}; run the same command again to continue")
            self.log.flush()
        except KeyboardInterrupt:
            ending = Ending.stopped(self.shutdown)
            raise
        finally:
            # Also on the way out of an error: the tracking run must not seem to go on.
            table = as_columns(comparison) if comparison else {}
            seconds = 0.5 if ending.exit_code > 128 else CLOSE_SECONDS
            self.tracker.close(ending.tracking_status, table, seconds, "comparison.json")
        summary = self._summary(comparison, ending)
        return CompareResult(ending.exit_code, summary, comparison, self.folder, tuple(self.refs))

    def _work(self) -> Ending:
        count = len(self.settings.names)
        done = len(self.refs) - len(self.pending)
        self.progress.say(f"comparing {count} settings on {len(self.refs)} shards, of which {done} are done")
        if not self.pending:
            return Ending()
        spec = compare_worker_spec(self.config, self.folder, self.refs)
        # Times are compared within one pass over a shard, so it is not cut.
        watched = self.meter, self.progress, self._record, self._hindrance, self.shutdown
        return on_cluster(
            self.shutdown,
            self.cluster(self.config, spec),
            lambda cluster: ShardLoop(self.config, cluster, *watched, slices=False).run(self.pending),
        )

    def _hindrance(self) -> str:
        return self.lock.hindrance or self.lock.output.trouble

    def _record(self) -> None:
        """Metrics are for looking at: an output that does not take them now must not stop the shards."""
        try:
            self.tracker.log(self.log.append(self.meter.metrics()))
        except (OSError, StorageError) as error:
            self.progress.say(f"{METRICS_PATH} cannot be written now: {error}")

    def _verified(self) -> Ending:
        """Recount every setting's output; no replica is writing any more."""
        for setting, run in self.folder.runs.items():
            sweep(run.output, Ledger(run.output).scan().entries.values())
            result = verify(run.output, self.refs, finished=False)
            for finding in result.findings[:FINDINGS_SHOWN]:
                self.progress.say(f"not in order under {setting}: {finding}")
            if result.findings or not result.totals.reconciled:
                return Ending(1, f"the output of {setting} is not in order")
            run.succeed(result.totals)
        return Ending()

    def _compared(self) -> Comparison:
        """Put the comparison together, and write it and tell it to everyone."""
        comparison = gather(self.config, self.folder, self.refs, self.shape, self.settings.budgets)
        comparison = replace(comparison, notes=(*comparison.notes, *self.settings.out_of_reach))
        for name, content in {"comparison.parquet": as_parquet, "comparison.csv": as_csv}.items():
            self._write(name, content(comparison))
        write_report(self.folder.output, comparison)
        for name in ("report.html", "report.md"):
            self.tracker.add_file(name, self.folder.output.read(name))
        for result in comparison.results:
            about = {"reduction": result.setting, "method": result.method, "samples": comparison.samples}
            self.tracker.add_child(result.setting, about, metrics(result))
        return comparison

    def _write(self, name: str, content: bytes) -> None:
        self.folder.output.put_atomic(name, content)
        self.tracker.add_file(name, content)

    def _about(self) -> Any:
        about = about_run(self.config, self.folder.runs[DENSE], self.refs)
        parameters = {name: value for name, value in about.parameters.items() if name not in ("reduction", "limit")}
        own = {"settings": " ".join(self.settings.names), "samples": self.config.samples}
        tags = {**about.tags, "mlflow.source.name": "jobs/compare_reductions.py"}
        return replace(about, parameters={**parameters, **own}, tags=tags)

    def _summary(self, comparison: Comparison | None, ending: Ending) -> dict[str, Any]:
        return {
            "complete": ending.exit_code == 0,
            "output": self.folder.output.url,
            "mlflow_run_id": self.tracker.run_id or self.folder.mlflow_run_id,
            "samples": comparison.samples if comparison else None,
            "recommendation": comparison.recommendation if comparison else None,
            "recommended": comparison.recommended if comparison else None,
            "settings": rows(comparison) if comparison else [],
            "notes": list(comparison.notes) if comparison else [],
            "failed_shards": {one.ref.name: one.reason for one in ending.failed},
        }


def compare_worker_spec(config: CompareConfig, folder: CompareFolder, refs: Sequence[ShardRef]) -> WorkerSpec:
    """The worker that answers shards under every setting."""
    arguments = {
        "replica": replica_settings(config, DENSE),
        "output": config.output,
        "settings": {setting: setting_url(config.output, setting) for setting in folder.runs},
        "provenance": {setting: run.provenance for setting, run in folder.runs.items()},
        "repeats": config.repeats,
        "start": folder.start,
        "examples": examples_of(refs),
        "prompt": config.prompt,
        "limits": config.read_limits,
    }
    return WorkerSpec("pipeline.compare_worker:CompareWorker", arguments)


def compare_on_ray(config: CompareConfig, shutdown: Shutdown) -> CompareResult:
    """The comparison on Ray, which is imported here: a wrong command line is answered before it is there."""
    from pipeline.fleet import ray_cluster

    return compare(config, ray_cluster, shutdown)
