"""Reading the shard that probably comes next while the present one is answered."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.preparation import Preparation
from pipeline.reading import Reading
from pipeline.records import ShardRef
from pipeline.replica import Replica, ReplicaSettings
from pipeline.retrying import Select
from pipeline.sources import SourceError
from tests.checkpoint import save_checkpoint
from tests.pipeline.test_shard_work import noise, write_tar


class Counted(Preparation):
    """Remembers how often the reading of a shard began."""

    begun: list[str]

    def _fill(self, ref: ShardRef, select: Select | None) -> Iterator[Any]:
        self.begun.append(ref.name)
        return super()._fill(ref, select)


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Replica:
    return Replica(ReplicaSettings(str(save_checkpoint(tmp_path_factory.mktemp("model")))))


@pytest.fixture
def made(replica: Replica) -> Counted:
    made = Counted(replica.transform, replica.prompts, prompt="What is it?", window=2)
    made.begun = []
    return made


@pytest.fixture
def shards(tmp_path: Path) -> list[ShardRef]:
    return [write_tar(tmp_path / f"{n}.tar", [(f"{n}{i}.jpg", noise(i)) for i in range(5)]) for n in range(3)]


def keys(made: Preparation, ref: ShardRef) -> list[str]:
    return [one.sample.key for window in made.windows(ref) for picture in window.pictures for one in picture.asked]


def test_an_expected_shard_is_begun_once_and_is_the_same(made: Counted, shards: list[ShardRef]) -> None:
    made.expect(shards[1])
    assert keys(made, shards[0]) == [f"0{i}" for i in range(5)]
    assert made.begun == [shards[0].name, shards[1].name]
    made.expect(shards[2])
    assert keys(made, shards[1]) == [f"1{i}" for i in range(5)]
    assert keys(made, shards[2]) == [f"2{i}" for i in range(5)]
    assert made.begun == [shard.name for shard in shards]


def test_another_shard_than_expected_is_read_whole(made: Counted, shards: list[ShardRef]) -> None:
    made.expect(shards[1])
    assert keys(made, shards[0]) == [f"0{i}" for i in range(5)]
    assert keys(made, shards[2]) == [f"2{i}" for i in range(5)]
    assert keys(made, shards[1]) == [f"1{i}" for i in range(5)]


def test_what_goes_wrong_while_reading_ahead_is_raised_when_the_shard_is_asked_for(
    made: Counted, shards: list[ShardRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill = Counted._fill

    def refused(self: Counted, ref: ShardRef, select: Select | None) -> Iterator[Any]:
        if ref == shards[1]:
            raise SourceError("planted")
        yield from fill(self, ref, select)

    monkeypatch.setattr(Counted, "_fill", refused)
    made.expect(shards[1])
    assert keys(made, shards[0]) == [f"0{i}" for i in range(5)]
    with pytest.raises(SourceError, match="planted"):
        keys(made, shards[1])
    monkeypatch.undo()
    assert keys(made, shards[1]) == [f"1{i}" for i in range(5)]


def test_closing_stops_the_thread() -> None:
    made: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            made.append(len(made))
            yield made[-1]

    before = set(threading.enumerate())
    reading = Reading(endless())
    assert next(iter(reading)) == 0
    reading.close()
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name == "read-ahead"]
    assert len(made) < 10
