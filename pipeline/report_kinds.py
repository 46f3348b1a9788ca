"""Accuracy by kind of question, as a table whose cells are tinted by the distance to dense."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.comparison import Comparison, SettingResult
from pipeline.report_table import by_cost

FULL_TINT = 0.30
"""Distance to dense, in share of answers, at which the tint is strongest."""


@dataclass(frozen=True, slots=True)
class KindCell:
    value: float | None
    tint: int
    """0 to 100, of the colour of losses or of gains."""
    loss: bool


@dataclass(frozen=True, slots=True)
class Kinds:
    names: tuple[str, ...]
    rows: tuple[tuple[SettingResult, tuple[KindCell, ...]], ...]


def kinds(comparison: Comparison) -> Kinds | None:
    """None where no question has a kind."""
    dense = comparison.results[0].accuracy_by_kind
    names = tuple(dict.fromkeys(name for result in comparison.results for name in result.accuracy_by_kind))
    if not names:
        return None
    rows = []
    for result in by_cost(comparison):
        rows.append((result, tuple(_cell(result.accuracy_by_kind.get(name), dense.get(name)) for name in names)))
    return Kinds(names, tuple(rows))


def _cell(value: float | None, dense: float | None) -> KindCell:
    distance = 0.0 if value is None or dense is None else value - dense
    return KindCell(value, round(100 * min(1.0, abs(distance) / FULL_TINT)), distance < 0)
