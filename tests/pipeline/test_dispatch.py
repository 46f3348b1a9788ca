"""The driver's loop against a cluster that exists in memory alone and does what the test says, at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import dispatch
from pipeline.cluster import ReplicaLost, RunStopped, ShardFailed
from pipeline.dispatch import Dispatcher, DispatchSettings, ReplicaReplaced, ReplicaStarted
from pipeline.leases import FailedShard
from pipeline.records import ShardRef, ShardReport

Outcome = Exception | None


class Script:
    """A cluster in memory. `outcomes` gives, per shard, what its attempts end with; None is success."""

    def __init__(self, outcomes: dict[str, list[Outcome]] | None = None, capacity: int = 1) -> None:
        self.outcomes = outcomes or {}
        self.room = capacity
        self.launched = 0
        self.alive: set[Any] = set()
        self.log: list[str] = []
        self.start_outcomes: list[Outcome] = []

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
        def answer() -> ShardReport:
            self.script.log.append(ref.name)
            planned = self.script.outcomes.get(ref.name, [])
            outcome = planned.pop(0) if planned else None
            if outcome:
                raise outcome
            return ShardReport(ref.name, ref.url, "", samples=1)

        return answer

    def pulse(self) -> Callable[[], Any]:
        return lambda: 0

    def kill(self) -> None:
        self.script.alive.discard(self)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POLL_SECONDS", "RETRY_SECONDS", "CAPACITY_SECONDS"):
        monkeypatch.setattr(dispatch, name, 0.0)


def refs(number: int) -> list[ShardRef]:
    return [ShardRef(str(i), f"/{i}.tar") for i in range(number)]


def reports(events: Sequence[Any]) -> list[str]:
    return [event.shard for event in events if isinstance(event, ShardReport)]


def test_a_vanished_machine_costs_the_shard_no_attempt() -> None:
    script = Script({"0": [ReplicaLost("its node has died", blameless=True)] * 4})
    events = list(Dispatcher(script, refs(2), DispatchSettings(max_attempts=1)).run())
    assert sorted(reports(events)) == ["0", "1"]
    assert script.launched == 5
    assert not script.alive


def test_a_lost_replica_costs_the_shard_an_attempt() -> None:
    script = Script({"0": [ReplicaLost("killed")] * 4})
    events = list(Dispatcher(script, refs(2), DispatchSettings(max_attempts=3)).run())
    given_up = [event for event in events if isinstance(event, FailedShard)]
    assert [(one.ref.name, one.attempts, one.reason) for one in given_up] == [("0", 3, "its replica was lost: killed")]
    assert reports(events) == ["1"]


def test_a_replica_on_which_two_shards_in_a_row_fail_is_replaced() -> None:
    script = Script({"0": [ShardFailed("odd")], "1": [ShardFailed("odd")]})
    events = list(Dispatcher(script, refs(3), DispatchSettings()).run())
    assert sorted(reports(events)) == ["0", "1", "2"]
    assert [event.reason for event in events if isinstance(event, ReplicaReplaced)] == [
        "two shards in a row failed on it, the last with: odd"
    ]


def test_nothing_but_failures_ends_the_run_early() -> None:
    script = Script({str(i): [ShardFailed("the disk is full")] * 9 for i in range(50)})
    with pytest.raises(RunStopped, match="10 attempts in a row failed, the last with: the disk is full"):
        list(Dispatcher(script, refs(50), DispatchSettings()).run())
    assert len(script.log) == 10
    assert not script.alive


def test_machines_that_join_get_replicas() -> None:
    script = Script(capacity=1)
    run = Dispatcher(script, refs(20), DispatchSettings())
    started = 0
    for event in run.run():
        started += isinstance(event, ReplicaStarted)
        if isinstance(event, ShardReport):
            script.room = 3
    assert started == 3


def test_there_are_no_more_replicas_than_shards() -> None:
    script = Script(capacity=8)
    list(Dispatcher(script, refs(2), DispatchSettings()).run())
    assert script.launched == 2


def test_starts_that_fail_now_and_then_do_not_end_the_run() -> None:
    script = Script()
    script.start_outcomes = [ShardFailed("no network"), ReplicaLost("killed"), None]
    assert reports(list(Dispatcher(script, refs(1), DispatchSettings()).run())) == ["0"]


def test_no_room_for_a_replica_ends_the_run() -> None:
    script = Script(capacity=0)
    with pytest.raises(RunStopped, match=r"no machine had room for a replica within 0\.05 s"):
        list(Dispatcher(script, refs(1), DispatchSettings(start_timeout=0.05)).run())


def test_once_stopping_nothing_is_leased_and_what_is_under_way_comes_in() -> None:
    script = Script()
    done: list[str] = []
    run = Dispatcher(script, refs(5), DispatchSettings(), stopping=lambda: len(done) >= 2)
    for event in run.run():
        if isinstance(event, ShardReport):
            done.append(event.shard)
    assert len(done) in (2, 3)
    assert script.log == done
    assert not script.alive


@given(
    outcomes=st.dictionaries(
        st.integers(0, 5).map(str),
        st.lists(st.sampled_from([ShardFailed("a"), ReplicaLost("b"), ReplicaLost("c", blameless=True)]), max_size=2),
    ),
    capacity=st.integers(1, 4),
)
def test_whatever_fails_every_shard_is_finished_or_given_up_exactly_once(
    outcomes: dict[str, list[Outcome]], capacity: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "FAILED_IN_A_ROW", 1000)
        script = Script(outcomes, capacity)
        events = list(Dispatcher(script, refs(6), DispatchSettings(max_attempts=2)).run())
    ended = Counter(reports(events)) + Counter(event.ref.name for event in events if isinstance(event, FailedShard))
    assert ended == Counter(ref.name for ref in refs(6))
    assert not script.alive
