"""`python -m reduction cost`: what a reduction setting costs on a model, as a table and one JSON line."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, NoReturn

from reduction import flops
from reduction.budget import Request, Solution, parse_budget, solve
from reduction.errors import ReductionError, unknown
from reduction.schedule import plan
from reduction.settings import Reduction
from reduction.shapes import NAMED, ModelShape, model_shape
from reduction.text_shape import text_shape

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
    parser.add_argument(
        "--budget-tflops",
        metavar="NUMBER",
        help="find how many tokens each setting, given without a number, may keep: TFLOPs of the decoder's prefill",
    )
    parser.add_argument("--budget-share", metavar="SHARE", help="the same, as a share of all that dense costs: 28%%")
    parser.add_argument(
        "--text-tower",
        metavar="FOLDER",
        help="CLIP model whose text tower cdpruner and trim choose by (a named shape has CLIP ViT-L/14's)",
    )
    parser.add_argument(
        "--question-tokens",
        type=_count,
        help="tokens of the question in that tower (default: the text behind the image, up to the tower's length)",
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
    shape: ModelShape,
    reduction: Reduction,
    text_tokens: int,
    prefix_tokens: int,
    new_tokens: int,
    question_tokens: int | None = None,
) -> dict[str, Any]:
    """All that follows from one setting's layer-input lengths, as it stands in the JSON line.

    FLOPs by part in both conventions of `reduction.flops`, the exact one with attention in full and under the causal
    mask; KV in 10^6 bytes of fp16. Where each image keeps as many tokens as it needs, it is the most that one can cost.
    `text_tokens` is all text, `prefix_tokens` those of them before the image, `question_tokens` the text tower's.
    Raises ReductionError where the setting does not fit the shape.
    """
    schedule = plan(reduction, shape)
    words = prefix_tokens, text_tokens, new_tokens
    parts = flops.count(shape, schedule, *words, reduction, question_tokens=question_tokens)
    causal = flops.count(shape, schedule, *words, reduction, causal=True, question_tokens=question_tokens)
    viewer = flops.llm_viewer(shape, schedule, text_tokens, new_tokens)
    lengths = schedule.decoder_lengths(text_tokens)
    return {
        "model_shape": shape.name,
        "reduction": str(reduction),
        "text_tokens": text_tokens,
        "prefix_tokens": prefix_tokens,
        "new_tokens": new_tokens,
        "llm_viewer_tflops": viewer.prefill / 1e12,
        "kv_megabytes": flops.kv_bytes(shape, schedule, text_tokens) / 1e6,
        "kv_megabytes_at_end": flops.kv_bytes(shape, schedule, text_tokens, new_tokens) / 1e6,
        "flops": parts.parts(),
        "flops_total": parts.total,
        "flops_causal": causal.parts(),
        "flops_llm_viewer": viewer.parts(),
        "adaptive": schedule.adaptive,
        "visual_tokens_left": schedule.visual_tokens_left,
        "vision_lengths": list(schedule.vision_lengths),
        "decoder_lengths": list(lengths),
        "mean_decoder_length": sum(lengths) / shape.decoder.layers,
        "mean_visual_tokens": sum(schedule.decoder_visual_lengths) / shape.decoder.layers,
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
        f"{figures['model_shape']}, {figures['reduction']}: {'at most ' if figures['adaptive'] else ''}"
        f"{figures['visual_tokens_left']} visual tokens left, "
        f"{figures['text_tokens']} text tokens, {figures['new_tokens']} generated",
        f"{'part':<12}{unit:>10}{'share':>9}",
        *(f"{part:<12}{value / scale:>10.3f}{value / total:>9.1%}" for part, value in rows),
        f"LLM-Viewer's figure (prefill only): {figures['llm_viewer_tflops']:.3g} TFLOPs",
        f"KV cache, fp16: {cache:.4g} MB after prefill, {at_end:.4g} MB at the end",
        f"patches entering the encoder layers, and leaving: {_runs(figures['vision_lengths'])}",
        f"tokens entering the decoder layers: {_runs(figures['decoder_lengths'])}; "
        f"{figures['mean_visual_tokens']:.4g} visual ones in the mean",
    ]
    if "budget" in figures:
        lines.append(_budget_line(**figures["budget"]))
    return "\n".join(lines)


def _budget_line(unit: str, asked: float, reached: float) -> str:
    shown = "{:.4g} TFLOPs" if unit == "tflops" else "{:.2%} of dense"
    return f"budget: {shown.format(asked)} asked, {shown.format(reached)} reached"


def _figures(parsed: argparse.Namespace, text: str, shape: ModelShape) -> dict[str, Any]:
    """One setting's figures; where a budget is given, with what it reached."""
    words = parsed.text_tokens, parsed.prefix_tokens, parsed.new_tokens
    budget = parse_budget(parsed.budget_tflops, parsed.budget_share)
    if budget is None or text == "dense":
        return cost(shape, Reduction.parse(text), *words, parsed.question_tokens)
    solved: Solution = solve(Reduction.parse(text, sized=False), shape, *budget, Request(*words))
    reached = {"unit": solved.unit, "asked": solved.asked, "reached": solved.reached}
    return {**cost(shape, solved.reduction, *words, parsed.question_tokens), "budget": reached}


def _run(arguments: Sequence[str]) -> None:
    parsed = _parse(arguments)
    texts = parsed.reduction or ["dense"]
    shape = model_shape(parsed.model_shape)
    if parsed.text_tower:
        shape = replace(shape, text=text_shape(parsed.text_tower))
    results = [_figures(parsed, text, shape) for text in texts]
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
