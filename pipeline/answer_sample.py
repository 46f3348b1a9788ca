"""A few answers of an output, for a person to look at."""

from __future__ import annotations

import io
from typing import Any

import pyarrow.parquet as pq

from pipeline.storage import Output

COLUMNS = ("shard", "key", "question", "answer", "references", "correct", "finish_reason", "visual_tokens", "flops")


def answer_sample(output: Output, most: int = 100, shards: int = 5) -> dict[str, list[Any]]:
    """Column -> values of up to `most` answers, taken evenly from parts spread over the output; empty without any."""
    parts = [file.path for file in output.list("data") if file.path.endswith(".parquet")]
    chosen = parts[:: max(1, len(parts) // shards)][:shards]
    rows: list[dict[str, Any]] = []
    for path in chosen:
        table = pq.read_table(io.BytesIO(output.read(path)), columns=list(COLUMNS))
        rows += table.slice(0, max(1, most // len(chosen))).to_pylist()
    for row in rows:
        row["references"] = "; ".join(row["references"])
    return {name: [row[name] for row in rows] for name in COLUMNS} if rows else {}
