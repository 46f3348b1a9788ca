"""`--limit`: the first samples of a corpus, the same ones whatever the number of replicas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipeline.limits import ReadLimits
from pipeline.records import ShardRef
from pipeline.shards import ShardEnd, read_shard


def first_samples(refs: Sequence[ShardRef], limit: int | None, limits: ReadLimits | None = None) -> list[ShardRef]:
    """The shards, in order, that hold the first `limit` samples, the last of them cut to what is left.

    Reads no more than these samples to count them.
    """
    if limit is None:
        return list(refs)
    chosen: list[ShardRef] = []
    left = limit
    for ref in refs:
        if left <= 0:
            break
        chosen.append(replace(ref, take=left))
        left -= count_samples(ref, left, limits)
    return chosen


def count_samples(ref: ShardRef, most: int, limits: ReadLimits | None) -> int:
    """Samples of a shard, as far as `most`."""
    keys: set[str] = set()
    for item in read_shard(ref, "", limits):
        if isinstance(item, ShardEnd):
            return item.samples
        keys.add(item.key)
        if len(keys) >= most:
            return most
    return len(keys)
