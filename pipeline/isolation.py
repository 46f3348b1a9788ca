"""An exception from the model costs the questions that cause it, not the batch or the shard they are in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pipeline.batching import Picture
from pipeline.device_errors import breaks_device
from pipeline.replica import Row, rejection
from reduction.flops import Flops

MOST_IN_A_ROW = 32
"""Questions that may fail one after the other: beyond, the cause is not in the questions."""
FEWEST = 4
"""Questions that must have failed before it is said that a model answers nothing."""
LONGEST_REASON = 300


class ModelFailing(RuntimeError):
    """Nothing but exceptions comes from the model; the message holds the last one."""


class Isolation:
    """Answers batches; one that raises is halved until the questions that raise stand alone, and these are rejected.

    Args:
        answer: answers a batch, with one row per question.
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
        self._last = ""

    def all_rows(self, batches: Sequence[Sequence[Picture]]) -> Iterator[Row]:
        """One row per question of some batches: together where that goes well, else batch by batch.

        Raises as `rows` does.
        """
        left = dict(enumerate(batches))
        if self._together is not None and len(batches) > 1:
            try:
                for index, rows in self._together(batches):
                    del left[index]
                    self._worked, self._failed = True, 0
                    yield from rows
            except Exception as error:
                if breaks_device(error):
                    raise
        for batch in left.values():
            yield from self.rows(batch)

    def rows(self, batch: Sequence[Picture]) -> Iterator[Row]:
        """One row per question of a batch.

        Raises:
            ModelFailing: too many questions in a row have failed.
            Exception: one that breaks the device, as it came.
        """
        rows: list[Row] | None = None
        try:
            rows = self._answer(batch)
            self._worked, self._failed = True, 0
        except Exception as error:
            if breaks_device(error):
                raise
            if len(batch) == 1 and len(batch[0].asked) == 1:
                rows = [self._rejected(batch[0], error)]
        if rows is not None:
            yield from rows
            return
        # Behind the exception, whose traceback holds all that the failed batch has on the device.
        for half in _halves(batch):
            yield from self.rows(half)

    def check(self) -> None:
        """To be called where a shard ends, before it is committed.

        Raises:
            ModelFailing: several questions have failed, and not one has ever been answered.
        """
        if self._failed >= FEWEST and not self._worked and not self.forgiving:
            raise ModelFailing(f"the model has answered nothing yet, and fails with {self._last}")

    def _rejected(self, picture: Picture, error: Exception) -> Row:
        text = " ".join(str(error).split())[:LONGEST_REASON]
        self._last = f"{type(error).__name__}: {text}"
        self._failed += 1
        if self._failed > MOST_IN_A_ROW and not self.forgiving:
            raise ModelFailing(f"{self._failed} questions in a row failed, the last with {self._last}") from error
        one = picture.asked[0]
        return one.order, rejection(one, "model", self._last), Flops()


def _halves(batch: Sequence[Picture]) -> tuple[Sequence[Picture], Sequence[Picture]]:
    if len(batch) > 1:
        middle = len(batch) // 2
        return batch[:middle], batch[middle:]
    pixels, asked = batch[0].pixels, batch[0].asked
    middle = len(asked) // 2
    return [Picture(pixels, asked[:middle])], [Picture(pixels, asked[middle:])]
