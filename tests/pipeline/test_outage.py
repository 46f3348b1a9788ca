"""How long a storage that does not answer is asked again; time here is what the test says."""

from __future__ import annotations

import pytest

from pipeline import outage
from pipeline.outage import FIRST_ANSWER, LAST_TRY, Outage, StorageAway, passing


class Clock:
    """`time.monotonic` and `time.sleep` of a world in which nothing else takes time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(outage, "time", made)
    return made


class Storage:
    """Answers but for the times when it is away; a request to it then takes all the time that it may take."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.away, self.asked, self.allowed = clock, range(0), 0, list[float]()

    def __call__(self, seconds: float) -> str:
        self.asked += 1
        self.allowed.append(seconds)
        if int(self.clock.now) in self.away:
            self.clock.now += min(3.0, seconds)
            raise ConnectionResetError("reset by peer")
        return "answer"


def test_an_outage_shorter_than_the_timeout_is_not_noticed(clock: Clock) -> None:
    storage, met = Storage(clock), Outage(100)
    assert met.survive(storage) == "answer"
    storage.away = range(1000, 1090)
    assert met.survive(storage) == "answer"
    assert clock.now >= 1090
    assert not met.too_long


def test_a_longer_one_is_given_up_when_the_time_is_over_and_tried_shortly_from_then_on(clock: Clock) -> None:
    storage, met = Storage(clock), Outage(100)
    met.survive(storage)
    storage.away = range(1000, 9000)
    with pytest.raises(StorageAway, match=r"has not answered for 100 s, at last with: reset by peer"):
        met.survive(storage)
    assert 1100 <= clock.now <= 1100 + LAST_TRY
    assert met.too_long
    storage.asked, before = 0, clock.now
    with pytest.raises(StorageAway):
        met.survive(storage)
    assert storage.asked == 1
    assert clock.now <= before + LAST_TRY
    assert storage.allowed[-1] == LAST_TRY
    clock.now = 9000
    assert met.survive(storage) == "answer"
    assert not met.too_long


def test_what_another_thread_hears_counts_for_a_request_that_waits(clock: Clock) -> None:
    met, asked = Outage(100), list[float]()

    def slow(seconds: float) -> str:
        asked.append(seconds)
        if len(asked) > 1:
            return "answer"
        clock.now += 99
        met.survive(lambda seconds: "another's answer")
        clock.now += 1
        raise TimeoutError

    assert met.survive(slow) == "answer"


def test_one_that_never_answered_is_given_up_soon(clock: Clock) -> None:
    storage, met = Storage(clock), Outage(600)
    storage.away = range(1000, 9000)
    with pytest.raises(StorageAway, match="has not answered for 15 s"):
        met.survive(storage)
    assert clock.now <= 1000 + FIRST_ANSWER + LAST_TRY


def test_at_a_runs_end_it_is_not_waited_for(clock: Clock) -> None:
    storage, met = Storage(clock), Outage(600)
    met.survive(storage)
    met.hurry()
    storage.away = range(1000, 9000)
    with pytest.raises(StorageAway):
        met.survive(storage)
    assert clock.now <= 1000 + 2 * LAST_TRY


def test_an_error_that_stays_is_an_answer(clock: Clock) -> None:
    met = Outage(600)

    def missing(seconds: float) -> None:
        raise FileNotFoundError("no such key")

    with pytest.raises(FileNotFoundError):
        met.survive(missing)
    assert clock.now == 1000
    assert met.patience == 600


class ClientError(Exception):
    """As botocore's."""

    def __init__(self, status: int) -> None:
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


def test_what_may_pass_is_told_from_what_stays() -> None:
    caused = OSError(5, "InternalError")
    caused.__cause__ = ClientError(500)
    passes = [caused, ClientError(503), ClientError(429), TimeoutError(), ConnectionRefusedError()]
    assert all(passing(error) for error in passes)
    refused = PermissionError("no")
    refused.__cause__ = ClientError(403)
    stays = [refused, ClientError(404), ClientError(501), FileNotFoundError(), ValueError(), OSError(28, "full")]
    assert not any(passing(error) for error in stays)
