"""`python -m reduction cost`: what a reduction setting costs on a model, as a table and one JSON line."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NoReturn

from reduction import flops
from reduction.errors import ReductionError, unknown
from reduction.schedule import plan
from reduction.settings import Reduction
from reduction.shapes import NAMED, ModelShape, model_shape

COMMANDS = ("cost",)
_UNITS = (("TFLOPs", 1e12), ("GFLOPs", 1e9), ("MFLOPs", 1e6))


class _Parser(argparse.ArgumentParser):
    """Reports bad arguments in one sentence, without the usage text."""

    def error(self, message: str) -> NoReturn:
        raise ReductionError(f"{message} (see python -m reduction cost --help)")


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a count: give a whole number, 0 or more")
    return value


def _parser() -> _Parser:
    parser = _Parser(prog="python -m reduction cost", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--model-shape", required=True, metavar="NAME|FOLDER", help=f"{', '.join(NAMED)}, or a folder with config.json"
    )
    parser.add_argument(
        "--reduction",
        action="append",
        metavar="SETTING",
        help="dense, ficoco-v:64, ficoco-l:11%%, ficoco-vl:128,split=0.5, ...; repeat to compare (default: dense)",
    )
    parser.add_argument("--text-tokens", type=_count, default=60, help="all text tokens of the prompt (default: 60)")
    parser.add_argument(
        "--prefix-tokens",
        type=_count,
        default=0,
        help="those of them before the image, which a reduction in the decoder does not look at (default: 0)",
    )
    parser.add_argument("--new-tokens", type=_count, default=32, help="tokens generated (default: 32)")
    return parser


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    options = [option for action in parser._actions for option in action.option_strings]
    # Before parsing, so that a misspelt required option is reported as misspelt, not as missing.
    for argument in arguments:
        option = argument.split("=", 1)[0]
        if option.startswith("--") and option not in options:
            raise unknown("option", option, options)
    parsed, stray = parser.parse_known_args(arguments)
    if stray:
        raise unknown("argument", stray[0], options)
    if parsed.prefix_tokens > parsed.text_tokens:
        raise ReductionError(
            f"--prefix-tokens {parsed.prefix_tokens} is more than --text-tokens {parsed.text_tokens}, "
            "which counts all text."
        )
    return parsed


def cost(
    shape: ModelShape, reduction: Reduction, text_tokens: int, prefix_tokens: int, new_tokens: int
) -> dict[str, Any]:
    """The figures of one setting, as they stand in the JSON line; KV in 10^6 bytes of fp16."""
    schedule = plan(reduction, shape)
    parts = flops.count(shape, schedule, prefix_tokens, text_tokens, new_tokens, reduction)
    return {
        "model_shape": shape.name,
        "reduction": str(reduction),
        "text_tokens": text_tokens,
        "prefix_tokens": prefix_tokens,
        "new_tokens": new_tokens,
        "llm_viewer_tflops": flops.llm_viewer_tflops(shape, schedule, text_tokens),
        "kv_megabytes": flops.kv_bytes(shape, schedule, text_tokens) / 1e6,
        "kv_megabytes_at_end": flops.kv_bytes(shape, schedule, text_tokens, new_tokens) / 1e6,
        "flops": parts.parts(),
        "flops_total": parts.total,
        "visual_tokens_left": schedule.visual_tokens_left,
        "vision_lengths": list(schedule.vision_lengths),
        "decoder_lengths": list(schedule.decoder_lengths(text_tokens)),
        "mean_decoder_length": sum(schedule.decoder_lengths(text_tokens)) / shape.decoder.layers,
    }


def _runs(lengths: Sequence[int]) -> str:
    """Lengths in a line, repeats counted: `576 x12, 529, 482`."""
    groups = [(length, len(list(group))) for length, group in groupby(lengths)]
    return ", ".join(f"{length} x{times}" if times > 1 else str(length) for length, times in groups)


def table(figures: dict[str, Any]) -> str:
    """The figures for people."""
    total = figures["flops_total"]
    unit, scale = next((entry for entry in _UNITS if total >= entry[1] / 10), _UNITS[-1])
    rows = [*figures["flops"].items(), ("total", total)]
    cache, at_end = figures["kv_megabytes"], figures["kv_megabytes_at_end"]
    lines = [
        f"{figures['model_shape']}, {figures['reduction']}: {figures['visual_tokens_left']} visual tokens left, "
        f"{figures['text_tokens']} text tokens, {figures['new_tokens']} generated",
        f"{'part':<12}{unit:>10}{'share':>9}",
        *(f"{part:<12}{value / scale:>10.3f}{value / total:>9.1%}" for part, value in rows),
        f"LLM-Viewer's figure (prefill only): {figures['llm_viewer_tflops']:.3g} TFLOPs",
        f"KV cache, fp16: {cache:.4g} MB after prefill, {at_end:.4g} MB at the end",
        f"patches entering the encoder layers, and leaving: {_runs(figures['vision_lengths'])}",
        f"tokens entering the decoder layers: {_runs(figures['decoder_lengths'])}",
    ]
    return "\n".join(lines)


def _run(arguments: Sequence[str]) -> None:
    parsed = _parse(arguments)
    settings = [Reduction.parse(text) for text in parsed.reduction or ["dense"]]
    shape = model_shape(parsed.model_shape)
    results = [
        cost(shape, setting, parsed.text_tokens, parsed.prefix_tokens, parsed.new_tokens) for setting in settings
    ]
    for figures in results:
        print(table(figures), end="\n\n")
    print(json.dumps(results[0] if len(results) == 1 else {"model_shape": shape.name, "settings": results}))


def main(arguments: Sequence[str]) -> int:
    """Runs one command; 2 and a sentence on stderr for bad input."""
    command, *rest = arguments or ["--help"]
    if command in ("-h", "--help"):
        print("usage: python -m reduction cost --model-shape NAME|FOLDER [--reduction SETTING] ...\n")
        print("cost    what a reduction costs: FLOPs by part, KV bytes, lengths (cost --help for its options)")
        return 0
    try:
        if command not in COMMANDS:
            raise unknown("command", command, COMMANDS)
        _run(rest)
    except ReductionError as error:
        print(f"python -m reduction: {error}", file=sys.stderr)
        return 2
    return 0
