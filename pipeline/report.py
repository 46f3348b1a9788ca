"""The report of a comparison: `report.html`, one page that needs nothing beside it, and `report.md`."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.comparison import Comparison, Example, Flow, SettingResult
from pipeline.report_chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, draw_chart, short
from pipeline.report_facts import facts, model_name
from pipeline.report_front import cost_axes, quality_axis
from pipeline.report_kinds import kinds
from pipeline.report_markdown import markdown
from pipeline.report_overlay import arrows_path, dropped_path
from pipeline.report_table import by_cost, tables
from pipeline.storage import Output

TEMPLATES = Path(__file__).parent / "report_templates"
LONGEST = 280
"""Letters of a question or an answer that are shown."""
ARROWS = 10
"""Drawn on a picture; more are not told apart."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One setting's overlay on an example."""

    index: int
    flow: Flow
    dropped: str
    arrows: str
    as_dense: bool


def write_report(output: Output, comparison: Comparison) -> None:
    """Write `report.html` and `report.md` into the output.

    Raises:
        StorageError: the output cannot be written.
    """
    output.put_atomic("report.md", markdown(comparison).encode("utf-8", "replace"))
    output.put_atomic("report.html", page(comparison).encode("utf-8", "replace"))


def page(comparison: Comparison) -> str:
    """The whole page. Texts of the corpus and of models are escaped, and the page forbids itself any other script."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    return environment.get_template("report.html.jinja").render(
        **_context(comparison),
        style=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _context(comparison: Comparison) -> dict[str, Any]:
    quality = quality_axis(comparison)
    charts = [chart for cost in cost_axes(comparison) if (chart := draw_chart(comparison, cost, quality))]
    return {
        "comparison": comparison,
        "model": model_name(comparison.model),
        "verdict": _verdict(comparison),
        "quality": quality,
        "charts": charts,
        "edges": {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
        "tables": tables(comparison),
        "kinds": kinds(comparison),
        "index": {result.setting: index for index, result in enumerate(comparison.results)},
        "on_front": _on_front(charts),
        "difference": _difference_scale(comparison),
        "parts": _parts(comparison),
        "examples": [(example, _uri(example), _pictures(example, comparison)) for example in comparison.examples],
        "facts": facts(comparison),
        "short": short,
        "brief": _brief,
    }


def _verdict(comparison: Comparison) -> list[tuple[str, bool]]:
    """The recommendation in pieces, each with whether it names a setting; set as print sets it.

    Dense, which is a word as well, counts where it is mentioned first and recommended.
    """
    dense, *others = (result.setting for result in comparison.results)
    names = "|".join(map(re.escape, sorted(others, key=len, reverse=True)))
    found = re.split(f"({names})(?![\\w=%])", comparison.recommendation) if names else [comparison.recommendation]
    if comparison.recommended == dense:
        found = [*found[0].partition(dense), *found[1:]]
    return [(_typeset(text) if place % 2 == 0 else text, place % 2 == 1) for place, text in enumerate(found) if text]


def _typeset(text: str) -> str:
    """With minus signs, and percent signs that stay with their number."""
    return re.sub(r"(?<!\w)-(?=\d)", "−", text.replace(" %", "\u00a0%"))


def _on_front(charts: list[Chart]) -> set[str]:
    """Settings that are on the front of one of the charts."""
    return {mark.setting for chart in charts for mark in chart.marks if mark.on_front}


def _difference_scale(comparison: Comparison) -> tuple[float, float] | None:
    """Least and most of all intervals of the difference to dense, zero among them."""
    found = [result.accuracy_difference for result in comparison.results if result.accuracy_difference]
    if not found:
        return None
    return min(0.0, *(one.low for one in found)), max(0.0, *(one.high for one in found))


def _parts(comparison: Comparison) -> dict[str, list[tuple[str, float, float]]]:
    """Setting -> its FLOPs by part as (part, start, width) in percent of the dearest setting's total."""
    scale = max(sum(result.flops.values()) for result in comparison.results) / 100

    def bars(result: SettingResult) -> list[tuple[str, float, float]]:
        start, found = 0.0, []
        for part, value in result.flops.items():
            found.append((part, round(start, 2), round(value / scale, 2)))
            start += value / scale
        return found

    return {result.setting: bars(result) for result in comparison.results}


def _brief(*texts: str) -> str:
    """Different texts in a row, cut where they get long."""
    text = "; ".join(dict.fromkeys(texts))
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"


def _uri(example: Example) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(example.jpeg).decode()


def _pictures(example: Example, comparison: Comparison) -> list[Picture]:
    """The example under each setting that it was traced for, in the tables' order."""
    flows = {flow.setting: flow for flow in example.flows}
    dense = flows.get(comparison.results[0].setting)
    index = {result.setting: number for number, result in enumerate(comparison.results)}
    return [
        Picture(
            index[setting],
            flows[setting],
            dropped_path(flows[setting].kept, example.grid),
            arrows_path(flows[setting], example.grid, ARROWS),
            as_dense=dense is not None and flows[setting].answer == dense.answer,
        )
        for setting in (result.setting for result in by_cost(comparison))
        if setting in flows
    ]
