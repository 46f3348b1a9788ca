"""Tracking in real MLflow stores: a SQLite file, and a server that is down, comes up and goes down."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from mlflow import MlflowClient

from pipeline import tracking
from pipeline.run_about import RunAbout
from pipeline.tracking import Tracker

ABOUT = RunAbout(
    experiment="captions",
    name="demo",
    parameters={"reduction": "ficoco-v:64", "prompt": "x" * 9000},
    config_yaml="reduction: ficoco-v:64\n",
    dataset_name="corpus",
    dataset_digest="0123456789abcdef",
    dataset_profile=json.dumps({"shards": 3}),
    dataset_source=json.dumps({"uri": ["corpus"]}),
    tags={"mlflow.source.name": "jobs/caption_corpus.py"},
)


def line(step: int, **metrics: float) -> dict[str, Any]:
    return {"step": step, "time": 1_700_000_000.0 + step, "shards_done": float(step), **metrics}


def history(client: MlflowClient, run_id: str, name: str = "shards_done") -> list[tuple[int, float]]:
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(run_id, name))


def until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_a_run_is_told_whole(tmp_path: Path, store_in: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlruns").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:/nowhere")
    uri = store_in(tmp_path)
    seen: list[str] = []
    tracker = Tracker(uri, ABOUT, on_run=seen.append)
    for step in range(3):
        tracker.log(line(step, accuracy=0.5, **{"accuracy_what is it?": 1.0}))
    assert tracker.close("FINISHED", {"question": ["q"], "answer": ["a"]})
    client = MlflowClient(uri)
    run = client.get_run(tracker.run_id or "")
    assert seen == [tracker.run_id]
    assert (run.info.status, run.info.run_name) == ("FINISHED", "demo")
    assert run.data.params["reduction"] == "ficoco-v:64"
    assert history(client, run.info.run_id) == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert run.data.metrics["accuracy_what is it_"] == 1.0
    assert run.inputs is not None
    [dataset] = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("corpus", "0123456789abcdef")
    artifacts = tmp_path / "mlflow-artifacts" / run.info.run_id / "artifacts"
    assert (artifacts / "config.yaml").read_text() == ABOUT.config_yaml
    assert json.loads((artifacts / "answers.json").read_text())["data"] == [["q", "a"]]
    assert not list((tmp_path / "mlruns").iterdir())


def test_a_continued_run_goes_on_in_the_same_tracking_run_and_sends_what_it_lacks(
    tmp_path: Path, store_in: Callable[[Path], str]
) -> None:
    uri = store_in(tmp_path)
    first = Tracker(uri, ABOUT)
    first.log(line(0))
    first.close("KILLED", {})
    second = Tracker(uri, ABOUT, run_id=first.run_id, logged=[line(0), line(1), line(2)])
    second.log(line(3))
    assert second.close("FINISHED", {})
    assert second.run_id == first.run_id
    client = MlflowClient(uri)
    assert history(client, first.run_id or "") == [(step, float(step)) for step in range(4)]
    assert client.get_run(first.run_id or "").info.status == "FINISHED"


def test_a_run_unknown_to_the_store_is_made_anew_with_everything(
    tmp_path: Path, store_in: Callable[[Path], str]
) -> None:
    uri = store_in(tmp_path)
    tracker = Tracker(uri, replace(ABOUT, experiment="other"), run_id="0" * 32, logged=[line(0), line(1)])
    assert tracker.close("FINISHED", {})
    assert tracker.run_id != "0" * 32
    assert history(MlflowClient(uri), tracker.run_id or "") == [(0, 0.0), (1, 1.0)]


@pytest.mark.parametrize("step", ["log_batch", "log_text"])
def test_a_run_that_the_store_took_half_of_is_told_whole(
    tmp_path: Path, store_in: Callable[[Path], str], step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = store_in(tmp_path)
    with monkeypatch.context() as patched:
        failed = threading.Event()

        def fail(*args: Any, **options: Any) -> None:
            failed.set()
            raise OSError("no route to the store")

        patched.setattr(MlflowClient, step, fail)
        tracker = Tracker(uri, ABOUT)
        assert failed.wait(60)
    tracker.log(line(0))
    assert tracker.close("FINISHED", {})
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(ABOUT.experiment)
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id])
    assert run.data.params["reduction"] == "ficoco-v:64"
    assert run.inputs is not None
    assert [one.dataset.name for one in run.inputs.dataset_inputs] == ["corpus"]
    assert [one.path for one in client.list_artifacts(run.info.run_id)] == ["config.yaml"]


def test_what_the_store_refuses_for_good_holds_nothing_up(tmp_path: Path, store_in: Callable[[Path], str]) -> None:
    uri = store_in(tmp_path)
    warnings: list[str] = []
    tracker = Tracker(uri, ABOUT, warn=warnings.append)
    tracker.log(line(0, **{"x" * 600: 1.0}))
    tracker.log(line(1))
    assert tracker.close("FINISHED", {})
    assert history(MlflowClient(uri), tracker.run_id or "") == [(1, 1.0)]
    assert len(warnings) == 1


def test_a_store_that_never_answers_costs_a_warning_and_little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.05)
    warnings: list[str] = []
    tracker = Tracker(f"http://user:planted@127.0.0.1:{free_port()}", ABOUT, warn=warnings.append)
    began = time.monotonic()
    for step in range(1000):
        tracker.log(line(step))
    assert time.monotonic() - began < 5
    assert not tracker.close("FINISHED", {}, timeout=3)
    assert tracker.run_id is None
    assert "the run goes on" in warnings[0]
    assert "run the same command again" in warnings[-1]
    assert not any("planted" in text for text in warnings)


def test_a_server_that_comes_goes_and_comes_back_has_everything_in_the_end(
    tmp_path: Path, store_in: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(tracking, "LONGEST_RETRY_SECONDS", 0.5)
    uri, port = store_in(tmp_path), free_port()
    tracker = Tracker(f"http://127.0.0.1:{port}", ABOUT)
    tracker.log(line(0))
    with server(uri, port, tmp_path):
        until(lambda: tracker.run_id and not tracker._steps)
    tracker.log(line(1))
    time.sleep(0.5)
    with server(uri, port, tmp_path):
        tracker.log(line(2))
        assert tracker.close("FINISHED", {}, timeout=60)
    assert history(MlflowClient(uri), tracker.run_id or "") == [(0, 0.0), (1, 1.0), (2, 2.0)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(uri: str, port: int, folder: Path) -> Iterator[None]:
    """A real tracking server over a SQLite store."""
    words = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", uri, "--artifacts-destination", str(folder / "artifacts")]
    with (folder / "server.log").open("a") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, env=_environment())
        try:
            until(lambda: _answers(port), 120)
            yield
        finally:
            process.terminate()
            process.wait(30)


def _environment() -> Mapping[str, str]:
    return {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=0.5) as connection:
            connection.sendall(b"GET /health HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
            return b"200" in connection.recv(100)
    except OSError:
        return False


def test_a_new_store_is_made_by_one_run_at_a_time(tmp_path: Path) -> None:
    database = tmp_path / "new.db"
    with FileLock(f"{database}.lock"):
        tracker = Tracker(f"sqlite:///{database}", ABOUT)
        tracker.log(line(0))
        assert not tracker.close("FINISHED", {}, 3)
        assert not database.exists()
    until(lambda: not tracker._thread.is_alive())
    client = MlflowClient(f"sqlite:///{database}")
    assert tracker.run_id is not None
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
