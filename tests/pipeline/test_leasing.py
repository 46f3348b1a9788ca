"""Which replica gets which shard, and what becomes of shards that fail."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import dispatch, leases, patience
from pipeline.cluster import Pulse, ReplicaLost, RunStopped, ShardFailed
from pipeline.dispatch import Dispatcher, DispatchSettings
from pipeline.dispatch_events import BatchesAnswered, ReplicaReplaced
from pipeline.leases import FailedShard
from pipeline.records import ShardRef, ShardReport
from tests.pipeline.scripted_cluster import WINDOW, Outcome, Script, refs, reports


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POLL_SECONDS", "RETRY_SECONDS", "CAPACITY_SECONDS"):
        monkeypatch.setattr(dispatch, name, 0.0)


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


def test_batches_that_replicas_count_are_told_as_they_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "PULSE_SECONDS", 0.0)
    script = Script()
    script.beats = [Pulse(1), Pulse(2, 3), Pulse(3, 3), Pulse(4, 7), *[Pulse(4, 7)] * 99]
    events = list(Dispatcher(script, refs(9), DispatchSettings()).run())
    assert [event.number for event in events if isinstance(event, BatchesAnswered)] == [3, 4]


@pytest.mark.parametrize(("replicas", "seconds"), [(1, 10), (20, 20), (50, 30)])
def test_replicas_are_asked_as_often_as_the_run_is_shown_unless_they_are_many(replicas: int, seconds: int) -> None:
    run = Dispatcher(Script(capacity=replicas), refs(200), DispatchSettings(shown_every=10.0))
    events = run.run()
    next(event for event in events if isinstance(event, ShardReport))
    pauses = {round(replica.next_pulse - replica.launched) for replica in run._replicas}
    assert pauses == {seconds}


@given(
    dying=st.sets(st.integers(0, 39), max_size=12),
    capacity=st.integers(1, 4),
    vanished=st.booleans(),
)
@settings(deadline=None)
def test_what_a_dead_replica_was_to_expect_is_done_by_another(dying: set[int], capacity: int, vanished: bool) -> None:
    script = Script({str(n): [ReplicaLost("gone", blameless=vanished)] for n in dying}, capacity)
    assert sorted(map(int, reports(list(Dispatcher(script, refs(40), DispatchSettings()).run())))) == list(range(40))


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
