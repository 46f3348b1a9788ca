"""`--samples`: a few samples of a corpus, from shards spread evenly over it, the same ones whenever it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipeline.first_samples import count_samples
from pipeline.limits import ReadLimits
from pipeline.records import ShardRef

FEWEST_PER_SHARD = 64
"""Taken of a shard where it has them: a shard is batched by itself, and small batches would be timed as slow ones."""


def spread_samples(refs: Sequence[ShardRef], samples: int, limits: ReadLimits | None = None) -> list[ShardRef]:
    """Shards, in order, cut to their first samples, `samples` in all or as many as the corpus has.

    Corpora are often sorted, so the first shards alone would speak for one source or one label. The shares of the
    shards chosen are equal; what one lacks the next ones give, at last also shards not chosen at first.

    Raises:
        SourceError: a shard cannot be counted now.
    """
    readable = [ref for ref in refs if not ref.missing]
    number = max(1, min(len(readable), samples // FEWEST_PER_SHARD))
    chosen = [readable[(2 * index + 1) * len(readable) // (2 * number)] for index in range(number)] if readable else []
    others = [ref for ref in readable if ref not in chosen]
    taken: dict[str, int] = {}
    for index, ref in enumerate(chosen):
        share = (index + 1) * samples // number - index * samples // number
        taken[ref.url] = count_samples(ref, share, limits)
    for ref in (*chosen, *others):
        lacking = samples - sum(taken.values())
        if lacking <= 0:
            break
        taken[ref.url] = count_samples(ref, taken.get(ref.url, 0) + lacking, limits)
    return [replace(ref, take=taken[ref.url]) for ref in readable if taken.get(ref.url)]
