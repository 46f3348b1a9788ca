"""When failures are so many that their cause cannot be in the shards, and the run must stop."""

from __future__ import annotations

from pipeline.cluster import RunStopped
from pipeline.leases import LOSSES, FailedShard, Narrowed

FAILED_IN_A_ROW = 10
"""Failed attempts without a finished shard between them that end the run."""
CONDEMNED_IN_A_ROW, CONDEMNED_AT_FIRST = 16, 4
"""Samples that may kill their replicas one after the other with no answer between them, later on and before the run's
first answer."""


class Patience:
    """Counts failures since the last success."""

    def __init__(self) -> None:
        self._failed = 0
        self._condemned = 0
        self._ever_answered = False

    def success(self) -> None:
        self._failed = self._condemned = 0
        self._ever_answered = True

    def failure(self, whole: bool, outcome: FailedShard | Narrowed | None, reason: str, replicas: int) -> None:
        """Count a failed attempt.

        Args:
            whole: whether it was at a whole shard. Its pieces do not count one by one: they have failed together soon.
            outcome: what the queue made of it.

        Raises:
            RunStopped: nothing but failures comes back from so many replicas.
        """
        self._failed += whole or isinstance(outcome, FailedShard)
        if isinstance(outcome, Narrowed):
            # What narrows a fault down is progress; where that ends, samples are counted.
            self._failed = max(0, self._failed - LOSSES * whole)
            self._condemned += outcome.sample is not None
        if self._failed >= max(FAILED_IN_A_ROW, 2 * replicas):
            raise RunStopped(f"{self._failed} attempts in a row failed, the last with: {reason}")
        most = CONDEMNED_IN_A_ROW if self._ever_answered else CONDEMNED_AT_FIRST
        if self._condemned >= max(most, replicas):
            raise RunStopped(f"{self._condemned} samples in a row killed their replicas, the last with: {reason}")
