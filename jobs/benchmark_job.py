"""Hold the whole path of a shard (tar, JPEG, prompts, engine, Parquet) against the engine alone, in one run.

    python jobs/benchmark_job.py --model infra/demo/model --reduction ficoco-v:64 --images 256 --side 500

Both do the same questions with the same batches and alternate, so that a noisy machine favours neither. Also measures
the image and text path without a model, and whether memory grows with the number of samples. The last line on stdout
is one JSON object. Exit status 2: the command cannot be carried out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from pipeline.batching import Picture, plan_batches
from pipeline.benchmark_shard import write_shard
from pipeline.checkpoint import choose_device
from pipeline.command import exit_status
from pipeline.config import DEVICES, DTYPES
from pipeline.generation import GenerationSettings
from pipeline.machine import commit
from pipeline.machine_speed import hardware
from pipeline.option_parser import OptionParser, typed
from pipeline.options import count
from pipeline.random_checkpoint import checkpoint_folder
from pipeline.random_model import check_shape
from pipeline.records import ShardRef
from pipeline.replica import ReplicaSettings
from pipeline.shard_work import ShardWorker
from reduction.console import run_command
from reduction.settings import Reduction
from reduction.shapes import NAMED


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Raises UserError or ReductionError for what cannot be measured, as far as that shows without the model."""
    parser = OptionParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    positive = typed(count(1))
    parser.add_argument("--model", required=True, help=f"hub id, checkpoint folder, or a shape: {', '.join(NAMED)}")
    parser.add_argument("--layers", type=positive, help="run only so many decoder layers of a named shape")
    parser.add_argument("--reduction", default="ficoco-v:64")
    parser.add_argument("--text-tower", help="CLIP model that cdpruner and trim choose by")
    parser.add_argument("--images", type=positive, default=256, help="in the shard, one question each")
    parser.add_argument("--side", type=typed(count(2)), default=500, help="longer side of the JPEGs, pixels")
    parser.add_argument("--draft-jpegs", action="store_true", help="as the job's option of that name")
    parser.add_argument("--batch-size", type=positive)
    parser.add_argument("--max-new-tokens", type=positive, default=16)
    parser.add_argument("--repeats", type=positive, default=5)
    parser.choose("--device", DEVICES, default="auto")
    parser.choose("--dtype", DTYPES, default="auto")
    args = parser.parse_args(arguments)
    check_shape(args.model, args.layers, [Reduction.parse(args.reduction)], args.text_tower is not None)
    choose_device(args.device)
    return args


def prepared(worker: ShardWorker, ref: ShardRef) -> tuple[list[list[list[Picture]]], float]:
    """Return the shard's batches by window, and the seconds that reading, decoding and tokenising took alone."""
    began = time.perf_counter()
    windows = [window.pictures for window in worker.preparation.windows(ref)]
    seconds = time.perf_counter() - began
    return [list(plan_batches(window, worker.replica.batch_size)) for window in windows], seconds


def resident_megabytes() -> float:
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1000 for line in lines if line.startswith("VmRSS")), 0.0)


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What is printed; raises UserError or ReductionError where the model cannot be loaded or reduced so."""
    settings = ReplicaSettings(
        checkpoint_folder(args.model, args.layers, folder / "model"),
        args.reduction,
        args.device,
        args.dtype,
        args.batch_size,
        draft_jpegs=args.draft_jpegs,
        generation=GenerationSettings(max_new_tokens=args.max_new_tokens),
        text_tower=args.text_tower,
    )
    worker = ShardWorker(settings, str(folder / "out"))
    ref = write_shard(folder / "00000.tar", args.images, args.side)
    windows, _ = prepared(worker, ref)
    worker.replica.answer(windows[0][0])
    alone: list[float] = []
    whole: list[float] = []
    paths: list[float] = []
    memory: list[float] = []
    for repeat in range(args.repeats):
        paths.append(prepared(worker, ref)[1])
        began = time.perf_counter()
        for batches in windows:
            for _ in worker.replica.answer_together(batches):
                pass
        alone.append(time.perf_counter() - began)
        began = time.perf_counter()
        worker.work(ref)
        whole.append(time.perf_counter() - began)
        memory.append(resident_megabytes())
        print(f"repeat {repeat + 1}: engine {alone[-1]:.2f} s, shard {whole[-1]:.2f} s", file=sys.stderr, flush=True)
    return {
        "engine_images_per_second": args.images / statistics.median(alone),
        "shard_images_per_second": args.images / statistics.median(whole),
        "ratio": statistics.median(a / w for a, w in zip(alone, whole, strict=True)),
        "path_without_model_images_per_second": args.images / statistics.median(paths),
        "resident_megabytes": memory,
        "hardware": hardware(worker.replica.engine.device),
        "replica": worker.describe(),
        "commit": commit(),
        "configuration": vars(args),
    }


def main(arguments: list[str] | None = None) -> int:
    return exit_status("benchmark_job", lambda: run(parse_arguments(arguments)))


def run(args: argparse.Namespace) -> int:
    """Measure and print; the exit status. Raises as `measure` does."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args, Path(folder))
    for name in ("engine_images_per_second", "shard_images_per_second", "ratio"):
        print(f"{name}: {result[name]:.3f}")
    print(f"image and text path without a model: {result['path_without_model_images_per_second']:.0f} images/s")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
