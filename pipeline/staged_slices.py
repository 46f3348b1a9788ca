"""What an earlier start of a run has staged: a shard that was being done in slices goes on from there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from pipeline.part_names import file_stem, parse_staged
from pipeline.records import ShardRef
from pipeline.staging import read_staged, state_of
from pipeline.storage import Output, StorageError
from pipeline.tasks import END, Begun, Slice


def taken_up(output: Output, refs: Sequence[ShardRef], provenance: Mapping[str, str]) -> list[ShardRef]:
    """`refs`, and those of which this run has staged slices with the task to do what is left.

    Only names are looked at, and the content of the slices that say how a shard ends: what was staged for other
    settings, by other code or from another content of the shard has another name.

    Raises:
        StorageError: the output cannot be listed or read now.
    """
    staged: defaultdict[tuple[str, str], list[Slice]] = defaultdict(list)
    for file in output.list("staged"):
        if named := parse_staged(file.path):
            stem, first, stop, state = named
            staged[stem, state].append(Slice(first, stop))
    if not staged:
        return list(refs)
    return [_begun(output, ref, staged, provenance) if ref.task is None else ref for ref in refs]


def _begun(
    output: Output,
    ref: ShardRef,
    staged: Mapping[tuple[str, str], Sequence[Slice]],
    provenance: Mapping[str, str],
) -> ShardRef:
    slices = staged.get((file_stem(ref.name, ref.url), state_of(ref, provenance)), ())
    parts = side_by_side(one for one in slices if one.stop is not None)
    if END not in slices:
        return replace(ref, task=Begun(parts)) if parts else ref
    try:
        about = read_staged(output, ref, END, provenance)["slice"]
        numbered, window = int(about["numbered"]), int(about["window"])
    except (StorageError, KeyError, TypeError, ValueError):
        return replace(ref, task=Begun(parts)) if parts else ref
    inside = tuple(one for one in parts if (one.stop or 0) <= numbered)
    return replace(ref, task=Begun((*inside, END), numbered, window))


def side_by_side(slices: Iterable[Slice]) -> tuple[Slice, ...]:
    """Slices in order, without those that lie over others: a replica that was given up may have staged its work yet."""
    chosen: list[Slice] = []
    reached = 0
    for one in sorted(slices, key=lambda one: (one.first, -(one.stop or 0))):
        if one.first >= reached and (one.stop or 0) > one.first:
            chosen.append(one)
            reached = one.stop or 0
    return tuple(chosen)
