"""When the driver starts replicas, and what it makes of starts that fail."""

from __future__ import annotations

import pytest

from pipeline import dispatch
from pipeline.cluster import ReplicaLost, RunStopped, ShardFailed
from pipeline.dispatch import Dispatcher, DispatchSettings
from pipeline.dispatch_events import ReplicaStarted
from pipeline.records import ShardReport
from tests.pipeline.scripted_cluster import Script, refs, reports


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POLL_SECONDS", "RETRY_SECONDS", "CAPACITY_SECONDS"):
        monkeypatch.setattr(dispatch, name, 0.0)


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
