"""The results of slices, kept beside the output until a shard can be committed from them.

A staged slice is one file of compressed JSON: numbers come back as they went in, so that a shard assembled from slices
has the bytes of one that was never sliced. Readers of the output never meet it, and `sweep` removes what is left over.
"""

from __future__ import annotations

import hashlib
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
    seen: Sequence[str] = (),
) -> ShardReport | SliceReport:
    """Commit a shard or, where the task is a slice, stage it; rows in the order of the shard.

    Args:
        seen: keys that the slice met, in order; kept for whoever puts the slices together.

    Raises:
        StorageError: full, read-only or unreachable storage.
    """
    if not isinstance(ref.task, Slice):
        return commit_shard(output, report, answers, rejections, provenance)
    staged = SliceReport(len(answers), numbered, window)
    content = {
        "provenance": dict(provenance),
        "report": asdict(report),
        "slice": asdict(staged),
        "seen": list(seen),
        "answers": [asdict(row) for row in answers],
        "rejections": [asdict(row) for row in rejections],
    }
    compressor = zstandard.ZstdCompressor(write_checksum=True)
    output.put_atomic(path_of(ref, ref.task, provenance), compressor.compress(json.dumps(content).encode()))
    return staged


def assemble(output: Output, ref: ShardRef, task: Assembly, provenance: Mapping[str, str]) -> ShardReport:
    """Commit a shard from its staged slices and remove them; the last slice tells how the shard ends.

    Raises:
        StorageError: a slice is not there or damaged, or the output cannot be written.
    """
    report, answers, rejections, _ = gather(output, ref, task, provenance)
    committed = commit_shard(output, report, answers, rejections, provenance)
    remove_staged(output, ref, task, provenance)
    return committed


def gather(
    output: Output, ref: ShardRef, task: Assembly, provenance: Mapping[str, str]
) -> tuple[ShardReport, list[Answer], list[Rejection], list[str]]:
    """Costs, rows and keys seen of a shard's staged slices.

    Raises:
        StorageError: a slice is not there or damaged.
    """
    report, seen = ShardReport(ref.name, ref.url, ref.fingerprint), list[str]()
    answers: list[Answer] = []
    rejections: list[Rejection] = []
    for part in task.slices:
        staged = read_staged(output, ref, part, provenance)
        answers += [Answer(**{**row, "references": tuple(row["references"])}) for row in staged["answers"]]
        rejections += [Rejection(**row) for row in staged["rejections"]]
        seen += staged["seen"]
        _add(report, staged["report"])
    return report, answers, rejections, seen


def remove_staged(output: Output, ref: ShardRef, task: Assembly, provenance: Mapping[str, str]) -> None:
    for part in task.slices:
        output.delete(path_of(ref, part, provenance))


def read_staged(output: Output, ref: ShardRef, part: Slice, provenance: Mapping[str, str]) -> dict[str, Any]:
    """The content of a staged slice. One that is damaged is removed, so that the next start does it again.

    Raises:
        StorageError: it is not there, damaged, or not to be read now.
    """
    path = path_of(ref, part, provenance)
    try:
        content: dict[str, Any] = json.loads(zstandard.decompress(output.read(path)))
        if content["provenance"] != dict(provenance) or content["report"]["fingerprint"] != ref.fingerprint:
            raise ValueError("it was staged by another run")
    except (FileNotFoundError, ValueError, KeyError, zstandard.ZstdError) as error:
        if isinstance(error, StorageError):
            raise
        output.delete(path)
        raise StorageError(f"{path} in {output.url} is gone or damaged; run the same command again") from error
    return content


def path_of(ref: ShardRef, part: Slice, provenance: Mapping[str, str]) -> str:
    """Where a slice is staged; another run's, or that of another content of the shard, is staged elsewhere."""
    return staged_path(file_stem(ref.name, ref.url), part.first, part.stop, state_of(ref, provenance))


def state_of(ref: ShardRef, provenance: Mapping[str, str]) -> str:
    """8 hexadecimal digits that differ where slices must not be put together: run, code, the shard's content."""
    state = json.dumps([sorted(provenance.items()), ref.fingerprint, ref.take, ref.again is not None])
    return hashlib.sha256(state.encode()).hexdigest()[:8]


def _add(report: ShardReport, staged: Mapping[str, Any]) -> None:
    """Costs add up; samples and wholeness are what the slice knows that reaches furthest."""
    for name in ("seconds", "flops"):
        sums = getattr(report, name)
        for key, value in staged[name].items():
            sums[key] = sums.get(key, 0.0) + value
    report.wall_seconds += staged["wall_seconds"]
    report.samples, report.incomplete = staged["samples"], staged["incomplete"]
