"""Time the engine under several reductions in one run, without Ray, MLflow or webdataset.

    python jobs/benchmark_engine.py --model-shape llava-1.5-7b --layers 4 --settings dense,ficoco-v:64,ficoco-l:64

Settings alternate within each repeat, so that a noisy machine favours none. Weights are random at the true shape, or a
checkpoint's. The last line on stdout is one JSON object. Exit status 2: the command cannot be carried out.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from pipeline.checkpoint import choose_device, choose_dtype, load_checkpoint
from pipeline.command import exit_status
from pipeline.config import DEVICES, DTYPES
from pipeline.engine import Engine, Request
from pipeline.engine_timing import Timing, Work, realised_shares, report, run_once
from pipeline.errors import UserError
from pipeline.generation import GenerationSettings
from pipeline.kept_steps import KeptSteps
from pipeline.machine import commit
from pipeline.machine_speed import copy_gigabytes_per_second, hardware, matmul_tflops, synchronise
from pipeline.option_parser import OptionParser, typed
from pipeline.options import count
from pipeline.random_model import check_shape, random_llava, random_text_tower, shape_config
from pipeline.text_towers import text_tower_for
from pipeline.writable import check_writable
from reduction.console import run_command
from reduction.settings import Reduction
from reduction.shapes import NAMED
from reduction.text_tower import TextTower

MEAN, STD = (0.481, 0.458, 0.408), (0.269, 0.261, 0.276)
PREFIX_TOKENS = 5
FIRST_WORD = 10
"""Special tokens have lower ids, or the last ones."""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Raises UserError or ReductionError for what cannot be measured, as far as that shows without the model."""
    parser = OptionParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    positive = typed(count(1))
    parser.add_argument("--model-shape", required=True, help=f"{', '.join(NAMED)}, demo, or a checkpoint")
    parser.add_argument(
        "--text-tower",
        help="CLIP model that cdpruner and trim choose by; a named shape without it gets a random CLIP ViT-L/14's",
    )
    parser.add_argument("--settings", default="dense,ficoco-v:64,ficoco-l:64,ficoco-vl:64")
    parser.add_argument("--batch-size", type=positive, default=8, help="questions answered together")
    parser.add_argument("--text-tokens", type=positive, default=60)
    parser.add_argument("--new-tokens", type=positive, default=32)
    parser.add_argument("--questions-per-image", type=positive, default=1)
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--layers", type=positive, help="run only so many decoder layers of a named shape")
    parser.choose("--device", DEVICES, default="auto")
    parser.choose("--dtype", DTYPES, default="auto")
    parser.add_argument("--threads", type=positive)
    parser.choose("--baseline", ["hf"], help="also time plain `model.generate`")
    parser.add_argument("--json", type=Path, help="write the result there too")
    args = parser.parse_args(arguments)
    if args.batch_size % args.questions_per_image:
        parser.error(f"--batch-size {args.batch_size} must be a multiple of --questions-per-image")
    if args.text_tokens <= PREFIX_TOKENS:
        parser.error(f"--text-tokens must be more than {PREFIX_TOKENS}, which stand before the image")
    check_shape(args.model_shape, args.layers, map(Reduction.parse, split_settings(args.settings)))
    if args.json:
        check_writable(args.json, "--json")
    return args


def split_settings(text: str) -> list[str]:
    """Split at commas, but not inside a setting: `ficoco-v:64,epsilon=0.9,dense` is two settings."""
    return re.split(r",(?![a-z_]+=)", text)


def load_model(args: argparse.Namespace) -> Any:
    device = choose_device(args.device)
    if args.model_shape not in NAMED:
        folder = "infra/demo/model" if args.model_shape == "demo" else args.model_shape
        if args.model_shape == "demo":
            folder = str(Path(__file__).resolve().parent.parent / folder)
        return load_checkpoint(folder, args.device, args.dtype).model
    shape = NAMED[args.model_shape]
    dtype = choose_dtype(args.dtype, device, shape.decoder.width)
    return random_llava(shape_config(shape, args.layers), device, dtype)


def load_tower(model: Any, settings: list[Reduction], args: argparse.Namespace) -> TextTower | None:
    shape = NAMED.get(args.model_shape)
    if args.text_tower or shape is None or shape.text is None:
        return text_tower_for(settings, args.text_tower, model)
    if not any(setting.by_question for setting in settings):
        return None
    weight = next(model.parameters())
    return random_text_tower(shape.text, weight.device, weight.dtype)


def make_work(model: Any, args: argparse.Namespace) -> Work:
    generator = torch.Generator().manual_seed(0)
    side, vocabulary = model.config.vision_config.image_size, model.config.text_config.vocab_size
    number = args.batch_size // args.questions_per_image
    images = torch.randint(0, 256, (number, side, side, 3), dtype=torch.uint8, generator=generator)
    size = (args.batch_size, args.text_tokens)
    ids = torch.randint(FIRST_WORD, vocabulary * 9 // 10, size, generator=generator).tolist()
    suffixes = [tuple(row[PREFIX_TOKENS:]) for row in ids]
    # Where a text tower reads the question, it has about as many tokens there.
    question = " ".join(["thing"] * (args.text_tokens - PREFIX_TOKENS - 2))
    requests = tuple(Request(i // args.questions_per_image, s, question=question) for i, s in enumerate(suffixes))
    return Work(images, tuple(ids[0][:PREFIX_TOKENS]), requests, args.new_tokens)


def time_settings(model: Any, work: Work, args: argparse.Namespace) -> tuple[list[Engine], list[Timing], list[float]]:
    """Return engines, their timings, and the seconds of plain `generate` where it is asked for."""
    settings = split_settings(args.settings)
    generation = GenerationSettings(max_new_tokens=args.new_tokens)
    reductions = [Reduction.parse(text) for text in settings]
    usual: dict[str, Any] = {"mean": MEAN, "std": STD, "stop_tokens": frozenset(), "settings": generation}
    usual |= {"text_tower": load_tower(model, reductions, args), "kept": KeptSteps()}
    engines = [Engine(model, reduction, **usual) for reduction in reductions]
    timings = [Timing(text) for text in settings]
    baseline: list[float] = []
    for repeat in range(args.repeats + 1):
        for engine, timing in zip(engines, timings, strict=True):
            run_once(engine, work, timing if repeat else None)
        if args.baseline:
            seconds = time_generate(model, work, engines[0])
            baseline += [seconds] if repeat else []
        print(f"repeat {repeat} of {args.repeats}" if repeat else "warmed up", file=sys.stderr, flush=True)
    return engines, timings, baseline


@torch.inference_mode()
def time_generate(model: Any, work: Work, engine: Engine) -> float:
    """Return the seconds that plain transformers takes for the same work, one encoding per question as it does."""
    visual = [model.config.image_token_id] * engine.shape.vision.visual_tokens
    ids = torch.tensor([[*work.prefix, *visual, *request.suffix] for request in work.requests], device=engine.device)
    order = torch.tensor([request.image for request in work.requests])
    synchronise(engine.device)
    began = time.perf_counter()
    pixels: Tensor = work.images[order].to(engine.device).permute(0, 3, 1, 2).float() / 255
    pixels = ((pixels - engine.mean) / engine.std).to(engine.dtype)
    model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=pixels,
        do_sample=False,
        max_new_tokens=work.new_tokens,
        min_new_tokens=work.new_tokens,
        pad_token_id=0,
    )
    synchronise(engine.device)
    return time.perf_counter() - began


def print_table(results: list[dict[str, Any]], baseline: float | None) -> None:
    head = "setting|vision s|prefill s|decode s/token|reduction|images/s|answers/s|TFLOP/s|of peak|GB/s|of copy"
    rows = [[*head.split("|"), "realised", "peak MB", "KV MB"]]
    for r in results:
        s, realised = r["seconds"], r["realised_share"]
        rows.append(
            [
                r["setting"],
                f"{s['vision']:.3f}",
                f"{s['prefill']:.3f}",
                f"{s['decode_per_token']:.4f}",
                f"{r['reduction_share']:.1%}",
                f"{r['images_per_second']:.2f}",
                f"{r['answers_per_second']:.2f}",
                f"{r['vision_prefill_tflops']:.2f}",
                f"{r['share_of_matmul_peak']:.0%}",
                f"{r['decode_gigabytes_per_second']:.1f}",
                f"{r['share_of_copy_bandwidth']:.0%}",
                "-" if realised is None else f"{realised:.2f}",
                f"{r['peak_megabytes']:.0f}",
                f"{r['kv_megabytes']:.0f}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    if baseline is not None:
        print(f"plain transformers generate: {baseline:.3f} s for the same work")


def main(arguments: list[str] | None = None) -> int:
    return exit_status("benchmark_engine", lambda: measure(parse_arguments(arguments)))


def measure(args: argparse.Namespace) -> int:
    """Time, print, and write; the exit status.

    Raises:
        UserError: a model that cannot be loaded, no such device, or the file for the result cannot be written any more.
        ReductionError: a setting that does not fit the model.
    """
    if args.threads:
        torch.set_num_threads(args.threads)
    model = load_model(args)
    work = make_work(model, args)
    engines, timings, baseline = time_settings(model, work, args)
    device, dtype = engines[0].device, engines[0].dtype
    peak, bandwidth = matmul_tflops(device, dtype), copy_gigabytes_per_second(device)
    results = [report(e, work, t, peak, bandwidth) for e, t in zip(engines, timings, strict=True)]
    realised_shares(results)
    hf = statistics.median(baseline) if baseline else None
    for result in results:
        result["speed_over_generate"] = hf and hf / result["seconds"]["total"]
    print_table(results, hf)
    configuration = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    whole = {
        "hardware": hardware(device) | {"matmul_tflops": peak, "copy_gigabytes_per_second": bandwidth},
        "commit": commit(),
        "configuration": configuration | {"dtype": str(dtype).removeprefix("torch."), "decoder_slice": args.layers},
        "settings": results,
        "baseline_generate_seconds": hf,
    }
    print(json.dumps(whole), flush=True)
    if args.json:
        write(args.json, json.dumps(whole, indent=1) + "\n")
    return 0


def write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise UserError(f"cannot write --json {path}: {error.strerror}; the result stands on stdout") from None


if __name__ == "__main__":
    sys.exit(run_command(main))
