"""Hold several replicas against one, through the whole job on a Ray of its own, on JPEGs like photographs.

    python jobs/benchmark_replicas.py --model infra/demo/model --replicas 1,2 --cpus-per-replica 1

Every number of replicas annotates the same corpus in its turn, so that a noisy machine favours none. Rates are the
job's own: from the first replica's being ready to the last shard. The last line on stdout is one JSON object.
Exit status 2: the command cannot be carried out.
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
from pipeline.checkpoint import load_config
from pipeline.command import exit_status
from pipeline.config import DTYPES
from pipeline.machine import commit
from pipeline.machine_speed import hardware
from pipeline.option_parser import OptionParser, typed
from pipeline.options import count, number
from pipeline.random_checkpoint import checkpoint_folder
from pipeline.random_model import check_shape
from reduction.console import run_command
from reduction.schedule import plan
from reduction.settings import Reduction
from reduction.shapes import NAMED, from_config

ROOT = Path(__file__).resolve().parent.parent


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Raises UserError or ReductionError for what cannot be measured, as far as that shows without the model."""
    parser = OptionParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    positive = typed(count(1))
    parser.add_argument("--model", required=True, help=f"hub id, checkpoint folder, or a shape: {', '.join(NAMED)}")
    parser.add_argument("--layers", type=positive, help="run only so many decoder layers of a named shape")
    parser.add_argument("--reduction", default="ficoco-v:64")
    parser.add_argument("--replicas", default="1,2", help="numbers of replicas; the first is what others are held to")
    parser.add_argument("--cpus-per-replica", type=typed(number(0)), default=1.0)
    parser.add_argument(
        "--confine",
        action="store_true",
        help="give the whole job as many cores as its replicas have: else one replica decodes images on idle ones",
    )
    parser.add_argument("--shards", type=positive, default=16)
    parser.add_argument("--images", type=positive, default=128, help="in each shard, one question each")
    parser.add_argument("--side", type=typed(count(2)), default=500, help="longer side of the JPEGs, pixels")
    parser.add_argument("--max-new-tokens", type=positive, default=16)
    parser.choose("--dtype", DTYPES, default="auto")
    parser.add_argument("--repeats", type=positive, default=3)
    args = parser.parse_args(arguments)
    try:
        args.counts = [int(word) for word in args.replicas.split(",")]
    except ValueError:
        parser.error(f"--replicas {args.replicas} must be numbers with commas between, such as 1,2")
    if min(args.counts) < 1:
        parser.error(f"--replicas {args.replicas} must be 1 or more each")
    check_shape(args.model, args.layers, [Reduction.parse(args.reduction)], text_tower=False)
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
    """What is printed; raises UserError or ReductionError where there is no such model, or it cannot be reduced so."""
    model = checkpoint_folder(args.model, args.layers, folder / "model")
    plan(Reduction.parse(args.reduction), from_config(load_config(model), model))
    (folder / "corpus").mkdir()
    for index in range(args.shards):
        write_shard(folder / "corpus" / f"{index:05d}.tar", args.images, args.side)
    rates: dict[int, list[float]] = {replicas: [] for replicas in args.counts}
    for turn in range(args.repeats):
        for replicas, found in rates.items():
            found.append(run_job(args, model, folder, replicas, turn)["images_per_second"])
            print(f"repeat {turn + 1}: {replicas} replicas {found[-1]:.2f} images/s", file=sys.stderr, flush=True)
    first = rates[args.counts[0]]
    return {
        "images_per_second": {replicas: statistics.median(found) for replicas, found in rates.items()},
        "times_the_first": {
            replicas: statistics.median(many / one for many, one in zip(found, first, strict=True))
            for replicas, found in rates.items()
        },
        "repeats": rates,
        "hardware": hardware(torch.device("cpu")),
        "commit": commit(),
        "configuration": vars(args),
    }


def main(arguments: list[str] | None = None) -> int:
    return exit_status("benchmark_replicas", lambda: run(parse_arguments(arguments)))


def run(args: argparse.Namespace) -> int:
    """Measure and print; the exit status. Raises as `measure` does."""
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args, Path(folder))
    first = args.counts[0]
    for replicas, rate in result["images_per_second"].items():
        print(f"{replicas} replicas: {rate:.2f} images/s, {result['times_the_first'][replicas]:.2f} times {first}")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
