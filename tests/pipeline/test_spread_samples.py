"""Which samples a comparison takes, and in which order it asks the settings."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from pipeline import spread_samples as module
from pipeline.compare_worker import turn
from pipeline.records import ShardRef
from pipeline.spread_samples import spread_samples
from tests.pipeline.shard_bytes import numbered, tar_bytes


@pytest.fixture(autouse=True)
def small_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FEWEST_PER_SHARD", 2)


def corpus(folder: Path, *sizes: int) -> list[ShardRef]:
    refs = []
    for index, size in enumerate(sizes):
        path = folder / f"{index:05d}.tar"
        path.write_bytes(tar_bytes(numbered(size)))
        refs.append(ShardRef(path.name, str(path), path.stat().st_size, "v1"))
    return refs


def taken(refs: list[ShardRef]) -> dict[str, int | None]:
    return {ref.name: ref.take for ref in refs}


def test_samples_come_in_equal_shares_from_shards_all_over_the_corpus(tmp_path: Path) -> None:
    refs = corpus(tmp_path, *[5] * 9)
    assert taken(spread_samples(refs, 6)) == {"00001.tar": 2, "00004.tar": 2, "00007.tar": 2}
    assert taken(spread_samples(refs, 7)) == {"00001.tar": 2, "00004.tar": 2, "00007.tar": 3}
    assert taken(spread_samples(refs, 1)) == {"00004.tar": 1}


def test_what_a_shard_lacks_others_give(tmp_path: Path) -> None:
    refs = corpus(tmp_path, 1, 0, 3, 9, 0)
    assert sum(take or 0 for take in taken(spread_samples(refs, 8)).values()) == 8
    assert sum(take or 0 for take in taken(spread_samples(refs, 13)).values()) == 13


def test_a_corpus_with_fewer_samples_is_taken_whole_and_a_missing_shard_gives_none(tmp_path: Path) -> None:
    refs = [*corpus(tmp_path, 3, 2), ShardRef("gone.tar", f"{tmp_path}/gone.tar", missing=True)]
    assert taken(spread_samples(refs, 2000)) == {"00000.tar": 3, "00001.tar": 2}
    assert spread_samples(refs[2:], 5) == []


def test_every_setting_comes_first_as_often_and_follows_others() -> None:
    settings = ["dense", "a", "b"]
    orders = [turn(settings, number) for number in range(12)]
    assert all(sorted(order) == sorted(settings) for order in orders)
    assert set(Counter(order[0] for order in orders).values()) == {4}
    assert {order[order.index("a") - 1] for order in orders if order[0] != "a"} == {"dense", "b"}
