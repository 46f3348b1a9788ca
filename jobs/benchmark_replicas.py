"""Hold several replicas against one, through the whole job on a Ray of its own, on JPEGs like photographs.

    python jobs/benchmark_replicas.py --model infra/demo/model --replicas 1,2 --cpus-per-replica 1

Every number of replicas annotates the same corpus in its turn, so that a noisy machine favours none. Rates are the
job's own: from the first replica's being ready to the last shard. The last line on stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from pipeline.benchmark_shard import write_shard
from pipeline.machine import commit
from pipeline.machine_speed import hardware
from pipeline.random_checkpoint import checkpoint_folder
from reduction.console import run_command
from reduction.shapes import NAMED

ROOT = Path(__file__).resolve().parent.parent


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help=f"hub id, checkpoint folder, or a shape: {', '.join(NAMED)}")
    parser.add_argument("--layers", type=int, help="run only so many decoder layers of a named shape")
    parser.add_argument("--reduction", default="ficoco-v:64")
    parser.add_argument("--replicas", default="1,2", help="numbers of replicas; the first is what others are held to")
    parser.add_argument("--cpus-per-replica", type=float, default=1.0)
    parser.add_argument(
        "--confine",
        action="store_true",
        help="give the whole job as many cores as its replicas have: else one replica decodes images on idle ones",
    )
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--images", type=int, default=128, help="in each shard, one question each")
    parser.add_argument("--side", type=int, default=500, help="longer side of the JPEGs, pixels")
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args(arguments)
    try:
        args.counts = [int(word) for word in args.replicas.split(",")]
    except ValueError:
        parser.error(f"--replicas {args.replicas} must be numbers with commas between, such as 1,2")
    if min(args.counts) < 1:
        parser.error(f"--replicas {args.replicas} must be 1 or more each")
    return args


def run_job(args: argparse.Namespace, model: str, folder: Path, replicas: int, turn: int) -> dict[str, Any]:
    """Annotate the corpus with `replicas` replicas and return the job's summary.

    Raises SystemExit where the job fails, with the end of what it said.
    """
    options = {
        "--input": folder / "corpus",
        "--output": folder / f"out-{replicas}-{turn}",
        "--model": model,
        "--reduction": args.reduction,
        "--replicas": replicas,
        "--cpus-per-replica": args.cpus_per_replica,
        "--max-new-tokens": args.max_new_tokens,
        "--dtype": args.dtype,
        "--tracking-uri": f"sqlite:///{folder}/mlflow.db",
    }
    words = [str(word) for pair in options.items() for word in pair]
    alone = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, str(ROOT / "jobs/caption_corpus.py"), *words]
    if args.confine:
        cores = sorted(os.sched_getaffinity(0))[: max(1, round(replicas * args.cpus_per_replica))]
        command = ["taskset", "--cpu-list", ",".join(map(str, cores)), *command]
    done = subprocess.run(command, capture_output=True, text=True, env=alone, check=False)
    if done.returncode:
        sys.exit(f"error: the job with {replicas} replicas failed: {done.stderr.strip()[-500:]}")
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    (folder / "corpus").mkdir()
    for number in range(args.shards):
        write_shard(folder / "corpus" / f"{number:05d}.tar", args.images, args.side)
    model = checkpoint_folder(args.model, args.layers, folder / "model")
    rates: dict[int, list[float]] = {count: [] for count in args.counts}
    for turn in range(args.repeats):
        for count, found in rates.items():
            found.append(run_job(args, model, folder, count, turn)["images_per_second"])
            print(f"repeat {turn + 1}: {count} replicas {found[-1]:.2f} images/s", file=sys.stderr, flush=True)
    first = rates[args.counts[0]]
    return {
        "images_per_second": {count: statistics.median(found) for count, found in rates.items()},
        "times_the_first": {
            count: statistics.median(many / one for many, one in zip(found, first, strict=True))
            for count, found in rates.items()
        },
        "repeats": rates,
        "hardware": hardware(torch.device("cpu")),
        "commit": commit(),
        "configuration": vars(args),
    }


def main() -> None:
    args = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args, Path(folder))
    for count, rate in result["images_per_second"].items():
        print(f"{count} replicas: {rate:.2f} images/s, {result['times_the_first'][count]:.2f} times {args.counts[0]}")
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(run_command(main))
