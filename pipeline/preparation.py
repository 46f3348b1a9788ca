"""Reading ahead: samples of a shard become pictures with prompts in threads, while the model works.

Windows of pictures are handed over one by one; at most one waits and one is being filled, so memory is bounded by
about three windows of decoded pictures, whatever the shard's size.
"""

from __future__ import annotations

import queue
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
from pipeline.records import Rejection, Sample, ShardRef
from pipeline.shards import ShardEnd, read_shard


@dataclass(slots=True)
class Window:
    """Pictures that are planned into batches together, and what was rejected on the way; rows carry their place."""

    pictures: list[Picture] = field(default_factory=list)
    rejections: list[tuple[tuple[int, int], Rejection]] = field(default_factory=list)
    end: ShardEnd | None = None
    """Set in a shard's last window."""
    seconds: dict[str, float] = field(default_factory=lambda: {"read": 0.0, "decode_images": 0.0})


class Preparation:
    """Iterates over a shard's windows, which a thread of its own fills.

    Raises, while iterating, whatever reading the shard raised.
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
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="decode-images")

    def windows(self, ref: ShardRef, limit: int | None = None) -> Generator[Window, None, None]:
        """Yield the windows of a shard, or of its first `limit` samples."""
        ready: queue.Queue[Window | BaseException] = queue.Queue(maxsize=1)
        abandoned = threading.Event()
        reader = threading.Thread(target=self._read, args=(ref, limit, ready, abandoned), daemon=True)
        reader.start()
        try:
            while True:
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
                if item.end is not None:
                    return
        finally:
            abandoned.set()
            while reader.is_alive():
                # A reader that waits for room in the queue must see that nobody comes any more.
                while not ready.empty():
                    ready.get_nowait()
                reader.join(0.05)

    def _read(
        self,
        ref: ShardRef,
        limit: int | None,
        ready: queue.Queue[Window | BaseException],
        abandoned: threading.Event,
    ) -> None:
        try:
            for window in self._fill(ref, limit):
                ready.put(window)
                if abandoned.is_set():
                    return
        except BaseException as error:  # handed to the thread that iterates
            ready.put(error)

    def _fill(self, ref: ShardRef, limit: int | None) -> Iterator[Window]:
        window = Window()
        pending: deque[tuple[int, Sample, Future[tuple[Picture | ImageError, float]]]] = deque()
        items = _limited(read_shard(ref, self.prompt, self.limits), limit)
        order = 0
        while True:
            began = time.perf_counter()
            item = next(items)
            window.seconds["read"] += time.perf_counter() - began
            if isinstance(item, ShardEnd):
                break
            if isinstance(item, Rejection):
                window.rejections.append(((order, item.question_index or 0), item))
            else:
                pending.append((order, item, self.pool.submit(self._decode, item)))
            order += 1
            # Only a few encoded images wait for a thread; the reader goes no faster than they are decoded.
            while len(pending) > 16:
                self._take(window, *pending.popleft())
            if len(window.pictures) >= self.window:
                yield window
                window = Window()
        while pending:
            self._take(window, *pending.popleft())
        window.end = item
        yield window

    def _decode(self, sample: Sample) -> tuple[Picture | ImageError, float]:
        began = time.perf_counter()
        try:
            picture: Picture | ImageError = Picture(decode_image(sample.image, self.transform, self.limits))
        except ImageError as error:
            picture = error
        return picture, time.perf_counter() - began

    def _take(
        self, window: Window, order: int, sample: Sample, future: Future[tuple[Picture | ImageError, float]]
    ) -> None:
        picture, seconds = future.result()
        window.seconds["decode_images"] += seconds
        bare = Sample(sample.shard, sample.key, b"", sample.questions, sample.meta)
        for question in sample.questions:
            place = (order, question.index)
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


def _limited(
    items: Iterator[Sample | Rejection | ShardEnd], limit: int | None
) -> Iterator[Sample | Rejection | ShardEnd]:
    """Cut a shard's items behind its first `limit` keys, with an end that says nothing is wrong with that."""
    if limit is None:
        yield from items
        return
    keys: set[str] = set()
    for item in items:
        if isinstance(item, ShardEnd):
            yield item
            return
        keys.add(item.key)
        if len(keys) > limit:
            yield ShardEnd(limit, complete=True)
            return
        yield item
