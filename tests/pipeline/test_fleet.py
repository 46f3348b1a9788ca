"""The dispatcher on a real local Ray, with replicas that really die."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline import ray_connection
from pipeline.cluster import RunStopped, WorkerSpec
from pipeline.dispatch import Dispatcher, DispatchSettings
from pipeline.dispatch_events import BatchesAnswered, ReplicaReplaced, ReplicaStarted
from pipeline.errors import UserError
from pipeline.fleet import RayCluster, machines
from pipeline.leases import FailedShard
from pipeline.limits import ReadLimits
from pipeline.listing import list_shards
from pipeline.placement import Share
from pipeline.ray_connection import connected
from pipeline.records import ShardRef, ShardReport
from pipeline.tasks import LETHAL, Retry
from tests.pipeline.fleet_workers import LethalWorker
from tests.pipeline.shard_bytes import JPEG, tar_bytes

FACTORY = "tests.pipeline.fleet_workers:Worker"


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setattr(ray_connection, "read_ray_address", lambda: None)
        with connected():
            yield


def refs(number: int) -> list[ShardRef]:
    return [ShardRef(f"{i:05d}.tar", f"/corpus/{i:05d}.tar") for i in range(number)]


def dispatcher(folder: Path, number: int, *, seconds: float = 0.0, broken: str = "", **settings: object) -> Dispatcher:
    spec = WorkerSpec(FACTORY, {"folder": str(folder), "seconds": seconds, "broken": broken})
    chosen = DispatchSettings(**{"replicas": 1, **settings})  # type: ignore[arg-type]
    return Dispatcher(RayCluster(spec, Share(1.0)), refs(number), chosen)


def test_every_shard_comes_back_once_and_the_machine_is_seen(tmp_path: Path) -> None:
    events = list(dispatcher(tmp_path, 4, replicas=2).run())
    assert sorted(event.shard for event in events if isinstance(event, ShardReport)) == [r.name for r in refs(4)]
    started = [event for event in events if isinstance(event, ReplicaStarted)]
    assert {event.description["model"] for event in started} == {"trivial"}
    assert all(event.description["pid"] != os.getpid() for event in started)
    assert sum(machine.cpus for machine in machines()) >= 1


@pytest.mark.parametrize("what", ["kill", "device"])
def test_a_dead_replica_is_replaced_and_its_shard_done_again(tmp_path: Path, what: str) -> None:
    (tmp_path / f"00001.tar.{what}").touch()
    events = list(dispatcher(tmp_path, 3).run())
    reports = {event.shard: event for event in events if isinstance(event, ShardReport)}
    assert sorted(reports) == [r.name for r in refs(3)]
    assert reports["00001.tar"].attempts == 2
    assert len([event for event in events if isinstance(event, ReplicaReplaced)]) == 1
    assert len({line.split()[1] for line in (tmp_path / "log").read_text().splitlines()}) == 2


def test_a_replica_killed_from_outside_is_replaced(tmp_path: Path) -> None:
    run = dispatcher(tmp_path, 6, seconds=0.3)
    finished, killed = [], 0
    for event in run.run():
        if isinstance(event, ReplicaStarted) and not killed:
            killed = event.description["pid"]
            threading.Timer(0.5, os.kill, (killed, signal.SIGKILL)).start()
        if isinstance(event, ShardReport):
            finished.append(event.shard)
    assert killed
    assert sorted(finished) == [r.name for r in refs(6)]


@pytest.mark.parametrize("what", ["raise", "source", "storage"])
def test_an_exception_costs_the_shard_an_attempt_and_the_replica_stays(tmp_path: Path, what: str) -> None:
    (tmp_path / f"00000.tar.{what}").touch()
    events = list(dispatcher(tmp_path, 3).run())
    reports = {event.shard: event.attempts for event in events if isinstance(event, ShardReport)}
    assert reports == {"00000.tar": 2, "00001.tar": 1, "00002.tar": 1}
    assert not [event for event in events if isinstance(event, ReplicaReplaced)]


def test_a_shard_that_never_works_is_given_up_with_its_reason_and_the_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "00001.tar.always").touch()
    events = list(dispatcher(tmp_path, 3, max_attempts=2).run())
    given_up = [event for event in events if isinstance(event, FailedShard)]
    assert [(event.ref.name, event.attempts, event.reason) for event in given_up] == [
        ("00001.tar", 2, "this shard never works")
    ]
    assert len([event for event in events if isinstance(event, ShardReport)]) == 2


def test_a_hung_replica_is_replaced_and_a_slow_one_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "00000.tar.slow").touch()
    (tmp_path / "00001.tar.hang").touch()
    events = list(dispatcher(tmp_path, 2, lease_timeout=1.5).run())
    reports = {event.shard: event.attempts for event in events if isinstance(event, ShardReport)}
    assert reports == {"00000.tar": 1, "00001.tar": 2}
    assert [event.reason for event in events if isinstance(event, ReplicaReplaced)] == ["no progress for 1.5 s"]
    batches = [event.number for event in events if isinstance(event, BatchesAnswered)]
    assert 0 < sum(batches) <= 20
    assert len(batches) > 1


def test_samples_that_kill_or_hang_their_replica_are_quarantined_and_all_others_are_answered(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    ends = {(0, 7): "die", (0, 41): "exit", (1, 0): "hang"}
    for shard in range(2):
        questions = {number: ends.get((shard, number), "what?") for number in range(60 if shard == 0 else 3)}
        members = [
            (f"{number:03d}{ending}", content)
            for number, text in questions.items()
            for ending, content in ((".jpg", JPEG), (".json", {"questions": [text, "and then?"]}))
        ]
        (tmp_path / "corpus" / f"{shard}.tar").write_bytes(tar_bytes(members))
    spec = WorkerSpec("tests.pipeline.fleet_workers:LethalWorker", {"output": str(tmp_path / "out")})
    shards = list_shards([str(tmp_path / "corpus")])
    run = Dispatcher(RayCluster(spec, Share(1.0)), shards, DispatchSettings(replicas=2, lease_timeout=3.0))
    events = list(run.run())
    assert sorted(event.shard for event in events if isinstance(event, ShardReport)) == ["0.tar", "1.tar"]
    lost = [row for part in (tmp_path / "out" / "quarantine").iterdir() for row in pq.read_table(part).to_pylist()]
    assert sorted((row["shard"], row["key"], row["question_index"], row["stage"]) for row in lost) == sorted(
        (f"{shard}.tar", f"{number:03d}", index, "model") for shard, number in ends for index in range(2)
    )
    reasons = {row["shard"]: row["reason"] for row in lost}
    assert reasons["1.tar"] == "its replica was lost: no progress for 3 s"
    assert reasons["0.tar"].startswith("its replica was lost: ")
    answered = [row for part in (tmp_path / "out" / "data").iterdir() for row in pq.read_table(part).to_pylist()]
    identities = {(row["shard"], row["key"], row["question_index"]) for row in answered}
    assert len(identities) == len(answered) == 2 * (60 + 3 - 3)
    assert len([event for event in events if isinstance(event, ReplicaReplaced)]) <= 2 * (2 * math.log2(60) + 2) + 6
    assert not list((tmp_path / "out" / "staged").iterdir())


@pytest.mark.torture
def test_a_sample_that_kills_only_when_it_is_asked_again_costs_that_sample(tmp_path: Path) -> None:
    members: list[tuple[str, bytes | dict[str, Any]]] = []
    for number in range(9):
        asked = {"questions": ["die" if number == 4 else "what?", "and then?"]}
        members += [(f"{number:03d}.jpg", JPEG), (f"{number:03d}.json", asked)]
    (tmp_path / "0.tar").write_bytes(tar_bytes(members))
    spec = WorkerSpec("tests.pipeline.fleet_workers:LethalWorker", {"output": str(tmp_path / "out")})
    [shard] = list_shards([str(tmp_path / "0.tar")])
    first = LethalWorker(str(tmp_path / "out"))
    first.limits = ReadLimits(max_image_bytes=1)
    first.work(shard)
    retry = replace(shard, task=Retry())
    events = list(Dispatcher(RayCluster(spec, Share(1.0)), [retry], DispatchSettings(replicas=2)).run())
    [done] = [event for event in events if isinstance(event, ShardReport)]
    assert (done.answers, done.quarantined) == (16, 2)
    [part] = (tmp_path / "out" / "quarantine").iterdir()
    lost = pq.read_table(part).to_pylist()
    assert [(row["key"], row["question_index"], row["stage"]) for row in lost] == [
        ("004", 0, "model"),
        ("004", 1, "model"),
    ]
    assert all(row["reason"].startswith(LETHAL) for row in lost)
    assert not list((tmp_path / "out" / "staged").iterdir())


def test_a_replica_that_cannot_start_ends_the_run_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(RunStopped, match=r"no replica could be started in 3 tries: .*the weights are damaged"):
        list(dispatcher(tmp_path, 2, broken="the weights are damaged").run())


def test_a_cluster_that_does_not_answer_is_one_sentence_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with (
        pytest.raises(UserError, match=r"cannot connect to the Ray cluster 127\.0\.0\.1:9: .*RAY_AUTH_MODE"),
        connected(),
    ):
        pass
