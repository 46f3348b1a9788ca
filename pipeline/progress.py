"""How far a run is, on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from datetime import timedelta
from typing import TextIO

from tqdm import tqdm

from pipeline.meter import Meter


class Progress:
    """Shows a meter.

    Args:
        every: seconds between lines; a bar is brought up to date more often.
    """

    def __init__(self, meter: Meter, every: float, stream: TextIO | None = None) -> None:
        self._meter = meter
        self._every = every
        self._stream = stream or sys.stderr
        self._bar: tqdm | None = None
        self._next = 0.0
        if self._stream.isatty():
            self._bar = tqdm(total=meter.shards, initial=meter.shards_done, unit="shard", file=self._stream)

    def show(self, *, now: bool = False) -> None:
        """Bring the display up to date if it is time, or `now`."""
        if self._bar is not None:
            self._bar.n = self._meter.shards_done
            self._bar.set_postfix_str(self._rates(), refresh=False)
            self._bar.refresh() if now else self._bar.update(0)
        elif now or time.monotonic() >= self._next:
            self._next = time.monotonic() + self._every
            self.say(f"shards {self._meter.shards_done}/{self._meter.shards}  {self._rates()}{self._left()}")

    def say(self, text: str) -> None:
        """A line of its own, above the bar where there is one."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            # A run goes on for hours after `2>&1 | head` has seen enough.
            with suppress(BrokenPipeError):
                print(text, file=self._stream, flush=True)

    def close(self) -> None:
        self.show(now=True)
        if self._bar is not None:
            self._bar.close()

    def _rates(self) -> str:
        meter = self._meter
        text = f"images {meter.whole.samples:,}  {meter.images_per_second:.1f} images/s"
        if meter.batches and meter.shards_done < meter.shards:
            text = f"batches {meter.batches:,}  {text}"
        text += f"  answers {meter.whole.answers:,}  quarantined {meter.whole.quarantined:,}"
        return text if meter.whole.accuracy is None else f"{text}  accuracy {meter.whole.accuracy:.3f}"

    def _left(self) -> str:
        """What was left when the last shard was done, less the time since; unknown once that has passed."""
        left = self._meter.seconds_left
        left = None if left is None else left - self._meter.since_report
        return "" if left is None or left <= 0 else f"  left {timedelta(seconds=round(left))}"
