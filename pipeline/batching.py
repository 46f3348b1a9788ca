"""Which questions are answered together: those about one image, then those of like length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import numpy.typing as npt

from pipeline.prompts import Prompt
from pipeline.records import Question, Sample


@dataclass(slots=True)
class Asked:
    """A question that can be put to the model, with its place in the shard."""

    order: tuple[int, int]
    """(number of its sample in the shard, index of the question): rows are written in this order."""
    sample: Sample
    question: Question
    prompt: Prompt


@dataclass(slots=True)
class Picture:
    """A decoded image and what is asked about it."""

    pixels: npt.NDArray[np.uint8]
    """(side, side, 3)."""
    asked: list[Asked] = field(default_factory=list)


def plan_batches(pictures: Sequence[Picture], size: int) -> Iterator[list[Picture]]:
    """Yield batches of at most `size` questions, deterministically.

    An image's questions stay together (it is encoded once) unless they alone are more than `size`. Images with several
    questions come apart from those with one, as sharing an image's keys only pays where there are several; within each,
    neighbours have prompts of like length, so that little is padded.
    """
    whole = [part for picture in pictures for part in _parts(picture, size)]
    whole.sort(key=lambda picture: (len(picture.asked) > 1, _longest(picture)))
    for _, group in groupby(whole, key=lambda picture: len(picture.asked) > 1):
        yield from _filled(group, size)


def fitting_batch(room: int, most: int, rows_held: Callable[[int], int]) -> int:
    """The largest batch, `most` questions at most and 1 at least, for which no more than `room` rows are held."""
    return max((size for size in range(1, most + 1) if rows_held(size) <= room), default=1)


def _parts(picture: Picture, size: int) -> Iterator[Picture]:
    for start in range(0, len(picture.asked), size):
        yield Picture(picture.pixels, picture.asked[start : start + size])


def _longest(picture: Picture) -> int:
    return max(len(one.prompt.suffix_ids) for one in picture.asked)


def _filled(pictures: Iterator[Picture], size: int) -> Iterator[list[Picture]]:
    batch: list[Picture] = []
    questions = 0
    for picture in pictures:
        if batch and questions + len(picture.asked) > size:
            yield batch
            batch, questions = [], 0
        batch.append(picture)
        questions += len(picture.asked)
    if batch:
        yield batch
