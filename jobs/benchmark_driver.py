"""Measure what the driver costs with many replicas and shards: simulated replicas, no model, no accelerator.

    python jobs/benchmark_driver.py --replicas 1000 --shards 100000 [--ray-replicas 8]

Three parts: CPU time per lease (dispatch, meter, progress, metrics log, MLflow in SQLite); CPU time while all replicas
work and nothing finishes; listing the corpus and resuming from the ledger, with the ledger's content in the page cache
and dropped from it. With --ray-replicas also what a lease costs through a local Ray with workers that do nothing. The
last line on stdout is one JSON object. Exit status 2: the command cannot be carried out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.cluster import Cluster, WorkerSpec
from pipeline.command import exit_status
from pipeline.config import RunConfig
from pipeline.ledger import Ledger, encode_report
from pipeline.listing import list_shards
from pipeline.machine import commit, processor
from pipeline.meter import Meter
from pipeline.metrics_log import MetricsLog
from pipeline.option_parser import OptionParser, typed
from pipeline.options import count, number
from pipeline.part_names import data_path, file_stem, report_path
from pipeline.progress import Progress
from pipeline.records import ShardRef, ShardReport
from pipeline.run_folder import RunFolder
from pipeline.shard_loop import ShardLoop
from pipeline.shutdown import Shutdown
from pipeline.simulated_cluster import SimulatedCluster, simulated_report
from pipeline.storage import Output, open_output
from pipeline.totals import Totals
from pipeline.tracked_run import about_run
from pipeline.tracking import Tracker
from reduction.console import run_command

DAY = 86400.0


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Raises UserError for what cannot be measured."""
    parser = OptionParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    positive, seconds = typed(count(1)), typed(number(0.1, DAY))
    parser.add_argument("--replicas", type=positive, default=1000)
    parser.add_argument("--shards", type=positive, default=100_000)
    parser.add_argument("--idle-seconds", type=seconds, default=30.0, help="how long nothing finishes")
    parser.add_argument("--log-every", type=seconds, default=10.0, help="seconds between progress lines and metrics")
    parser.add_argument("--ray-replicas", type=typed(count(0)), default=0, help="actors of a local Ray; 0: no Ray")
    parser.add_argument("--ray-shards", type=positive, default=2000)
    return parser.parse_args(arguments)


class Nothing:
    """A worker that has finished every shard before it begins."""

    def describe(self) -> dict[str, Any]:
        return {}

    def work(self, ref: ShardRef) -> ShardReport:
        return simulated_report(ref)


def drive(
    cluster: Cluster, refs: Sequence[ShardRef], config: RunConfig, seconds: float | None = None
) -> tuple[int, float, float]:
    """Return shards finished, CPU and wall seconds of the driver until all are, or until `seconds` are over.

    MLflow's own thread counts; making its tables does not.
    """
    output = open_output(config.output)
    folder = RunFolder(output, "0" * 16, config.as_dict(), resumed=False)
    meter, stop = Meter(Totals(), len(refs)), list[str]()
    progress, log = Progress(meter, config.log_every), MetricsLog(output)
    tracker = Tracker(config.tracking_uri, about_run(config, folder, refs), warn=progress.say)
    while tracker.run_id is None:
        time.sleep(0.1)

    def record() -> None:
        tracker.log(log.append(meter.metrics()))

    loop = ShardLoop(config, cluster, meter, progress, record, lambda: "".join(stop), Shutdown())
    if seconds is not None:
        threading.Timer(seconds, stop.append, ["the time is over"]).start()
    cpu, wall = time.process_time(), time.perf_counter()
    loop.run(refs)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    tracker.close("FINISHED", {})
    return meter.now.shards, cpu, wall


def lease_cost(cluster: Cluster, refs: Sequence[ShardRef], config: RunConfig) -> dict[str, float]:
    shards, cpu, wall = drive(cluster, refs, config)
    return {"finished_shards": shards, "cpu_ms_per_lease": 1000 * cpu / shards, "leases_per_second": shards / wall}


def waiting_cost(args: argparse.Namespace, refs: Sequence[ShardRef], config: RunConfig) -> dict[str, float]:
    """Every replica works and none finishes."""
    _, cpu, wall = drive(SimulatedCluster(args.replicas, 0), refs, config, args.idle_seconds)
    return {"cpu_share_while_all_work": cpu / wall}


def ray_cost(args: argparse.Namespace, config: RunConfig) -> dict[str, float]:
    """Through a local Ray, whose processes' own time is not the driver's."""
    from pipeline.fleet import RayCluster
    from pipeline.placement import Share
    from pipeline.ray_connection import connected

    refs = [ShardRef(f"{i:06d}.tar", f"/corpus/{i:06d}.tar", 1, "1-1") for i in range(args.ray_shards)]
    with connected():
        cluster = RayCluster(WorkerSpec("jobs.benchmark_driver:Nothing", {}), Share(0.0))
        return lease_cost(cluster, refs, replace(config, replicas=args.ray_replicas))


def write_corpus(folder: Path, shards: int) -> None:
    """Empty files: listing looks at names and sizes alone."""
    for index in range(shards):
        path = folder / f"{index // 1000:03d}" / f"{index:06d}.tar"
        if index % 1000 == 0:
            path.parent.mkdir(parents=True)
        path.touch()


def write_ledger(output: Output, refs: Sequence[ShardRef]) -> None:
    """A report for each shard, and parts of the size they name."""
    root = output.local_root or Path()
    for name in ("ledger", "data"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for ref in refs:
        stem, report = file_stem(ref.name, ref.url), simulated_report(ref)
        report.parts = [{"path": data_path(stem), "rows": 999, "bytes": 1, "sha256": "0" * 64}]
        (root / data_path(stem)).write_bytes(b"1")
        (root / report_path(stem)).write_bytes(encode_report(report))


def forget(folder: Path) -> None:
    """Drop the files' content, not their names, from the page cache."""
    os.sync()
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def resume_cost(args: argparse.Namespace, corpus: Path, output: Output) -> dict[str, float]:
    """List the corpus, read the ledger, subtract."""
    result: dict[str, float] = {}
    for state in ("cold", "warm"):
        if state == "cold":
            forget((output.local_root or Path()) / "ledger")
        cpu, began = time.process_time(), time.perf_counter()
        scan = Ledger(output).scan()
        scanned = time.perf_counter()
        pending = scan.pending(list_shards([str(corpus)], scan.known_names))
        ended = time.perf_counter()
        if pending or len(scan.entries) != args.shards:
            sys.exit(f"error: {len(pending)} shards are pending and {len(scan.entries)} done")
        result |= {
            f"{state}_ledger_seconds": scanned - began,
            f"{state}_listing_seconds": ended - scanned,
            f"{state}_cpu_seconds": time.process_time() - cpu,
        }
    return result


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    config = RunConfig(
        input=(str(folder / "corpus"),),
        output=str(folder / "out"),
        model="none",
        tracking_uri=f"sqlite:///{folder}/mlflow.db",
        log_every=args.log_every,
        stop_grace=0.0,
    )
    print("writing a corpus of empty shards", file=sys.stderr, flush=True)
    write_corpus(folder / "corpus", args.shards)
    refs = list_shards([str(folder / "corpus")])
    (folder / "out").mkdir()
    results = lease_cost(SimulatedCluster(args.replicas, len(refs)), refs, config)
    results |= waiting_cost(args, refs, config)
    print("writing a ledger", file=sys.stderr, flush=True)
    write_ledger(open_output(config.output), refs)
    results |= resume_cost(args, folder / "corpus", open_output(config.output))
    results["peak_megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    if args.ray_replicas:
        results |= {f"ray_{name}": value for name, value in ray_cost(args, config).items()}
    return results


def main(arguments: list[str] | None = None) -> int:
    return exit_status("benchmark_driver", lambda: run(parse_arguments(arguments)))


def run(args: argparse.Namespace) -> int:
    """Measure and print; the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        results = measure(args, Path(folder))
    for name, value in results.items():
        print(f"{name}: {value:.3f}")
    machine = {"device": processor(), "python": platform.python_version()}
    print(json.dumps({**results, "hardware": machine, "commit": commit(), "configuration": vars(args)}))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
