"""What the driver does about work that kills its replicas: it is cut down to the sample."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import dispatch
from pipeline.cluster import ReplicaLost, RunStopped, ShardFailed
from pipeline.dispatch import Dispatcher, DispatchSettings
from pipeline.leases import FailedShard, Narrowed
from pipeline.tasks import LETHAL, Retry
from tests.pipeline.scripted_cluster import Script, refs, reports


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POLL_SECONDS", "RETRY_SECONDS", "CAPACITY_SECONDS"):
        monkeypatch.setattr(dispatch, name, 0.0)


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
    script = Script({"0": [ReplicaLost("a"), ReplicaLost("b")]})
    asked = [replace(ref, task=Retry()) for ref in refs(2)]
    events = list(Dispatcher(script, asked, DispatchSettings()).run())
    assert script.log == ["0", "0", "0", "1"]
    assert reports(events) == ["0", "1"]
    assert [event.ref.task for event in events if isinstance(event, Narrowed)] == [Retry()]


def test_a_retry_that_goes_on_killing_is_cut_down_to_the_sample() -> None:
    script = Script(poison={"1": {17}})
    asked = [replace(ref, task=Retry()) for ref in refs(3)]
    events = list(Dispatcher(script, asked, DispatchSettings()).run())
    assert sorted(reports(events)) == ["0", "1", "2"]
    assert script.condemned == [("1", 17)]
    assert script.asked_again == {"1"}
    assert not [event for event in events if isinstance(event, FailedShard)]


def test_a_retry_whose_pieces_fail_is_given_up_as_the_shard_that_it_is() -> None:
    script = Script({"1": [*[ReplicaLost("c")] * 4, None, *[ShardFailed("odd")] * 40]})
    asked = [replace(ref, task=Retry()) for ref in refs(2)]
    events = list(Dispatcher(script, asked, DispatchSettings(max_attempts=2)).run())
    assert [event.ref for event in events if isinstance(event, FailedShard)] == [refs(2)[1]]
    assert reports(events) == ["0"]
