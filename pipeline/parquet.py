"""Parquet parts with declared schemas: the same rows give the same bytes, written whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.records import Answer, Rejection
from pipeline.storage import Output

COMPRESSION_LEVEL = 3
ROWS_PER_GROUP = 10_000
"""Fixed, so that bytes do not depend on a library's default."""


def write_part(
    output: Output,
    path: str,
    rows: Sequence[Answer] | Sequence[Rejection],
    schema: pa.Schema,
    metadata: Mapping[str, str],
) -> dict[str, object]:
    """Write `rows` as one Parquet file.

    Args:
        path: relative to the output.
        metadata: provenance that goes into the schema's key-value metadata.

    Returns:
        {"path", "rows", "bytes", "sha256"} of the file written.

    Raises:
        StorageError: full, read-only or unreachable storage.
    """
    data = encode_rows(rows, schema, metadata)
    output.put_atomic(path, data)
    return {"path": path, "rows": len(rows), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def encode_rows(rows: Sequence[object], schema: pa.Schema, metadata: Mapping[str, str]) -> bytes:
    """`rows` as the bytes of a Parquet file, equal for equal rows and metadata on one machine."""
    columns = [pa.array([clean(getattr(row, field.name)) for row in rows], field.type) for field in schema]
    provenance = {clean(key): clean(value) for key, value in sorted(metadata.items())}
    table = pa.Table.from_arrays(columns, schema=schema.with_metadata(provenance))
    buffer = pa.BufferOutputStream()
    pq.write_table(
        table, buffer, compression="zstd", compression_level=COMPRESSION_LEVEL, row_group_size=ROWS_PER_GROUP
    )
    return buffer.getvalue().to_pybytes()


def clean(value: Any) -> Any:
    """`value` with strings that UTF-8 can carry.

    Surrogate pairs become the character they mean; a lone surrogate becomes its escape (``\\udc80``), so that two names
    that differ only there stay two names.
    """
    if isinstance(value, str):
        if value.isascii():
            return value
        joined = value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
        return joined.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, tuple):
        return [clean(item) for item in value]
    return value
