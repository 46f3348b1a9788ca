"""Times of several shards, repeats and measurements as one figure per setting."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.compare_timing import ShardTiming, read_timings, setting_time, write_timing
from pipeline.records import ShardRef
from pipeline.storage import open_output

REF = ShardRef("a.tar", "/a.tar")


def timing(start: str, totals: dict[str, list[float]], images: int = 10) -> ShardTiming:
    seconds = {
        setting: [{"vision": total / 4, "prefill": total / 2, "decode": total / 4, "total": total} for total in each]
        for setting, each in totals.items()
    }
    return ShardTiming(start, images, 2 * images, seconds, dict.fromkeys(totals, 1000 * images))


def test_repeats_are_summed_over_shards_before_their_median() -> None:
    shards = [
        [timing("1", {"dense": [4.0, 8.0, 5.0], "a": [1.0, 2.0, 6.0]})],
        [timing("1", {"dense": [4.0, 8.0, 5.0], "a": [3.0, 1.0, 6.0]}, images=30)],
    ]
    time = setting_time("a", "dense", shards)
    assert time is not None
    assert time.totals == [4.0, 3.0, 12.0]
    assert time.seconds == {"vision": 1.0, "prefill": 2.0, "decode": 1.0, "total": 4.0}
    assert (time.dense, time.images, time.questions, time.peak_bytes) == (10.0, 40, 80, 30_000)
    rate = time.per_second(time.images)
    assert rate.value == 10.0
    assert rate.low == pytest.approx(40 / 12)
    assert rate.high == pytest.approx(40 / 3)


def test_a_setting_measured_apart_is_brought_to_denses_latest_speed(tmp_path: Path) -> None:
    output = open_output(str(tmp_path))
    write_timing(output, REF, timing("2", {"dense": [8.0], "b": [4.0]}))
    write_timing(output, REF, timing("1", {"dense": [2.0], "a": [1.5]}))
    found = [read_timings(output, REF)]
    assert [one.start for one in found[0]] == ["1", "2"]
    dense, a, b = (setting_time(name, "dense", found) for name in ("dense", "a", "b"))
    assert dense is not None
    assert a is not None
    assert b is not None
    assert dense.seconds["total"] == 8.0
    assert a.brought_to(8.0).seconds["total"] == pytest.approx(6.0)
    assert a.brought_to(8.0).totals == [pytest.approx(6.0)]
    assert b.brought_to(8.0) == b


def test_what_is_not_measured_for_every_shard_has_no_time() -> None:
    whole, lacking = timing("1", {"dense": [1.0], "a": [1.0]}), timing("1", {"dense": [1.0]})
    assert setting_time("a", "dense", [[whole], [lacking]]) is None
    assert setting_time("a", "dense", []) is None


def test_a_measurement_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    output = open_output(str(tmp_path))
    write_timing(output, REF, timing("1", {"dense": [1.0]}))
    (path,) = (tmp_path / "timings").rglob("*.json")
    (path.parent / "torn.json").write_text(path.read_text()[:40])
    assert len(read_timings(output, REF)) == 1
