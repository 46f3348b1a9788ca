"""A budget given as cost becomes the number of visual tokens that a method may keep.

Two kinds of budget: TFLOPs of the decoder's prefill in LLM-Viewer's convention, as papers label their settings, and a
share of the exact FLOPs of the whole dense request (tower, projector, prefill, decode).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from reduction import flops
from reduction.errors import ReductionError
from reduction.schedule import plan
from reduction.settings import Reduction
from reduction.shapes import ModelShape

Unit = Literal["tflops", "share"]

ROUNDING = 0.01
"""A budget may lie this much, relatively, above what a method costs at most: published labels are rounded."""


@dataclass(frozen=True, slots=True)
class Request:
    """The prompt and answer that a budget is meant for."""

    text_tokens: int = 60
    """All text of the prompt."""
    prefix_tokens: int = 0
    """Those of them before the image."""
    new_tokens: int = 32


@dataclass(frozen=True, slots=True)
class Solution:
    """The setting that comes nearest to a budget from below."""

    reduction: Reduction
    unit: Unit
    asked: float
    reached: float
    """In the unit of `asked`: TFLOPs (10^12), or a share of 1."""


def cost_of(reduction: Reduction, shape: ModelShape, request: Request, unit: Unit) -> float:
    """What one request costs in a budget's unit."""
    schedule = plan(reduction, shape)
    if unit == "tflops":
        return flops.llm_viewer_tflops(shape, schedule, request.text_tokens)
    words = request.prefix_tokens, request.text_tokens, request.new_tokens
    dense = Reduction()
    whole = flops.count(shape, plan(dense, shape), *words, dense).total
    return flops.count(shape, schedule, *words, reduction).total / whole


@lru_cache(maxsize=64)
def _costs(reduction: Reduction, shape: ModelShape, request: Request, unit: Unit) -> tuple[tuple[float, int], ...]:
    """The cost of every number of tokens that the method can keep.

    All are tried: cost need not rise with each token (average pooling knows few counts, SparseVLM makes tokens anew).
    Raises ReductionError, the last one met, where the method can keep no number of tokens at all.
    """
    costs: list[tuple[float, int]] = []
    reason: ReductionError | None = None
    for kept in range(1, shape.vision.visual_tokens + 1):
        setting = replace(reduction, keep=kept)
        try:
            costs.append((cost_of(setting, shape, request, unit), kept))
        except ReductionError as error:
            reason = error
    if not costs and reason is not None:
        raise reason
    return tuple(costs)


def _shown(value: float, unit: Unit) -> str:
    return f"{value:.3g} TFLOPs" if unit == "tflops" else f"{value:.1%}"


def solve(reduction: Reduction, shape: ModelShape, budget: float, unit: Unit, request: Request) -> Solution:
    """The setting with `reduction`'s method and options whose cost is the highest that `budget` allows.

    `budget` is TFLOPs, or a share between 0 and 1 of dense. What `reduction` says to keep is replaced. Of settings of
    equal cost the one that keeps more wins. Raises ReductionError for dense, and for a budget out of reach.
    """
    if reduction.method == "dense":
        raise ReductionError(
            "dense has one cost and takes no budget: choose another reduction, or leave the budget out."
        )
    costs = _costs(replace(reduction, keep=None), shape, request, unit)
    within = [entry for entry in costs if entry[0] <= budget]
    if not within or budget > max(costs)[0] * (1 + ROUNDING):
        least, most = min(costs)[0], max(costs)[0]
        below = not within and "language" in reduction.places
        earlier = ", or let fewer or earlier decoder layers reduce" if below else ""
        raise ReductionError(
            f"{reduction.method} cannot meet a budget of {_shown(budget, unit)} on {shape.name}: it costs "
            f"{_shown(least, unit)} to {_shown(most, unit)} there; choose a budget between them{earlier}."
        )
    reached, kept = max(within)
    return Solution(replace(reduction, keep=kept), unit, budget, reached)


def parse_budget(tflops: str | None, share: str | None) -> tuple[float, Unit] | None:
    """The budget that the options `--budget-tflops 2.4` or `--budget-share 28%` give, None without any.

    Raises ReductionError where both are given, or one is not a positive number or share.
    """
    if tflops is not None and share is not None:
        raise ReductionError("the budget is given twice: give --budget-tflops or --budget-share, not both.")
    if tflops is not None:
        return parse_tflops(tflops), "tflops"
    return None if share is None else (parse_share(share), "share")


def parse_tflops(text: str) -> float:
    """A positive number of TFLOPs; ReductionError for anything else."""
    value = _number(text)
    if value is None or not 0 < value < float("inf"):
        raise ReductionError(f"--budget-tflops {text!r} is no amount: give a number of TFLOPs above 0, such as 2.4.")
    return value


def parse_share(text: str) -> float:
    """A share such as "28%" as 0.28; ReductionError for anything else."""
    value = _number(text.strip().removesuffix("%")) if text.strip().endswith("%") else None
    if value is None or not 0 < value <= 100:
        raise ReductionError(f"--budget-share {text!r} is no share: give one of the whole dense cost, such as 28%.")
    return value / 100


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
