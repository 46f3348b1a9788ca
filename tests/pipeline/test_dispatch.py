"""The driver's loop against a cluster that exists in memory alone and does what the test says, at once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import dispatch, leases, patience
from pipeline.cluster import ReplicaLost, RunStopped, ShardFailed
from pipeline.dispatch import Dispatcher, DispatchSettings, ReplicaReplaced, ReplicaStarted
from pipeline.leases import FailedShard, Narrowed
from pipeline.records import ShardRef, ShardReport, SliceReport
from pipeline.tasks import END, LETHAL, WHOLE, Assembly, Retry, Slice

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
        self.room = capacity
        self.launched = 0
        self.alive: set[Any] = set()
        self.log: list[str] = []
        self.expected: list[str] = []
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
    script = Script({"0": [ReplicaLost("killed")]})
    events = list(Dispatcher(script, refs(2), DispatchSettings(max_attempts=3)).run())
    assert {event.shard: event.attempts for event in events if isinstance(event, ShardReport)} == {"0": 2, "1": 1}
    assert script.log == ["0", "0", "1"]


def test_a_replica_gets_what_it_was_told_to_expect() -> None:
    script = Script(capacity=2)
    list(Dispatcher(script, refs(40), DispatchSettings()).run())
    assert sorted(map(int, script.log)) == list(range(40))
    # In this cluster the two take turns, so each one's expected shard comes up two later.
    assert len(script.expected) > 20
    places = [script.log.index(name) for name in script.expected]
    assert places == sorted(places)


@given(
    dying=st.sets(st.integers(0, 39), max_size=12),
    capacity=st.integers(1, 4),
    vanished=st.booleans(),
)
@settings(deadline=None)
def test_what_a_dead_replica_was_to_expect_is_done_by_another(dying: set[int], capacity: int, vanished: bool) -> None:
    script = Script({str(n): [ReplicaLost("gone", blameless=vanished)] for n in dying}, capacity)
    assert sorted(map(int, reports(list(Dispatcher(script, refs(40), DispatchSettings()).run())))) == list(range(40))


@given(
    samples=st.integers(1, 300),
    poison=st.dictionaries(st.sampled_from("012"), st.sets(st.integers(0, 299), max_size=3), max_size=2),
    capacity=st.integers(1, 3),
    losses=st.lists(st.booleans(), max_size=3),
)
@settings(deadline=None)
def test_a_sample_that_kills_its_replica_is_condemned_alone_and_found_with_few_deaths(
    samples: int, poison: dict[str, set[int]], capacity: int, losses: list[bool]
) -> None:
    """Whatever else dies now and then, no other sample is condemned with it."""
    real = {name: {number for number in numbers if number < samples} for name, numbers in poison.items()}
    script = Script({"2": [ReplicaLost("other") if lost else None for lost in losses]}, capacity, samples, real)
    if losses[:2] == [True, True]:
        script.outcomes["2"] = [ReplicaLost("other")]
    events = list(Dispatcher(script, refs(4), DispatchSettings()).run())
    found = [(name, number) for name, numbers in real.items() for number in numbers]
    assert sorted(reports(events)) == ["0", "1", "2", "3"]
    assert sorted(script.condemned) == sorted(found)
    assert script.deaths <= sum(2 * math.log2(samples) + 4 for _ in found)
    assert not script.alive
    told = [event for event in events if isinstance(event, Narrowed) and event.sample is not None]
    assert sorted((event.ref.name, event.sample) for event in told) == sorted(found)
    assert all(event.reason == f"{LETHAL}: killed" for event in told)


def test_samples_side_by_side_that_kill_do_not_end_the_run() -> None:
    script = Script(samples=1000, poison={"1": set(range(500, 515))})
    assert sorted(reports(list(Dispatcher(script, refs(3), DispatchSettings()).run()))) == ["0", "1", "2"]
    assert script.condemned == [("1", number) for number in range(500, 515)]


@pytest.mark.parametrize(("shards", "healthy"), [(1, 0), (50, 0), (3, 1)])
def test_where_everything_kills_the_run_ends_with_the_reason(shards: int, healthy: int) -> None:
    poison = {str(number): set(range(1000)) for number in range(healthy, shards)}
    script = Script(samples=1000, poison=poison)
    with pytest.raises(RunStopped, match=r"samples in a row killed their replicas, the last with: .*killed"):
        list(Dispatcher(script, refs(shards), DispatchSettings()).run())
    assert script.deaths <= 50
    assert not script.alive


def test_many_replicas_that_die_at_once_on_their_first_shards_do_not_end_the_run() -> None:
    script = Script({str(number): [ReplicaLost("killed")] for number in range(30)}, capacity=30)
    assert len(reports(list(Dispatcher(script, refs(60), DispatchSettings()).run()))) == 60


def test_a_shard_whose_slices_keep_failing_is_given_up_whole_and_the_others_go_on() -> None:
    script = Script({"1": [ReplicaLost("a"), ReplicaLost("b"), None, *[ShardFailed("odd")] * 40]}, capacity=2)
    events = list(Dispatcher(script, refs(4), DispatchSettings(max_attempts=2)).run())
    assert [event.ref for event in events if isinstance(event, FailedShard)] == [refs(4)[1]]
    assert sorted(reports(events)) == ["0", "2", "3"]


def test_a_lethal_sample_in_every_shard_does_not_end_the_run() -> None:
    script = Script(capacity=8, poison={str(number): {number % 40} for number in range(30)})
    assert len(reports(list(Dispatcher(script, refs(30), DispatchSettings()).run()))) == 30
    assert sorted(script.condemned) == sorted((str(number), number % 40) for number in range(30))


def test_a_shard_that_kills_while_it_is_only_counted_is_given_up() -> None:
    script = Script({"1": [ReplicaLost("killed")] * 9})
    events = list(Dispatcher(script, refs(3), DispatchSettings(max_attempts=3)).run())
    assert [event.ref for event in events if isinstance(event, FailedShard)] == [refs(3)[1]]
    assert script.log.count("1") == 2 + 3
    assert sorted(reports(events)) == ["0", "2"]


def test_a_retry_that_kills_goes_on_without_what_has_killed_before() -> None:
    script = Script({"0": [ReplicaLost("a"), ReplicaLost("b")], "1": [ReplicaLost("c")] * 4})
    asked = [replace(ref, task=Retry()) for ref in refs(2)]
    events = list(Dispatcher(script, asked, DispatchSettings()).run())
    assert script.log == ["0", "0", "0", "1", "1", "1", "1"]
    assert reports(events) == ["0"]
    assert [event.ref.task for event in events if isinstance(event, Narrowed)] == [Retry(), Retry()]
    assert [event.ref for event in events if isinstance(event, FailedShard)] == [refs(2)[1]]


def test_fewer_shards_than_replicas_keep_all_of_them_busy() -> None:
    large = [ShardRef(str(i), f"/{i}.tar", size=2**30) for i in range(2)]
    script = Script(capacity=8)
    assert sorted(reports(list(Dispatcher(script, large, DispatchSettings()).run()))) == ["0", "1"]
    assert script.launched == 8
    assert len(script.log) == 2 * (1 + 40 // WINDOW + 1)


@pytest.mark.parametrize(("size", "slices"), [(leases.HOURS_OF_WORK, 8), (leases.HOURS_OF_WORK - 1, 0)])
def test_a_huge_shard_that_is_a_replicas_last_is_done_in_slices(size: int, slices: int) -> None:
    script = Script()
    list(Dispatcher(script, [ShardRef(str(i), f"/{i}.tar", size=size) for i in range(2)], DispatchSettings()).run())
    assert script.log == ["0", *["1"] * (slices + 2 if slices else 1)]


def test_without_slices_shards_are_leased_whole_and_given_up_when_they_keep_killing() -> None:
    large = [ShardRef(str(i), f"/{i}.tar", size=2**30) for i in range(2)]
    script = Script(capacity=8, poison={"0": {3}})
    events = list(Dispatcher(script, large, DispatchSettings(max_attempts=3, slices=False)).run())
    assert reports(events) == ["1"]
    assert [event.ref.name for event in events if isinstance(event, FailedShard)] == ["0"]
    assert sorted(script.log) == ["0", "0", "0", "1"]


def test_the_largest_shards_are_done_first() -> None:
    sizes = [ShardRef(str(size), f"/{size}.tar", size=size) for size in (3, 9, 1, 5)]
    script = Script()
    list(Dispatcher(script, sizes, DispatchSettings()).run())
    assert script.log == ["9", "5", "3", "1"]


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


def test_there_are_no_more_replicas_than_small_shards() -> None:
    script = Script(capacity=8)
    list(Dispatcher(script, refs(2), DispatchSettings()).run())
    assert script.launched == 2


def test_starts_that_fail_now_and_then_do_not_end_the_run() -> None:
    script = Script()
    script.start_outcomes = [ShardFailed("no network"), ReplicaLost("killed"), None]
    assert reports(list(Dispatcher(script, refs(1), DispatchSettings()).run())) == ["0"]


def test_machines_that_vanish_while_replicas_load_do_not_end_the_run() -> None:
    script = Script(capacity=3)
    script.start_outcomes = [ReplicaLost("its node has died", blameless=True)] * 9
    assert sorted(reports(list(Dispatcher(script, refs(3), DispatchSettings()).run()))) == ["0", "1", "2"]


def test_replicas_that_die_together_while_they_load_are_one_misfortune_and_not_many_tries() -> None:
    script = Script(capacity=4)
    script.start_outcomes = [ReplicaLost("killed")] * 4
    assert len(reports(list(Dispatcher(script, refs(4), DispatchSettings()).run()))) == 4
    script = Script(capacity=4)
    script.start_outcomes = [ReplicaLost("killed")] * 40
    with pytest.raises(RunStopped, match="no replica could be started in 6 tries: killed"):
        list(Dispatcher(script, refs(4), DispatchSettings()).run())
    assert not script.alive


def test_no_room_for_a_replica_ends_the_run() -> None:
    script = Script(capacity=0)
    with pytest.raises(RunStopped, match=r"no machine had room for a replica within 0\.05 s"):
        list(Dispatcher(script, refs(1), DispatchSettings(start_timeout=0.05)).run())


def test_machines_that_all_vanish_late_in_a_run_get_their_time_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**9, 10))
    monkeypatch.setattr("pipeline.dispatch.time.monotonic", lambda: float(next(clock)))
    script = Script({"5": [ReplicaLost("its node has died", blameless=True)]})
    settings = DispatchSettings(start_timeout=300.0, lease_timeout=1e9)
    assert len(reports(list(Dispatcher(script, refs(9), settings).run()))) == 9


def test_a_cluster_that_is_lost_to_the_driver_ends_the_run_whatever_number_of_replicas_was_asked_for() -> None:
    class Lost(Script):
        def capacity(self) -> int:
            if self.log:
                raise RunStopped("Ray has died")
            return 1

    script = Lost()
    with pytest.raises(RunStopped, match="Ray has died"):
        list(Dispatcher(script, refs(20), DispatchSettings(replicas=1)).run())
    assert not script.alive


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
        patch.setattr(patience, "FAILED_IN_A_ROW", 1000)
        script = Script(outcomes, capacity)
        events = list(Dispatcher(script, refs(6), DispatchSettings(max_attempts=2)).run())
    ended = Counter(reports(events)) + Counter(event.ref.name for event in events if isinstance(event, FailedShard))
    assert ended == Counter(ref.name for ref in refs(6))
    assert not script.alive
