"""Shares of machines: what one replica gets, and how many there are."""

from __future__ import annotations

import pytest

from pipeline.errors import UserError
from pipeline.placement import Machine, Share, share_of


@pytest.mark.parametrize(
    ("machines", "replicas", "share", "fitting"),
    [
        ([Machine(2)], None, Share(2), 1),
        ([Machine(1)], None, Share(1), 1),
        ([Machine(16)], None, Share(8), 2),
        ([Machine(64), Machine(64)], None, Share(8), 16),
        ([Machine(2)], 2, Share(1), 2),
        ([Machine(2)], 4, Share(0.5), 4),
        ([Machine(8), Machine(8)], 1, Share(8), 2),
        ([Machine(16, 4)], None, Share(4, 1), 4),
        ([Machine(64, 8), Machine(2)], None, Share(4, 1), 8),
        ([Machine(2, 4)], None, Share(0.5, 1), 4),
    ],
)
def test_the_share_is_decided_by_what_is_there(
    machines: list[Machine], replicas: int | None, share: Share, fitting: int
) -> None:
    decided = share_of(machines, replicas=replicas)
    assert decided == share
    assert decided.fitting(machines) == fitting


def test_what_is_asked_for_is_taken() -> None:
    assert share_of([Machine(16, 2)], "cpu") == Share(8)
    assert share_of([Machine(16, 2)], gpus=0.5) == Share(4, 0.5)
    assert share_of([Machine(16, 2)], cpus=3.0) == Share(3, 1)
    assert Share(0.5).threads == 1
    assert Share(3.0).threads == 3


@pytest.mark.parametrize(
    ("machines", "settings", "message"),
    [
        ([Machine(8)], {"device": "cuda"}, "the cluster has none"),
        ([Machine(8)], {"gpus": 1.0}, "the cluster has none"),
        ([Machine(8)], {"cpus": 9.0}, "the largest has 8 cores"),
        ([Machine(8, 1)], {"gpus": 2.0}, "no machine of the cluster has that"),
    ],
)
def test_what_no_machine_has_is_refused(machines: list[Machine], settings: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        share_of(machines, **settings)  # type: ignore[arg-type]
