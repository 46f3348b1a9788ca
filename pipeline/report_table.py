"""The columns of the report's tables, the same for the page and for Markdown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.comparison import Comparison, Interval, SettingResult
from pipeline.records import FLOP_PARTS
from pipeline.report_chart import short
from pipeline.report_front import flops_unit, percent

MISSING = "–"


@dataclass(frozen=True, slots=True)
class Cell:
    text: str
    detail: str = ""
    """An interval or spread, beside the value."""
    order: float | None = None
    """What the column is sorted by."""


@dataclass(frozen=True, slots=True)
class Column:
    title: str
    note: str
    """What it is, with its unit."""
    cell: Callable[[SettingResult], Cell]


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    columns: tuple[Column, ...]

    def rows(self, comparison: Comparison) -> list[tuple[SettingResult, list[Cell]]]:
        return [(result, [column.cell(result) for column in self.columns]) for result in by_cost(comparison)]


def by_cost(comparison: Comparison) -> list[SettingResult]:
    """Dense, then the others from dear to cheap by FLOPs."""
    dense, *others = comparison.results
    return [dense, *sorted(others, key=lambda result: -sum(result.flops.values()))]


def tables(comparison: Comparison) -> list[Table]:
    """Quality and speed, and what each setting costs; columns that nothing was measured for are left out."""
    return [
        _without_empty(Table("Quality and speed", tuple(_quality(comparison))), comparison),
        _without_empty(Table("What it costs", tuple(_cost(comparison))), comparison),
    ]


def _without_empty(table: Table, comparison: Comparison) -> Table:
    filled = [any(column.cell(result).order is not None for result in comparison.results) for column in table.columns]
    return Table(table.title, tuple(column for column, full in zip(table.columns, filled, strict=True) if full))


def _quality(comparison: Comparison) -> list[Column]:
    dense = comparison.results[0].images_per_second.value
    return [
        Column("Accuracy", f"percent, metric {comparison.metric}, 95 % interval", lambda r: _points(r.accuracy)),
        Column("To dense", "points of accuracy, paired, 95 % interval", lambda r: _points(r.accuracy_difference, "+")),
        Column("p", "McNemar's exact test of right and wrong against dense", lambda r: _p(r.mcnemar_p)),
        Column("Fidelity", "percent of answers that are dense's own, 95 % interval", lambda r: _points(r.fidelity)),
        Column("ROUGE-L", "F1 to dense's answer, percent, 95 % interval", lambda r: _points(r.rouge_l)),
        Column("Images/s", "median; least and most of the repeats", lambda r: _spread(r.images_per_second)),
        Column("Answers/s", "median; least and most of the repeats", lambda r: _spread(r.answers_per_second)),
        Column("Speed-up", "images per second over dense's", lambda r: _times(r.images_per_second.value, dense)),
        Column("Realised", "time ratio to dense, of the FLOPs ratio: what of the saving became time", _realised),
    ]


def _cost(comparison: Comparison) -> list[Column]:
    scale, unit = flops_unit(comparison)

    def number(title: str, note: str, value: Callable[[SettingResult], float | None]) -> Column:
        most = max((abs(found) for one in comparison.results if (found := value(one)) is not None), default=0.0)
        return Column(title, note, lambda r: _number(value(r), most))

    def part(name: str) -> Column:
        return number(name.capitalize(), f"{unit} per answer", lambda r: r.flops.get(name, 0.0) / scale)

    return [
        number("Tokens", "visual tokens left after the last reducing layer", lambda r: r.visual_tokens),
        number("Per layer", "mean tokens entering a layer of the LLM", lambda r: r.mean_decoder_tokens),
        number(unit, "per answer, all parts", lambda r: sum(r.flops.values()) / scale),
        *(part(name) for name in FLOP_PARTS),
        number(
            "LLM", f"{unit} of the LLM's prefill as LLM-Viewer counts", lambda r: r.llm_viewer_tflops * 1e12 / scale
        ),
        Column(
            "Asked",
            f"budget: {unit} of the LLM as above, or share of dense; below it reached",
            lambda r: _asked(r, scale),
        ),
        Column("Seconds", "of all samples, median; vision, prefill, decode", _seconds),
        Column(
            "KV MB", "keys and values at a question's end, 10⁶ bytes; below it as papers state them", _keys_and_values
        ),
        number("Peak MB", "peak memory, 10⁶ bytes", lambda r: r.peak_megabytes),
        number("USD", "per million images", lambda r: r.usd_per_million_images),
    ]


def _asked(result: SettingResult, scale: float) -> Cell:
    reached = result.budget_reached or 0.0
    if result.budget_share is not None:
        return Cell(f"{100 * result.budget_share:.3g} %", f"{100 * reached:.3g} %", result.budget_share)
    if result.budget_tflops is None:
        return Cell(MISSING)
    asked, reached = (value * 1e12 / scale for value in (result.budget_tflops, reached))
    return Cell(short(asked), short(reached), asked)


def _keys_and_values(result: SettingResult) -> Cell:
    return Cell(short(result.kv_megabytes), f"fp16 {short(result.kv_megabytes_fp16)}", result.kv_megabytes)


def _seconds(result: SettingResult) -> Cell:
    total = sum(result.seconds.values())
    return Cell(short(total), " · ".join(short(value) for value in result.seconds.values()), total)


def _points(share: Interval | None, sign: str = "") -> Cell:
    if share is None:
        return Cell(MISSING)
    value = percent(share) or share
    low, high = (f"{bound:{sign}.1f}" for bound in (value.low, value.high))
    detail = _minus(f"{low} to {high}") if value.low < value.high else ""
    return Cell(_minus(f"{value.value:{sign}.1f}"), detail, value.value)


def _p(value: float | None) -> Cell:
    if value is None:
        return Cell(MISSING)
    return Cell("< 0.001" if value < 0.001 else f"{value:.3f}", order=value)


def _spread(rate: Interval) -> Cell:
    return Cell(short(rate.value), f"{short(rate.low)} to {short(rate.high)}", rate.value)


def _times(rate: float, dense: float) -> Cell:
    return Cell(f"{rate / dense:.2f}×", order=rate / dense) if dense > 0 else Cell(MISSING)


def _realised(result: SettingResult) -> Cell:
    share = result.realised_share
    return Cell(MISSING) if share is None else Cell(f"{100 * share:.0f} %", order=share)


def _number(value: float | None, most: float) -> Cell:
    """A number with as many decimals as the largest of its column needs for three digits."""
    if value is None:
        return Cell(MISSING)
    whole = float(most).is_integer() and float(value).is_integer()
    decimals = 0 if most >= 100 or whole else 1 if most >= 10 else 2
    return Cell(f"{value:,.{decimals}f}", order=value)


def _minus(text: str) -> str:
    return text.replace("-", "−")
