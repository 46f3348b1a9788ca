"""The report as Markdown: the verdict, the tables, how it was measured."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pipeline.comparison import Comparison
from pipeline.report_facts import facts
from pipeline.report_table import tables


def markdown(comparison: Comparison) -> str:
    """The whole text; whatever stands in names and answers is shown as text, never as markup."""
    lines = ["# What each reduction costs", "", plain(comparison.recommendation), ""]
    for table in tables(comparison):
        rows = table.rows(comparison)
        lines += [f"## {table.title}", "", _row(["Setting", *(column.title for column in table.columns)])]
        lines += [_row(["---", *("---:" for _ in table.columns)])]
        for result, cells in rows:
            shown = [f"{cell.text} ({cell.detail})" if cell.detail else cell.text for cell in cells]
            lines.append(_row([plain(result.setting), *map(plain, shown)]))
        lines += ["", *(f"- {plain(column.title)}: {plain(column.note)}" for column in table.columns), ""]
    lines += ["## How it was measured", ""]
    lines += [f"- {plain(name)}: {plain(value)}" for name, value in facts(comparison)]
    lines += ["", *(f"{plain(note)}\n" for note in comparison.notes)]
    return "\n".join(lines).rstrip() + "\n"


def plain(text: str) -> str:
    """Text on one line, with everything escaped that Markdown or HTML would read as markup."""
    line = " ".join(text.split())
    return re.sub(r"([\\`*_\[\]<>|~#&])", r"\\\1", line)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
