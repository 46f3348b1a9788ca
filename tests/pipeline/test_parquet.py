"""Parquet parts: declared schema, equal bytes for equal rows, readable elsewhere, hostile strings."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.parquet import clean, encode_rows, write_part
from pipeline.records import ANSWER_SCHEMA, QUARANTINE_SCHEMA
from pipeline.storage import open_output
from tests.pipeline.output_rows import PROVENANCE, answer, rejection

REPOSITORY = Path(__file__).resolve().parents[2]


def query(sql: str) -> list[tuple[object, ...]]:
    with duckdb.connect() as database:
        return database.execute(sql).fetchall()


def test_a_part_reads_back_as_written(tmp_path: Path) -> None:
    rows = [answer(1), answer(2, correct=None, kind=None, mean_logprob=None, references=())]
    about = write_part(open_output(str(tmp_path)), "data/a.parquet", rows, ANSWER_SCHEMA, PROVENANCE)
    data = (tmp_path / "data/a.parquet").read_bytes()
    assert about == {
        "path": "data/a.parquet",
        "rows": 2,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    table = pq.read_table(tmp_path / "data/a.parquet")
    assert table.schema.equals(ANSWER_SCHEMA)
    assert table.schema.metadata == {key.encode(): value.encode() for key, value in PROVENANCE.items()}
    assert table["references"].to_pylist() == [["red", "crimson"], []]
    assert table["correct"].to_pylist() == [1.0, None]
    column = pq.ParquetFile(tmp_path / "data/a.parquet").metadata.row_group(0).column(0)
    assert column.compression == "ZSTD"


def test_duckdb_and_pandas_read_the_output(tmp_path: Path) -> None:
    output = open_output(str(tmp_path))
    write_part(output, "data/a.parquet", [answer(n) for n in range(3)], ANSWER_SCHEMA, {})
    write_part(output, "data/b.parquet", [answer(n, "00001.tar") for n in range(4)], ANSWER_SCHEMA, {})
    write_part(output, "quarantine/a.parquet", [rejection(7)], QUARANTINE_SCHEMA, {})
    columns = 'shard, count(*), avg(correct), any_value("references"[2])'
    assert query(f"select {columns} from '{tmp_path}/data/*.parquet' group by 1 order by 1") == [
        ("00000.tar", 3, pytest.approx(1 / 3), "crimson"),
        ("00001.tar", 4, 0.5, "crimson"),
    ]
    frame = pd.read_parquet(tmp_path / "data")
    assert len(frame) == 7
    assert frame["flops"].sum() == 7 * 1.5e9
    assert pd.read_parquet(tmp_path / "quarantine")["stage"].tolist() == ["image"]


def test_equal_rows_give_equal_bytes_in_another_process() -> None:
    rows = [answer(n) for n in range(100)]
    here = hashlib.sha256(encode_rows(rows, ANSWER_SCHEMA, {"b": "2", "a": "1"})).hexdigest()
    program = (
        "import hashlib\nfrom pipeline.parquet import encode_rows\nfrom pipeline.records import ANSWER_SCHEMA\n"
        "from tests.pipeline.output_rows import answer\nrows = [answer(n) for n in range(100)]\n"
        "print(hashlib.sha256(encode_rows(rows, ANSWER_SCHEMA, {'a': '1', 'b': '2'})).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here
    assert hashlib.sha256(encode_rows(rows[:99], ANSWER_SCHEMA, {})).hexdigest() != here


def test_hostile_strings_survive_and_stay_distinct(tmp_path: Path) -> None:
    keys = ["nul\0inside", "lone\udc80", "lone\udc81", "\ud83d\ude00", "emoji 😀", ""]
    rows = [answer(n, key=key) for n, key in enumerate(keys)]
    write_part(open_output(str(tmp_path)), "data/a.parquet", rows, ANSWER_SCHEMA, {"note": "\udc80"})
    expected = ["nul\0inside", "lone\\udc80", "lone\\udc81", "😀", "emoji 😀", ""]
    assert pq.read_table(tmp_path / "data/a.parquet")["key"].to_pylist() == expected
    assert pd.read_parquet(tmp_path / "data/a.parquet")["key"].tolist() == expected
    assert query(f"select key from '{tmp_path}/data/a.parquet'") == [(key,) for key in expected]


@given(st.text(st.characters(codec=None, exclude_categories=()), max_size=20))
def test_cleaned_text_is_always_utf8_and_plain_text_is_untouched(text: str) -> None:
    assert clean(text).encode("utf-8").decode("utf-8") == clean(text)
    if not any("\ud800" <= letter <= "\udfff" for letter in text):
        assert clean(text) == text


def test_a_missing_value_that_must_be_there_is_an_error() -> None:
    with pytest.raises((pa.ArrowException, ValueError), match=r"(?i)null"):
        encode_rows([answer(1, answer=None)], ANSWER_SCHEMA, {})
