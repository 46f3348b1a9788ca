"""Trivial workers for fleet tests; importable in a replica's process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.limits import ReadLimits
from pipeline.records import Answer, Sample, ShardRef, ShardReport
from pipeline.sources import SourceError
from pipeline.storage import StorageError
from tests.pipeline.echo_job import EchoWorker


class Worker:
    """Reports one answer per shard. A file named in `triggers` makes it misbehave once, at the shard of that name.

    Args:
        folder: where `<shard>.<what>` files stand; `what` is kill, raise, source, storage, hang or slow.
    """

    def __init__(self, folder: str, seconds: float = 0.0, broken: str = "") -> None:
        if broken:
            raise RuntimeError(broken)
        self.folder = Path(folder)
        self.seconds = seconds
        self.count = 0

    def describe(self) -> dict[str, Any]:
        return {"model": "trivial"}

    def pulse(self) -> int:
        return self.count

    @property
    def batches(self) -> int:
        return 2 * self.count

    def work(self, ref: ShardRef) -> ShardReport:
        with (self.folder / "log").open("a") as log:
            log.write(f"{ref.name} {os.getpid()}\n")
        time.sleep(self.seconds)
        if self._take(ref, "kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._take(ref, "raise"):
            raise OSError("the disk said no")
        if self._take(ref, "source"):
            raise SourceError("the bucket said 503")
        if self._take(ref, "storage"):
            raise StorageError("the disk is full")
        if (self.folder / f"{ref.name}.always").exists():
            raise ValueError("this shard never works")
        if self._take(ref, "device"):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if self._take(ref, "hang"):
            time.sleep(3600)
        if self._take(ref, "slow"):
            for _ in range(10):
                time.sleep(0.3)
                self.count += 1
        return ShardReport(ref.name, ref.url, ref.fingerprint, samples=1, questions=1, answers=1)

    def _take(self, ref: ShardRef, what: str) -> bool:
        trigger = self.folder / f"{ref.name}.{what}"
        if trigger.exists():
            trigger.unlink()
            return True
        return False


class LethalWorker(EchoWorker):
    """Answers as `EchoWorker` does, unless a question asks for its end: `die`, `exit` or `hang`."""

    def __init__(self, output: str) -> None:
        super().__init__(output, {"ficoco.test": "1"}, "What is it?", "none", ReadLimits(), 0.0, "")

    def _answers(self, sample: Sample) -> Iterator[Answer]:
        for answer in super()._answers(sample):
            match answer.question:
                case "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "exit":
                    os._exit(1)
                case "hang":
                    time.sleep(3600)
            yield answer
