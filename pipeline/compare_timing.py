"""How long each setting took for each shard: one small JSON file per measurement, and what they say together.

A measurement is one pass of one replica over one shard, all its settings on the same batches in turn. Times are
compared within measurements only: another one may have had another machine, or another load on it.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pipeline.comparison import Interval
from pipeline.part_names import file_stem
from pipeline.records import ShardRef
from pipeline.storage import Output

FOLDER = "timings"
PARTS = ("vision", "prefill", "decode")
TOTAL = "total"
"""Seconds of the whole answer, with what the parts leave out, such as writing tokens as text."""


@dataclass
class ShardTiming:
    """One measurement. `seconds` has, per setting, one mapping part -> seconds per repeat."""

    start: str
    """Names the start of the job that it belongs to."""
    images: int
    questions: int
    seconds: dict[str, list[dict[str, float]]]
    peak_bytes: dict[str, int]
    hardware: dict[str, Any] = field(default_factory=dict)
    """Device, dtype, threads."""


def measured_path(folder: str, ref: ShardRef, settings: Iterable[str] = ()) -> str:
    """Where a measurement of a shard is written; without `settings` the folder of all of them.

    Named after what is measured, so that an attempt that died is written over.
    """
    place = f"{folder}/{file_stem(ref.name, ref.url)}"
    measured = "\n".join(sorted(settings))
    return f"{place}/{hashlib.sha256(measured.encode()).hexdigest()[:8]}.json" if measured else place


def write_timing(output: Output, ref: ShardRef, timing: ShardTiming) -> None:
    """Raises StorageError where the output cannot be written."""
    output.put_atomic(measured_path(FOLDER, ref, timing.seconds), (json.dumps(asdict(timing)) + "\n").encode())


def read_timings(output: Output, ref: ShardRef) -> list[ShardTiming]:
    """All measurements of a shard, the latest start last; one that cannot be read is left out."""
    found = []
    paths = [file.path for file in output.list(measured_path(FOLDER, ref))]
    for _, content in output.read_many(paths):
        try:
            found.append(ShardTiming(**json.loads(content or b"")))
        except (ValueError, TypeError):
            continue
    return sorted(found, key=lambda timing: timing.start)


@dataclass
class SettingTime:
    """A setting's time over all shards, and dense's in the same measurements."""

    seconds: dict[str, float]
    """Median over the repeats, by part and in total."""
    totals: list[float]
    """Of each repeat."""
    dense: float
    """Median total of dense, beside it."""
    images: int
    questions: int
    peak_bytes: int
    starts: tuple[str, ...]

    def brought_to(self, dense: float) -> SettingTime:
        """The times as they would be where dense takes `dense` seconds: another measurement had another load."""
        factor = dense / self.dense
        return replace(
            self,
            seconds={part: factor * seconds for part, seconds in self.seconds.items()},
            totals=[factor * seconds for seconds in self.totals],
            dense=dense,
        )

    def per_second(self, amount: int) -> Interval:
        """Median, least and most over the repeats."""
        rates = [amount / seconds for seconds in self.totals]
        return Interval(amount / self.seconds[TOTAL], min(rates), max(rates))


def setting_time(setting: str, dense: str, timings: Sequence[Sequence[ShardTiming]]) -> SettingTime | None:
    """What a setting took over all shards; `timings` are each shard's. None where a shard lacks its measurement.

    Of several measurements of a shard the latest that has the setting counts.
    """
    latest = [next((one for one in reversed(shard) if setting in one.seconds), None) for shard in timings]
    chosen = [one for one in latest if one is not None and dense in one.seconds]
    if not chosen or len(chosen) < len(timings):
        return None
    repeats = min(len(one.seconds[name]) for one in chosen for name in (setting, dense))
    own, beside = (_by_repeat([one.seconds[name] for one in chosen], repeats) for name in (setting, dense))
    return SettingTime(
        seconds={part: statistics.median(repeat[part] for repeat in own) for part in (*PARTS, TOTAL)},
        totals=[repeat[TOTAL] for repeat in own],
        dense=statistics.median(repeat[TOTAL] for repeat in beside),
        images=sum(one.images for one in chosen),
        questions=sum(one.questions for one in chosen),
        peak_bytes=max(one.peak_bytes[setting] for one in chosen),
        starts=tuple(sorted({one.start for one in chosen})),
    )


def _by_repeat(shards: Sequence[Sequence[Mapping[str, float]]], repeats: int) -> list[dict[str, float]]:
    """Seconds of each repeat over all shards."""
    return [
        {part: sum(shard[repeat].get(part, 0.0) for shard in shards) for part in (*PARTS, TOTAL)}
        for repeat in range(repeats)
    ]
