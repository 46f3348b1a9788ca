"""S3 that is gone for good while a run goes on: a real server that is killed, or stopped so that it keeps silent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
import pytest
from s3fs import S3FileSystem

from tests.pipeline.test_tracking import free_port
from tests.torture.processes import kill, until
from tests.torture.scene import Run, Scene, check_output

pytestmark = pytest.mark.torture

TIMEOUT, BOUND = 10, 90
"""Seconds: `--storage-timeout`, and what a run may take to end after the storage has died on a loaded machine."""
SHARDS, QUESTIONS = 24, 72


class Server:
    """An S3 in a process of its own, with the scene's corpus in it."""

    def __init__(self, scene: Scene, port: int) -> None:
        words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.scene = scene

        def answers() -> bool:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                return True
            return False

        until(answers, "the storage")
        self.client: Any = boto3.client("s3")
        self.client.create_bucket(Bucket="torture")
        for path in sorted(scene.corpus.glob("*.tar")):
            self.client.upload_file(str(path), "torture", f"corpus/{path.name}")

    def start(self, output: str, nap: str, *more: str) -> Run:
        words = [sys.executable, "-m", "tests.torture.ray_echo", str(self.scene.log), nap]
        words += ["--replicas", "2", "--cpus-per-replica", "0.5", "--input", "s3://torture/corpus", "--model", "echo"]
        words += ["--tracking-uri", self.scene.store, "--log-every", "1"]
        words += ["--output", f"s3://torture/{output}", "--storage-timeout", str(TIMEOUT), *more]
        return self.scene.launch(words, {})

    def download(self, name: str) -> Path:
        for file in self.client.list_objects_v2(Bucket="torture", Prefix=f"{name}/")["Contents"]:
            target = self.scene.folder / "s3" / file["Key"]
            target.parent.mkdir(parents=True, exist_ok=True)
            self.client.download_file("torture", file["Key"], str(target))
        return self.scene.folder / "s3" / name


@pytest.fixture
def server(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    port = free_port()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    S3FileSystem.clear_instance_cache()
    made = Server(scene, port)
    yield made
    kill(made.process.pid)
    made.process.wait()
    S3FileSystem.clear_instance_cache()


def ended(run: Run) -> str:
    run.process.wait(BOUND)
    said = run.err.read_text()
    assert run.process.returncode == 1, said
    assert f"s3://torture/out has not answered for {TIMEOUT} s; " in said
    assert "run the same command again to continue" in said
    assert "Traceback" not in said
    return said


def test_a_run_whose_storage_is_killed_ends_in_the_stated_time(server: Server) -> None:
    run = server.start("out", "0.3")
    run.says(rf"shards [1-9]\d*/{SHARDS}")
    kill(server.process.pid)
    ended(run)
    assert run.summary["complete"] is False


def test_a_run_whose_storage_keeps_silent_ends_in_the_stated_time_and_goes_on_later(server: Server) -> None:
    server.start("quiet", "0").ends(0)
    run = server.start("out", "0.3")
    run.says(rf"shards [1-9]\d*/{SHARDS}")
    os.kill(server.process.pid, signal.SIGSTOP)
    ended(run)
    os.kill(server.process.pid, signal.SIGCONT)
    server.start("out", "0").ends(0)
    check_output(server.download("out"), server.download("quiet"), "s3://torture/corpus", QUESTIONS)


def test_one_who_stops_a_run_does_not_wait_for_storage_that_is_dead(server: Server) -> None:
    run = server.start("out", "0.3", "--storage-timeout", "600")
    run.says(rf"shards [1-9]\d*/{SHARDS}")
    kill(server.process.pid)
    run.process.send_signal(signal.SIGTERM)
    run.process.wait(BOUND)
    said = run.err.read_text()
    assert run.process.returncode == 143, said
    assert "stopped by SIGTERM" in said


def test_a_run_started_on_dead_storage_is_refused_soon(server: Server) -> None:
    kill(server.process.pid)
    server.process.wait()
    run = server.start("out", "0", "--storage-timeout", "600", "--input", str(server.scene.corpus))
    run.process.wait(BOUND)
    assert run.process.returncode > 0
    assert "has not answered for 15 s" in run.err.read_text()
