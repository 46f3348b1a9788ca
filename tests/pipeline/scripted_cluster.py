"""A cluster that exists in memory alone and does what the test says, at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pipeline.cluster import Pulse, ReplicaLost
from pipeline.records import ShardRef, ShardReport, SliceReport
from pipeline.tasks import END, WHOLE, Assembly, Slice

Outcome = Exception | None
WINDOW = 4


class Script:
    """A cluster in memory. `outcomes` gives, per shard, what its attempts end with; None is success.

    Args:
        samples: how many every shard holds.
        poison: shard -> the samples that kill their replica.
    """

    def __init__(
        self,
        outcomes: dict[str, list[Outcome]] | None = None,
        capacity: int = 1,
        samples: int = 40,
        poison: dict[str, set[int]] | None = None,
    ) -> None:
        self.outcomes = outcomes or {}
        self.samples, self.poison = samples, poison or {}
        self.deaths = 0
        self.condemned: list[tuple[str, int]] = []
        self.asked_again: set[str] = set()
        """Shards of which slices ask what is in quarantine."""
        self.room = capacity
        self.launched = 0
        self.alive: set[Any] = set()
        self.log: list[str] = []
        self.expected: list[str] = []
        self.start_outcomes: list[Outcome] = []
        self.beats: list[Pulse] = []

    def launch(self) -> Handle:
        self.launched += 1
        handle = Handle(self)
        self.alive.add(handle)
        return handle

    def capacity(self) -> int:
        return self.room

    def wait(self, calls: Sequence[Any], timeout: float) -> list[Any]:
        return list(calls)

    def result(self, call: Callable[[], Any]) -> Any:
        return call()


class Handle:
    def __init__(self, script: Script) -> None:
        self.script = script

    def start(self) -> Callable[[], Any]:
        def answer() -> dict[str, Any]:
            outcome = self.script.start_outcomes.pop(0) if self.script.start_outcomes else None
            if outcome:
                raise outcome
            return {"pid": self.script.launched}

        return answer

    def work(self, ref: ShardRef) -> Callable[[], Any]:
        def answer() -> ShardReport | SliceReport:
            self.script.log.append(ref.name)
            planned = self.script.outcomes.get(ref.name, [])
            outcome = planned.pop(0) if planned else None
            if outcome:
                raise outcome
            return self._done(ref)

        return answer

    def _done(self, ref: ShardRef) -> ShardReport | SliceReport:
        script, task = self.script, ref.task
        if ref.again is not None:
            script.asked_again.add(ref.name)
        if isinstance(task, Assembly):
            covered = [number for one in task.slices if one != END for number in range(one.first, one.stop or 0)]
            assert covered == list(range(script.samples))
            assert task.slices[-1] == END
            script.condemned += [(ref.name, one.first) for one in task.slices if one.condemned]
            return ShardReport(ref.name, ref.url, "", answers=1)
        part = task if isinstance(task, Slice) else WHOLE
        if part == END:
            return SliceReport(0, script.samples, WINDOW)
        inside = range(part.first, script.samples if part.stop is None else part.stop)
        if not part.condemned and any(number in inside for number in script.poison.get(ref.name, ())):
            script.deaths += 1
            raise ReplicaLost("killed")
        if part == WHOLE:
            return ShardReport(ref.name, ref.url, "", answers=1)
        return SliceReport(0 if part.condemned else len(inside), 0, WINDOW)

    def expect(self, ref: ShardRef) -> None:
        self.script.expected.append(ref.name)

    def pulse(self) -> Callable[[], Any]:
        return lambda: self.script.beats.pop(0) if self.script.beats else Pulse(0)

    def kill(self) -> None:
        self.script.alive.discard(self)


def refs(number: int) -> list[ShardRef]:
    return [ShardRef(str(i), f"/{i}.tar") for i in range(number)]


def reports(events: Sequence[Any]) -> list[str]:
    return [event.shard for event in events if isinstance(event, ShardReport)]
