"""Begin, continue, refuse, overwrite."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pipeline.commit import commit_shard
from pipeline.driver_lock import LOCK_PATH
from pipeline.errors import UserError
from pipeline.ledger import Ledger
from pipeline.run_folder import prepare, read_run, read_success, remove_run
from pipeline.storage import Output, StorageError, open_output
from tests.pipeline.output_rows import CONFIG, answer, rejection, report

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return open_output(str(tmp_path / "out"))


def fill(output: Output) -> None:
    """A run with one finished shard."""
    folder = prepare(output, CONFIG)
    commit_shard(output, report(), [answer(1)], [rejection(2)], folder.provenance)
    folder.succeed(Ledger(output).scan().totals)


def test_a_new_run_writes_its_settings_and_versions(output: Output) -> None:
    folder = prepare(output, CONFIG)
    assert not folder.resumed
    record = read_run(output)
    assert record is not None
    assert record["fingerprint"] == folder.fingerprint
    assert record["config"] == CONFIG
    assert record["versions"]["python"].startswith(f"{sys.version_info.major}.")
    assert {"torch", "pyarrow", "code"} <= record["versions"].keys()
    assert folder.provenance["ficoco.fingerprint"] == folder.fingerprint


def test_the_same_settings_continue_the_run(output: Output) -> None:
    first = prepare(output, CONFIG)
    first.set_mlflow_run("run-1")
    again = prepare(output, {**CONFIG, "batch_size": 8, "replicas": 3})
    assert again.resumed
    assert again.mlflow_run_id == "run-1"
    assert again.fingerprint == first.fingerprint
    assert len(again.record["starts"]) == 2
    assert again.record["created"] == first.record["created"]


def test_other_settings_are_refused_with_the_difference_named(output: Output) -> None:
    fill(output)
    before = {file.path: output.read(file.path) for file in output.list()}
    with pytest.raises(UserError) as refusal:
        prepare(output, {**CONFIG, "reduction": "dense", "max_new_tokens": 8})
    assert "reduction was 'ficoco-v:64', is now 'dense'" in str(refusal.value)
    assert "max_new_tokens was 64, is now 8" in str(refusal.value)
    assert "--overwrite" in str(refusal.value)
    assert {file.path: output.read(file.path) for file in output.list()} == before


def test_overwrite_removes_the_run_and_no_foreign_file(output: Output) -> None:
    fill(output)
    foreign = ["notes.txt", "data/mine.parquet", "ledger/readme.md", "plots/00000-0123abcd.parquet"]
    for path in foreign:
        output.put_atomic(path, b"mine")
    output.put_atomic("metrics.jsonl", b"{}")
    output.put_atomic(LOCK_PATH, b"{}")
    folder = prepare(output, {**CONFIG, "reduction": "dense"}, overwrite=True)
    assert not folder.resumed
    assert {file.path for file in output.list()} == {*foreign, "run.json", LOCK_PATH}
    assert Ledger(output).done() == {}


def test_an_overwrite_cut_short_is_still_known_as_a_run(output: Output) -> None:
    """`_SUCCESS` goes first, run.json last: whatever is left in between says what it is, and is not finished."""
    fill(output)
    removed = remove_run(output)
    assert (removed[0], removed[-1], len(removed)) == ("_SUCCESS", "run.json", 5)


def test_folders_of_unknown_origin_are_refused_even_with_overwrite(output: Output) -> None:
    output.put_atomic("data/theirs.parquet", b"mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"holds data/theirs.parquet but no run.json"):
            prepare(output, CONFIG, overwrite)
    output.put_atomic("run.json", b'{"program": "another"}')
    with pytest.raises(UserError, match="was not written by ficoco-annotate"):
        prepare(output, CONFIG, overwrite=True)


def test_an_unwritable_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="choose another --output"):
        prepare(open_output(str(tmp_path / "file")), CONFIG)


def test_success_holds_the_totals_and_goes_when_work_goes_on(output: Output) -> None:
    fill(output)
    success = read_success(output)
    assert success is not None
    assert (success["shards"], success["questions"], success["answers"], success["quarantined"]) == (1, 2, 1, 1)
    prepare(output, CONFIG).reopen()
    assert read_success(output) is None


def test_planted_credentials_are_nowhere_in_the_output(output: Output) -> None:
    config = {
        **CONFIG,
        "input": ["s3://key:planted@bucket/a.tar", "https://host/b.tar?X-Amz-Signature=planted"],
        "tracking_uri": "http://user:planted@mlflow:5000",
        "api_key": "planted",
        "model": "https://user:planted@host/model",
        "storage": {"aws_secret_access_key": "planted"},
    }
    folder = prepare(output, config)
    commit_shard(output, report(), [answer(1)], [rejection(2)], folder.provenance)
    root = output.local_root
    assert root is not None
    assert [path for path in root.rglob("*") if path.is_file() and b"planted" in path.read_bytes()] == []
    assert prepare(output, config).resumed


def test_what_replicas_run_on_is_noted_once_and_over_restarts(output: Output) -> None:
    folder = prepare(output, CONFIG)
    assert folder.remember_replica({"device": "cpu", "dtype": "bfloat16", "pid": 1}) == ["bfloat16"]
    assert folder.remember_replica({"device": "cpu", "dtype": "bfloat16", "pid": 2}) == ["bfloat16"]
    again = prepare(output, CONFIG)
    assert again.remember_replica({"device": "cpu", "dtype": "float32", "pid": 3}) == ["bfloat16", "float32"]
    noted = json.loads(output.read("run.json"))["replicas"]
    assert noted == [{"device": "cpu", "dtype": "bfloat16"}, {"device": "cpu", "dtype": "float32"}]
