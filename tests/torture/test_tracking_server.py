"""A whole run whose MLflow server is not there at first, comes, dies, and comes back."""

from __future__ import annotations

import json

import pytest
from mlflow import MlflowClient

from tests.pipeline.test_tracking import free_port, history, server
from tests.torture.processes import until
from tests.torture.scene import Scene

pytestmark = pytest.mark.torture


def logged(scene: Scene) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (scene.output / "metrics.jsonl").read_text().splitlines()]
    return sorted((line["step"], float(line["shards_done"])) for line in lines)


def test_a_server_that_comes_and_goes_has_every_metric_in_the_end(scene: Scene) -> None:
    """The first run sees it down, up and down again, and is stopped; the second sends what is missing."""
    real, port = scene.store, free_port()
    scene.quiet()
    scene.store = f"http://127.0.0.1:{port}"
    complaint = rf"MLflow at http://127.0.0.1:{port} fails [^\n]*; the run goes on"
    run = scene.start_threads("--log-every", "0.5", nap=30.0)
    run.says(complaint)
    with server(real, port, scene.folder):
        identity = until(lambda: run_id(scene), "the tracking run's beginning")
    run.says(rf"(?s){complaint}.*{complaint}")
    run.process.terminate()
    assert "did not take everything; run the same command again to send the rest" in run.ends(143)
    with server(real, port, scene.folder):
        scene.start_threads(nap=0.0).ends(0)
        client = MlflowClient(f"http://127.0.0.1:{port}")
        assert history(client, identity) == logged(scene)
        assert client.get_run(identity).info.status == "FINISHED"
    scene.check()


def run_id(scene: Scene) -> str:
    path = scene.output / "run.json"
    return (json.loads(path.read_text())["mlflow_run_id"] or "") if path.exists() else ""
