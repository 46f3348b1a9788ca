"""Fuzzed shards on the whole way to Parquet: nothing crashes, is lost, unpickled or written beside the output."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from pipeline.records import ShardRef, ShardReport
from pipeline.run_folder import prepare
from pipeline.shard_work import ShardWorker
from pipeline.storage import open_output
from pipeline.verification import verify
from tests.fuzz.coverage_guided import seeds
from tests.fuzz.hostile import COMPRESSIONS, FORMATS, SENTINEL, Damage, Entry, archive, damages, entries, good
from tests.fuzz.input_path import LIMITS, EchoReplica, InputPath
from tests.fuzz.untrusted import Untrusted
from tests.pipeline.output_rows import CONFIG

HEADER_MAY_LIE = {"size", "GNU.sparse.major", "GNU.sparse.minor", "GNU.sparse.map", "GNU.sparse.size"}
"""Records by which a member may claim what comes behind it."""


@pytest.fixture(scope="module")
def path() -> InputPath:
    return InputPath()


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, in one that `..` leads to."""
    folder = tmp_path / "outer" / "inner" / "here"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("pipeline.shard_work.Replica", EchoReplica)
    yield tmp_path
    assert not list(tmp_path.rglob(SENTINEL))


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def spread(hostile: Sequence[Entry]) -> list[Entry]:
    """Hostile entries between good samples."""
    mixed = [entry for number, entry in enumerate(hostile) for entry in (*good(number), entry)]
    return [*mixed, *good(len(hostile)), *good(len(hostile) + 1)]


def honest(entry: Entry) -> bool:
    """Whether an entry leaves what follows it where it is.

    In the oldest form of tar a slash at the end of a name, or of what its field holds of it, makes a directory, and
    directories store nothing.
    """
    file = entry.kind == tarfile.REGTYPE or (entry.kind == tarfile.AREGTYPE and "/" not in entry.name)
    return file and not set(entry.records) & HEADER_MAY_LIE


def annotate_and_verify(sandbox: Path, data: bytes) -> None:
    shard = sandbox / "fuzz.tar"
    shard.write_bytes(data)
    output = open_output(str(sandbox / "out"))
    folder = prepare(output, CONFIG, overwrite=True)
    before = files(sandbox)
    worker = ShardWorker(None, str(sandbox / "out"), folder.provenance, "Describe.", LIMITS, 1)  # type: ignore[arg-type]
    ref = ShardRef("fuzz.tar", str(shard), len(data), "v1")
    report = worker.work(ref)
    assert isinstance(report, ShardReport)
    worker.preparation.pool.shutdown()
    assert isinstance(report, ShardReport)
    assert report.questions == report.answers + report.quarantined
    found = verify(output, [ref], finished=False)
    assert not found.findings
    assert (found.totals.answers, found.totals.quarantined) == (report.answers, report.quarantined)
    assert {name for name in files(sandbox) - before if not name.startswith("out/")} == set()


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(
    hostile=st.lists(entries, max_size=5),
    tar_format=st.sampled_from(FORMATS),
    harm=st.lists(damages, max_size=2),
    compress=st.sampled_from(COMPRESSIONS),
)
def test_a_hostile_shard_becomes_rows_that_add_up(sandbox: Path, hostile, tar_format, harm, compress) -> None:
    data = compress(archive(spread(hostile), tar_format))
    for one in harm:
        data = one.apply(data)
    annotate_and_verify(sandbox, data)


def hostile_members_cost_no_other(
    path: InputPath, folder: Path, hostile: list[Entry], tar_format: Literal[0, 1, 2]
) -> None:
    honest_ones = [entry for entry in hostile if honest(entry)]
    (folder / "members.tar").write_bytes(archive(spread(honest_ones), tar_format))
    rows = path.checked(folder / "members.tar")
    expected = {f"good-{number}" for number in range(len(honest_ones) + 2)}
    assert expected <= rows.keys(), rows.rejections


def samples_before_the_damage_are_answered(path: InputPath, folder: Path, hostile: list[Entry], harm: Damage) -> None:
    before = archive([entry for number in range(4) for entry in good(number)])[: -2 * tarfile.BLOCKSIZE]
    data = harm.apply(before + archive(spread(hostile)), start=len(before))
    (folder / "damaged.tar").write_bytes(data)
    assert {"good-0", "good-1", "good-2", "good-3"} <= path.checked(folder / "damaged.tar").keys()


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(hostile=st.lists(entries, max_size=6), tar_format=st.sampled_from(FORMATS))
def test_hostile_members_cost_no_other_sample(path, tmp_path_factory, hostile, tar_format) -> None:
    hostile_members_cost_no_other(path, tmp_path_factory.getbasetemp(), hostile, tar_format)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(hostile=st.lists(entries, max_size=3), harm=damages)
def test_whole_samples_before_the_damage_are_answered(path, tmp_path_factory, hostile, harm) -> None:
    samples_before_the_damage_are_answered(path, tmp_path_factory.getbasetemp(), hostile, harm)


@pytest.mark.torture
@pytest.mark.timeout(3600)
def test_many_more_fuzzed_shards(path: InputPath, tmp_path: Path) -> None:
    @seed(int(os.environ.get("TORTURE_SEED", "0")))
    @settings(max_examples=5000, derandomize=False, database=None, suppress_health_check=list(HealthCheck))
    @given(hostile=st.lists(entries, max_size=8), tar_format=st.sampled_from(FORMATS), harm=damages)
    def fuzz(hostile: list[Entry], tar_format: Literal[0, 1, 2], harm: Damage) -> None:
        hostile_members_cost_no_other(path, tmp_path, hostile, tar_format)
        samples_before_the_damage_are_answered(path, tmp_path, hostile, harm)

    fuzz()


@pytest.mark.parametrize("number", range(len(seeds())))
def test_what_coverage_guided_fuzzing_starts_from_is_sound(number: int, tmp_path: Path) -> None:
    Untrusted(tmp_path).read(seeds()[number])
