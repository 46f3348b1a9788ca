"""The results of slices, kept beside the output until a shard can be committed from them.

A staged slice is one file of compressed JSON: numbers come back as they went in, so that a shard assembled from slices
has the bytes of one that was never sliced. Readers of the output never meet it, and `sweep` removes what is left over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import zstandard

from pipeline.commit import commit_shard
from pipeline.part_names import file_stem, staged_path
from pipeline.records import Answer, Rejection, ShardRef, ShardReport, SliceReport
from pipeline.storage import Output, StorageError
from pipeline.tasks import Assembly, Slice


def finish_shard(
    output: Output,
    ref: ShardRef,
    report: ShardReport,
    answers: Sequence[Answer],
    rejections: Sequence[Rejection],
    provenance: Mapping[str, str],
    *,
    numbered: int = 0,
    window: int = 1,
) -> ShardReport | SliceReport:
    """Commit a shard or, where the task is a slice, stage it; rows in the order of the shard.

    Raises:
        StorageError: full, read-only or unreachable storage.
    """
    if not isinstance(ref.task, Slice):
        return commit_shard(output, report, answers, rejections, provenance)
    content = {
        "provenance": dict(provenance),
        "report": asdict(report),
        "answers": [asdict(row) for row in answers],
        "rejections": [asdict(row) for row in rejections],
    }
    output.put_atomic(_path(ref, ref.task), zstandard.compress(json.dumps(content).encode()))
    return SliceReport(len(answers), numbered, window)


def assemble(output: Output, ref: ShardRef, task: Assembly, provenance: Mapping[str, str]) -> ShardReport:
    """Commit a shard from its staged slices and remove them; the last slice tells how the shard ends.

    Raises:
        StorageError: a slice is not there or is another run's, or the output cannot be written.
    """
    report = ShardReport(ref.name, ref.url, ref.fingerprint)
    answers: list[Answer] = []
    rejections: list[Rejection] = []
    for part in task.slices:
        staged = _staged(output, ref, part, provenance)
        answers += [Answer(**{**row, "references": tuple(row["references"])}) for row in staged["answers"]]
        rejections += [Rejection(**row) for row in staged["rejections"]]
        _add(report, staged["report"])
    committed = commit_shard(output, report, answers, rejections, provenance)
    for part in task.slices:
        output.delete(_path(ref, part))
    return committed


def _staged(output: Output, ref: ShardRef, part: Slice, provenance: Mapping[str, str]) -> dict[str, Any]:
    path = _path(ref, part)
    try:
        content: dict[str, Any] = json.loads(zstandard.decompress(output.read(path)))
    except (FileNotFoundError, ValueError, zstandard.ZstdError) as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"{path} in {output.url} is gone or damaged; run the same command again") from error
    if content["provenance"] != dict(provenance) or content["report"]["fingerprint"] != ref.fingerprint:
        raise StorageError(f"{path} in {output.url} was staged by another run; run the same command again")
    return content


def _add(report: ShardReport, staged: Mapping[str, Any]) -> None:
    """Costs add up; samples and wholeness are what the slice knows that reaches furthest."""
    for name in ("seconds", "flops"):
        sums = getattr(report, name)
        for key, value in staged[name].items():
            sums[key] = sums.get(key, 0.0) + value
    report.wall_seconds += staged["wall_seconds"]
    report.samples, report.incomplete = staged["samples"], staged["incomplete"]


def _path(ref: ShardRef, part: Slice) -> str:
    return staged_path(file_stem(ref.name, ref.url), part.first, part.stop)
