"""Which of the slices that were staged are gone on with, and how the rest is cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.division import Division, cut, gaps
from pipeline.records import ShardRef, ShardReport, SliceReport
from pipeline.staged_slices import side_by_side, taken_up
from pipeline.staging import finish_shard
from pipeline.storage import Output, open_output
from pipeline.tasks import END, Assembly, Begun, Retry, Slice

REF = ShardRef("a.tar", "/corpus/a.tar", fingerprint="v1")
RUN = {"ficoco.fingerprint": "one"}
NUMBERED, WINDOW = 40, 8


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return open_output(str(tmp_path / "out"))


def stage(output: Output, part: Slice, ref: ShardRef = REF, run: dict[str, str] = RUN) -> None:
    report = ShardReport(ref.name, ref.url, ref.fingerprint)
    finish_shard(output, replace(ref, task=part), report, [], [], run, numbered=NUMBERED, window=WINDOW)


def test_what_this_run_has_staged_of_a_shard_is_taken_up(output: Output) -> None:
    other = replace(REF, name="b.tar", url="/corpus/b.tar")
    for part in (Slice(8, 16), END, Slice(0, 8)):
        stage(output, part)
    stage(output, Slice(0, 8), other)
    (output.local_root or Path()).joinpath("staged/notes.txt").write_text("mine")
    begun, unknown, alone = taken_up(output, [REF, replace(REF, url="/corpus/c.tar"), other], RUN)
    assert begun == replace(REF, task=Begun((Slice(0, 8), Slice(8, 16), END), NUMBERED, WINDOW))
    assert unknown == replace(REF, url="/corpus/c.tar")
    assert alone == replace(other, task=Begun((Slice(0, 8),)))


@pytest.mark.parametrize(
    ("ref", "run"),
    [
        (replace(REF, fingerprint="v2"), RUN),
        (replace(REF, take=5), RUN),
        (replace(REF, task=Retry()), RUN),
        (REF, {**RUN, "ficoco.fingerprint": "two"}),
        (REF, {**RUN, "ficoco.code_version": "source-other"}),
    ],
)
def test_what_does_not_fit_is_not_taken_up(output: Output, ref: ShardRef, run: dict[str, str]) -> None:
    stage(output, END)
    stage(output, Slice(0, 8))
    assert taken_up(output, [ref], run) == [ref]


def test_an_end_that_cannot_be_read_is_found_again(output: Output) -> None:
    stage(output, Slice(0, 8))
    stage(output, END)
    root = output.local_root or Path()
    [path] = root.glob("staged/*-end.*")
    path.write_bytes(b"torn")
    [begun] = taken_up(output, [REF], RUN)
    assert begun.task == Begun((Slice(0, 8),))
    division = Division(begun, 4)
    assert division.first() == [END]
    tasks = division.finished(END, SliceReport(0, NUMBERED, WINDOW))
    assert tasks == [Slice(first, first + 8) for first in (8, 16, 24, 32)]


pieces = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 30)), max_size=8)


@given(pieces=pieces, numbered=st.integers(0, 90), window=st.integers(1, 9), parts=st.integers(1, 12))
def test_a_division_that_was_begun_covers_every_sample_once(
    pieces: list[tuple[int, int]], numbered: int, window: int, parts: int
) -> None:
    chosen = side_by_side(Slice(first, first + length) for first, length in pieces)
    inside = tuple(one for one in chosen if (one.stop or 0) <= numbered)
    division = Division(replace(REF, task=Begun((*inside, END), numbered, window)), parts)
    tasks = division.first()
    slices = [task for task in tasks if isinstance(task, Slice)]
    assert all(one.first % window == 0 or one.first in (0, *(s.stop for s in inside)) for one in slices)
    for one in slices:
        tasks = division.finished(one, SliceReport(0, 0, window))
    [last] = tasks
    assert isinstance(last, Assembly)
    assert last.slices[-1] == END
    covered = [number for one in last.slices[:-1] for number in range(one.first, one.stop or 0)]
    assert covered == list(range(numbered))
    assert set(inside) <= set(last.slices)


@given(first=st.integers(0, 50), length=st.integers(0, 90), parts=st.integers(1, 12), grain=st.integers(1, 9))
def test_cuts_meet_at_multiples_of_the_grain(first: int, length: int, parts: int, grain: int) -> None:
    slices = cut(first, first + length, parts, grain)
    assert [number for one in slices for number in range(one.first, one.stop or 0)] == [*range(first, first + length)]
    assert all(one.first % grain == 0 for one in slices[1:])
    assert len(slices) <= parts
    assert gaps(slices, first + length) == ([(0, first)] if first else [])
