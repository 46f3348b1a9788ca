"""Reading ahead: samples of a shard become pictures with prompts in threads, while the model works.

Windows are handed over one by one; at most one waits and one is being filled, so memory is bounded by about three
windows of decoded pictures, whatever the shard's size. A window is a fixed number of samples, readable or not: a slice
that begins where a window begins gives the same batches as the whole shard.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from pipeline.batching import Asked, Picture
from pipeline.images import ImageError, ImageTransform, decode_image
from pipeline.limits import ReadLimits
from pipeline.prompts import PromptError, PromptFormat
from pipeline.reading import Reading
from pipeline.records import Rejection, Sample, ShardRef
from pipeline.retrying import Select
from pipeline.shards import ShardEnd, read_shard

PENDING = 16
"""Samples whose images are being decoded, or wait for it."""
PENDING_BYTES = 128 * 2**20
"""Of their encoded images, one more not counted."""


@dataclass(slots=True)
class Window:
    """Pictures that are planned into batches together, and what was rejected on the way; rows carry their place."""

    pictures: list[Picture] = field(default_factory=list)
    rejections: list[tuple[tuple[int, int], Rejection]] = field(default_factory=list)
    end: ShardEnd | None = None
    """Set in a shard's last window."""
    seconds: dict[str, float] = field(default_factory=lambda: {"read": 0.0, "decode_images": 0.0})


class Preparation:
    """Iterates over the windows of a shard, or of the slice that is its task, which a thread of its own fills.

    Raises, while iterating, whatever reading the shard raised.

    Args:
        window: samples in a window.
    """

    def __init__(
        self,
        transform: ImageTransform,
        prompts: PromptFormat,
        *,
        prompt: str | None = None,
        limits: ReadLimits | None = None,
        window: int = 128,
        threads: int = 2,
    ) -> None:
        self.transform, self.prompts, self.prompt = transform, prompts, prompt
        self.limits, self.window = limits or ReadLimits(), window
        self._lock = threading.Lock()
        self._expected: ShardRef | None = None
        self._ahead: tuple[ShardRef, Reading[Window]] | None = None
        self._idle = False
        """Whether the present shard has been read to its end."""
        self.members = 0
        """Members of shards met so far: a sign of life while nothing else happens."""
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="decode-images")

    def windows(self, ref: ShardRef, select: Select | None = None) -> Generator[Window, None, None]:
        """Yield the windows of a shard, or of the items that `select` leaves of it; the last one has its end."""
        reading = self._reading_of(ref, select)
        try:
            for window in reading:
                if window.end is not None:
                    self._begin_expected()
                yield window
        finally:
            reading.close()

    def expect(self, ref: ShardRef) -> None:
        """Say which shard is probably asked for next: it is read ahead once the present one has been read."""
        with self._lock:
            self._expected = ref
        if self._idle:
            self._begin_expected()

    def _reading_of(self, ref: ShardRef, select: Select | None) -> Reading[Window]:
        with self._lock:
            self._idle = False
            ahead, self._ahead = self._ahead, None
            if self._expected == ref:
                self._expected = None
        if ahead is not None and ahead[0] == ref and select is None:
            return ahead[1]
        if ahead is not None:
            ahead[1].close()
        return Reading(self._fill(ref, select))

    def _begin_expected(self) -> None:
        with self._lock:
            self._idle = True
            if self._expected is not None and self._ahead is None:
                self._ahead = self._expected, Reading(self._fill(self._expected, None))
                self._expected = None

    def _fill(self, ref: ShardRef, select: Select | None) -> Iterator[Window]:
        filling = _Filling(self.window)
        items = read_shard(ref, self.prompt, self.limits, self._passed)
        items = items if select is None else select(items)
        for order in itertools.count():
            began = time.perf_counter()
            item = next(items)
            seconds = time.perf_counter() - began
            if isinstance(item, ShardEnd):
                end = item
                break
            window = filling.window_of(item)
            window.seconds["read"] += seconds
            if isinstance(item, Rejection):
                window.rejections.append(((order, item.question_index or 0), item))
            else:
                filling.pending.append(_Pending(window, order, item, self.pool.submit(self._decode, item)))
            # Only a few encoded images wait for a thread; the reader goes no faster than they are decoded.
            while filling.crowded():
                self._take(filling.pending.popleft())
            yield from filling.full()
        while filling.pending:
            self._take(filling.pending.popleft())
        yield from filling.full()
        filling.last.seconds["read"] += seconds
        filling.last.end = end
        yield filling.last

    def _passed(self) -> None:
        self.members += 1

    def _decode(self, sample: Sample) -> tuple[Picture | ImageError, float]:
        began = time.perf_counter()
        try:
            picture: Picture | ImageError = Picture(decode_image(sample.image, self.transform, self.limits))
        except ImageError as error:
            picture = error
        return picture, time.perf_counter() - began

    def _take(self, pending: _Pending) -> None:
        window, sample = pending.window, pending.sample
        picture, seconds = pending.future.result()
        window.seconds["decode_images"] += seconds
        bare = Sample(sample.shard, sample.key, b"", sample.questions, sample.meta)
        for question in sample.questions:
            place = (pending.order, question.index)
            if isinstance(picture, ImageError):
                stage, reason = "image", str(picture)
            else:
                try:
                    picture.asked.append(Asked(place, bare, question, self.prompts.encode(question.text)))
                    continue
                except PromptError as error:
                    stage, reason = "prompt", str(error)
            rejected = Rejection(sample.shard, sample.key, stage, reason, question.index, question.id, question.text)
            window.rejections.append((place, rejected))
        if isinstance(picture, Picture) and picture.asked:
            window.pictures.append(picture)


@dataclass(frozen=True, slots=True)
class _Pending:
    """A sample whose image is being decoded."""

    window: Window
    order: int
    sample: Sample
    future: Future[tuple[Picture | ImageError, float]]


class _Filling:
    """The windows that are not handed over yet; decoding goes on across their borders."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._samples = 0
        self._key = ""
        self._windows = deque([Window()])
        self.pending: deque[_Pending] = deque()

    def crowded(self) -> bool:
        """Whether enough encoded images wait for a thread."""
        waiting = sum(len(one.sample.image) for one in self.pending)
        return len(self.pending) > PENDING or waiting > PENDING_BYTES

    @property
    def last(self) -> Window:
        return self._windows[-1]

    def window_of(self, item: Sample | Rejection) -> Window:
        """The window that a sample's sample or rejections belong to; neighbours with one key are one sample."""
        if self._samples == 0 or item.key != self._key:
            self._key = item.key
            if self._samples and self._samples % self._size == 0:
                self._windows.append(Window())
            self._samples += 1
        return self._windows[-1]

    def full(self) -> Iterator[Window]:
        """The windows that get nothing more."""
        while len(self._windows) > 1 and not (self.pending and self.pending[0].window is self._windows[0]):
            yield self._windows.popleft()
