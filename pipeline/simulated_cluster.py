"""A cluster without processes: replicas that finish at once or never, to measure what the driver itself costs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.cluster import Call, Pulse
from pipeline.records import ShardRef, ShardReport


@dataclass(eq=False, slots=True)
class _Answer:
    value: Any


class SimulatedReplica:
    def __init__(self, cluster: SimulatedCluster) -> None:
        self._cluster = cluster

    def start(self) -> Call:
        return self._cluster.answer({"pid": 0, "node": "simulated"})

    def work(self, ref: ShardRef) -> Call:
        if self._cluster.leases >= self._cluster.most_leases:
            return _Answer(None)
        self._cluster.leases += 1
        return self._cluster.answer(simulated_report(ref))

    def expect(self, ref: ShardRef) -> None:
        pass

    def pulse(self) -> Call:
        return self._cluster.answer(Pulse(time.monotonic_ns()))

    def kill(self) -> None:
        pass


class SimulatedCluster:
    """Gives one answer per wait, the earliest first: the least that a driver can do at a time.

    Args:
        most_leases: shards that are finished; replicas that get another work on it for ever.
    """

    def __init__(self, replicas: int, most_leases: int) -> None:
        self.most_leases = most_leases
        self.leases = 0
        self._replicas = replicas
        self._answers: deque[_Answer] = deque()

    def answer(self, value: Any) -> Call:
        call = _Answer(value)
        self._answers.append(call)
        return call

    def launch(self) -> SimulatedReplica:
        return SimulatedReplica(self)

    def capacity(self) -> int:
        return self._replicas

    def wait(self, calls: Sequence[Call], timeout: float) -> list[Call]:
        if not self._answers:
            time.sleep(timeout)
            return []
        return [self._answers.popleft()]

    def result(self, call: Call) -> Any:
        return call.value


def simulated_report(ref: ShardRef) -> ShardReport:
    """Of a shard of a thousand images with one question each."""
    report = ShardReport(ref.name, ref.url, ref.fingerprint, 1000, 1000, 999, 1, 999, 500.0)
    report.scores_by_kind = {"count": (499, 250.0), "colour": (500, 250.0)}
    report.prompt_tokens, report.generated_tokens, report.wall_seconds = 30_000, 20_000, 100.0
    return report
