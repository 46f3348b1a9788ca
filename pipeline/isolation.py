"""What the model fails at costs the questions that cause it, not the batch or the shard they are in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pipeline.batching import Picture
from pipeline.device_errors import breaks_device
from pipeline.records import Answer, Rejection
from pipeline.replica import Row, rejection
from reduction.flops import Flops

MOST_IN_A_ROW = 32
"""Samples that may fail one after the other: beyond, the cause is not in the samples."""
FEWEST = 4
"""Samples that must have failed before it is said that a model answers nothing."""
LONGEST_REASON = 300


class ModelFailing(RuntimeError):
    """Nothing but exceptions comes from the model; the message holds the last one."""


class Isolation:
    """Answers batches; one that raises is halved until the questions that raise stand alone, and these are rejected.

    Args:
        answer: answers a batch, with one row per question; what it rejects has failed, too.
        together: answers batches, faster than one by one; yields indices of them with their rows, perhaps not of all.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Picture]], list[Row]],
        together: Callable[[Sequence[Sequence[Picture]]], Iterator[tuple[int, list[Row]]]] | None = None,
    ) -> None:
        self._answer, self._together = answer, together
        self.forgiving = False
        """Whether what is asked has failed before, so that failures say nothing of the model."""
        self._worked = False
        self._failed = 0
        """Samples in a row, however many questions each has."""
        self._last: Rejection | None = None

    def all_rows(self, batches: Sequence[Sequence[Picture]]) -> Iterator[Row]:
        """One row per question of some batches: together where that goes well, else batch by batch.

        Raises as `rows` does.
        """
        left = dict(enumerate(batches))
        if self._together is not None and len(batches) > 1:
            try:
                for index, rows in self._together(batches):
                    del left[index]
                    self._note(rows)
                    yield from rows
            except ModelFailing:
                raise
            except Exception as error:
                if breaks_device(error):
                    raise
        for batch in left.values():
            yield from self.rows(batch)

    def rows(self, batch: Sequence[Picture]) -> Iterator[Row]:
        """One row per question of a batch.

        Raises:
            ModelFailing: too many samples in a row have failed.
            Exception: one that breaks the device, as it came.
        """
        rows: list[Row] | None = None
        try:
            rows = self._answer(batch)
        except Exception as error:
            if breaks_device(error):
                raise
            if len(batch) == 1 and len(batch[0].asked) == 1:
                rows = [_rejected(batch[0], error)]
        if rows is not None:
            self._note(rows)
            yield from rows
            return
        # Behind the exception, whose traceback holds all that the failed batch has on the device.
        for half in _halves(batch):
            yield from self.rows(half)

    def check(self) -> None:
        """To be called where a shard ends, before it is committed.

        Raises:
            ModelFailing: several samples have failed, and no question has ever been answered.
        """
        if self._last and self._failed >= FEWEST and not self._worked and not self.forgiving:
            raise ModelFailing(f"the model has answered nothing yet, and fails with {self._last.reason}")

    def _note(self, rows: Sequence[Row]) -> None:
        """Count what was answered and what failed.

        Raises ModelFailing.
        """
        for _, row, _ in rows:
            if isinstance(row, Answer):
                self._worked, self._failed, self._last = True, 0, None
                continue
            if self._last is None or (self._last.shard, self._last.key) != (row.shard, row.key):
                self._failed += 1
            self._last = row
            if self._failed > MOST_IN_A_ROW and not self.forgiving:
                raise ModelFailing(f"{self._failed} samples in a row failed, the last with {row.reason}")


def _rejected(picture: Picture, error: Exception) -> Row:
    text = " ".join(str(error).split())[:LONGEST_REASON]
    one = picture.asked[0]
    return one.order, rejection(one, "model", f"{type(error).__name__}: {text}"), Flops()


def _halves(batch: Sequence[Picture]) -> tuple[Sequence[Picture], Sequence[Picture]]:
    if len(batch) > 1:
        middle = len(batch) // 2
        return batch[:middle], batch[middle:]
    pixels, asked = batch[0].pixels, batch[0].asked
    middle = len(asked) // 2
    return [Picture(pixels, asked[:middle])], [Picture(pixels, asked[middle:])]
