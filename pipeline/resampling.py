"""Intervals by the bootstrap over images: questions about one image are not independent, so images are drawn.

Percentile bootstrap (Efron & Tibshirani 1993, ch. 13) of ratios of sums. A sample in which nothing went wrong does not
prove that nothing ever will, yet all its resamples say so; therefore each end of an interval is taken of the sample and
one more image, at its worst for the low end, at its best for the high end. For right and wrong counted over n images
that brings the ends close to the exact binomial ones (no error among n: about 3.7/n at 95 %); for large n it
vanishes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.comparison import Interval

DRAWS = 4000
BLOCK = 2**22
"""Weights in memory at a time."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Ratio:
    """A statistic of images: the sum of `sums` over the sum of `counts`, both of shape (images,)."""

    sums: Floats
    counts: Floats
    worst: float = 0.0
    """Of one question; -1 for a difference."""
    best: float = 1.0

    @property
    def value(self) -> float:
        return float(self.sums.sum() / self.counts.sum())


def intervals(ratios: Sequence[Ratio], level: float = 0.95, draws: int = DRAWS, seed: int = 0) -> list[Interval]:
    """The two-sided interval of each ratio, all from the same resamples; all are over the same images, in order.

    An image whose count is 0 has no say. The same seed gives the same resamples. For a one-sided bound at 95 % take the
    end of the interval at level 0.9.

    Raises:
        ValueError: a ratio counts nothing.
    """
    if not ratios:
        return []
    if any(ratio.counts.sum() <= 0 for ratio in ratios):
        raise ValueError("an interval needs at least one question that counts.")
    sums = np.stack([ratio.sums for ratio in ratios], 1)
    counts = np.stack([ratio.counts for ratio in ratios], 1)
    mean = counts.sum(0) / (counts > 0).sum(0)
    worst, best = (np.array([getattr(ratio, end) for ratio in ratios]) for end in ("worst", "best"))
    images = len(sums)
    low, high = [], []
    for weights in _weights(images + 1, draws, seed):
        more = weights[:, images:]
        top, bottom = weights[:, :images] @ sums, weights[:, :images] @ counts + more * mean
        # A resample without anything that counts says nothing.
        bottom = np.where(bottom > 0, bottom, np.nan)
        low.append((top + more * mean * worst) / bottom)
        high.append((top + more * mean * best) / bottom)
    tail = (1 - level) / 2
    lows = np.nanquantile(np.concatenate(low), tail, axis=0)
    highs = np.nanquantile(np.concatenate(high), 1 - tail, axis=0)
    return [
        Interval(ratio.value, min(ratio.value, float(below)), max(ratio.value, float(above)))
        for ratio, below, above in zip(ratios, lows, highs, strict=True)
    ]


def _weights(images: int, draws: int, seed: int) -> Iterator[Floats]:
    """How often each image is drawn, (draws, images) in blocks."""
    generator = np.random.default_rng(seed)
    rows = max(1, BLOCK // images)
    chances = np.full(images, 1 / images)
    for start in range(0, draws, rows):
        yield generator.multinomial(images, chances, min(rows, draws - start)).astype(np.float64)
