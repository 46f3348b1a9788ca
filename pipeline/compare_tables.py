"""A comparison as rows: for Parquet, CSV, MLflow and the job's last line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.comparison import Comparison, Interval, SettingResult

ALWAYS = ("accuracy", "accuracy_difference", "fidelity", "rouge_l")
"""Intervals that a row has even where they are not known, so that all rows have the same columns."""


def row(result: SettingResult) -> dict[str, Any]:
    """One setting as plain values: an interval becomes three columns, a mapping one per key."""
    plain: dict[str, Any] = {}
    for one in fields(result):
        value = getattr(result, one.name)
        if isinstance(value, Interval) or one.name in ALWAYS:
            ends = (None, None, None) if value is None else (value.value, value.low, value.high)
            plain |= dict(zip((one.name, f"{one.name}_low", f"{one.name}_high"), ends, strict=True))
        elif isinstance(value, Mapping):
            plain |= {f"{one.name}_{key}": entry for key, entry in value.items()}
        elif isinstance(value, tuple):
            plain[one.name] = list(value)
        else:
            plain[one.name] = value
    plain["flops_total"] = sum(result.flops.values())
    plain["mean_decoder_tokens"] = result.mean_decoder_tokens
    return plain


def rows(comparison: Comparison) -> list[dict[str, Any]]:
    """All settings with the same columns; what a setting lacks, such as a kind of question, is None."""
    each = [row(result) for result in comparison.results]
    names = dict.fromkeys(name for one in each for name in one)
    return [{name: one.get(name) for name in names} for one in each]


def as_parquet(comparison: Comparison) -> bytes:
    """The rows, with what was compared as metadata of the file."""
    about = {
        "ficoco.model": comparison.model,
        "ficoco.metric": comparison.metric,
        "ficoco.samples": str(comparison.samples),
        "ficoco.repeats": str(comparison.repeats),
        "ficoco.hardware": json.dumps(comparison.hardware),
        "ficoco.versions": json.dumps(comparison.versions),
        "ficoco.recommendation": comparison.recommendation,
    }
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows(comparison)).replace_schema_metadata(about), buffer)
    return buffer.getvalue()


def as_csv(comparison: Comparison) -> bytes:
    """The rows; lists of lengths as JSON."""
    buffer = io.StringIO()
    table = rows(comparison)
    writer = csv.DictWriter(buffer, list(table[0]) if table else [], lineterminator="\n")
    writer.writeheader()
    for one in table:
        writer.writerow({key: json.dumps(value) if isinstance(value, list) else value for key, value in one.items()})
    return buffer.getvalue().encode()


def as_columns(comparison: Comparison) -> dict[str, list[Any]]:
    """Column -> values, without the lists of lengths."""
    table = rows(comparison)
    names = [name for name, value in table[0].items() if not isinstance(value, list)] if table else []
    return {name: [one[name] for one in table] for name in names}


def metrics(result: SettingResult) -> dict[str, float]:
    """The numbers of one setting."""
    return {
        name: float(value)
        for name, value in row(result).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
