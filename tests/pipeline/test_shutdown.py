"""Signals at every time of a run: none is lost, and what is said and returned tells which it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from pipeline.cluster import Cluster, WorkerSpec
from pipeline.command import carry_out
from pipeline.command_line import parse_command
from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.job import JobParts, JobResult, run
from pipeline.places import located
from pipeline.shutdown import SIGNALS, Shutdown
from tests.pipeline.compare_runs import run_compare, words, write_corpus
from tests.pipeline.echo_job import ROOT, echo_parts, rows, small_corpus

EACH = pytest.mark.parametrize("number", SIGNALS)


@pytest.fixture(autouse=True)
def _handlers_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class _Lost:
    """Python reports what its finalizer raises and goes on."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


def lose(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[Any] = []
    with monkeypatch.context() as patched:
        patched.setattr(sys, "unraisablehook", lost.append)
        _Lost(number)
    assert [one.exc_type for one in lost] == [KeyboardInterrupt]


@EACH
def test_the_first_signal_interrupts_and_is_remembered(number: signal.Signals) -> None:
    shutdown = Shutdown()
    with shutdown.listening(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)
    assert shutdown.requested()
    assert (shutdown.name, shutdown.exit_code) == (number.name, 128 + number)


@EACH
def test_an_interrupt_that_python_dropped_is_caught_up_with(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutdown = Shutdown()
    with shutdown.listening():
        shutdown.catch_up()
        lose(number, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            shutdown.catch_up()


def test_while_shards_are_done_the_first_is_heeded_later_and_the_second_at_once() -> None:
    shutdown = Shutdown()
    with shutdown.listening():
        with shutdown.asked_only():
            signal.raise_signal(signal.SIGTERM)
            assert shutdown.requested()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    assert shutdown.name == "SIGTERM"


def test_without_a_signal_the_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    shutdown = Shutdown()
    with shutdown.listening(), shutdown.asked_only():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert not shutdown.requested()


@pytest.fixture
def config(tmp_path: Path, store_in: Callable[[Path], str]) -> RunConfig:
    small_corpus(tmp_path)
    options = ["--input", f"{tmp_path}/corpus", "--output", f"{tmp_path}/out", "--model", "echo"]
    return located(parse_command([*options, "--tracking-uri", store_in(tmp_path)]), inside_job=False)


def interrupted_parts(interrupt: Callable[[], None]) -> JobParts:
    """As a signal while Ray starts."""
    parts = echo_parts()

    @contextmanager
    def cluster(config: RunConfig, spec: WorkerSpec) -> Iterator[Cluster]:
        interrupt()
        with parts.cluster(config, spec) as made:
            yield made

    return replace(parts, cluster=cluster)


@EACH
def test_a_signal_while_ray_starts_ends_the_run_before_any_shard(
    config: RunConfig, number: signal.Signals, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    parts = interrupted_parts(lambda: signal.raise_signal(number))
    assert carry_out("echo", lambda shutdown: run(config, parts, shutdown=shutdown)) == 128 + number
    said = capsys.readouterr()
    assert f"stopped by {number.name}; 0 of 3 shards are done, run the same command again to continue" in said.err
    assert '"complete": false' in said.out
    assert not (tmp_path / "out" / "driver.lock").exists()
    assert rows(tmp_path) == []
    assert run(config, echo_parts()).exit_code == 0
    assert len(rows(tmp_path)) == 12


ON_RAY = """
import signal, time
from pipeline.ray_connection import connected
from pipeline.shutdown import Shutdown

shutdown = Shutdown()
with shutdown.asked_only(), connected():
    signal.raise_signal(signal.SIGTERM)
    time.sleep(3.5)
print(shutdown.name)
"""


def test_ray_leaves_sigterm_to_the_run(tmp_path: Path) -> None:
    """Ray's own handlers, in Python and below it, end the process at once or abort it after three seconds."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with TemporaryDirectory(prefix="ray-", dir="/tmp") as home:  # a short path, as Ray puts sockets into it
        environment |= {"RAY_TMPDIR": home, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", ON_RAY], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
    assert (done.returncode, done.stdout) == (0, "SIGTERM\n"), done.stderr
    assert "SIGTERM received" not in done.stderr


def test_a_signal_lost_before_ray_starts_keeps_it_from_starting(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never() -> None:
        raise AssertionError("Ray was started")

    def check_model(config: RunConfig) -> str:
        lose(signal.SIGINT, monkeypatch)
        return "digest"

    parts = replace(interrupted_parts(never), check_model=check_model)
    assert carry_out("echo", lambda shutdown: run(config, parts, shutdown=shutdown)) == 130


def test_a_comparison_is_stopped_as_a_run_is(
    tmp_path: Path, store_in: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.checkpoint import save_checkpoint

    write_corpus(tmp_path / "corpus")
    store_in(tmp_path)
    model = save_checkpoint(tmp_path / "model")

    def work(shutdown: Shutdown) -> Any:
        lose(signal.SIGTERM, monkeypatch)
        return run_compare(words(tmp_path, model), shutdown)

    assert carry_out("compare", work) == 143
    assert "stopped by SIGTERM; run the same command again to continue" in capsys.readouterr().err
    assert not (tmp_path / "out" / "driver.lock").exists()


def _raises(error: BaseException) -> Callable[[Shutdown], JobResult]:
    def work(shutdown: Shutdown) -> JobResult:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (UserError("no shard is there"), 2, "name: no shard is there\n"),
        (KeyboardInterrupt(), 130, "name: stopped by SIGINT; run the same command again to continue\n"),
    ],
)
def test_a_command_ends_in_one_sentence(
    error: BaseException, code: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert carry_out("name", _raises(error)) == code
    assert capsys.readouterr().err == sentence
