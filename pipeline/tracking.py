"""The MLflow edge: the only file that imports mlflow. A store that fails costs the run nothing but a warning.

Everything is sent by one thread, in order, and tried again until it is through; what is not through when the run ends
is in the output's `metrics.jsonl`, from where the next start of the run sends it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.locations import redact
from pipeline.run_about import RunAbout
from pipeline.sqlite_store import artifacts_beside, one_at_a_time

if TYPE_CHECKING:
    from mlflow import MlflowClient

MARKER = "shards_done"
"""A metric that every line has: its last step tells what a tracking run has already got."""
LONGEST_PARAMETER = 500
RETRY_SECONDS, LONGEST_RETRY_SECONDS = 1.0, 60.0
CLOSE_SECONDS = 20.0
"""How long the end of a run waits for the store."""
DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
}
"""The thread does the retrying; set in the environment, they win over these defaults."""
PARENT_TAG = "mlflow.parentRunId"
TABLES_TAG = "mlflow.loggedArtifacts"
"""By which MLflow's pages know a table."""
_ALLOWED = re.compile(r"[^\w\-. /]")

Step = Callable[["MlflowClient"], None]


class Tracker:
    """Sends a run to MLflow in the background.

    Args:
        uri: the tracking store; always passed on explicitly, so that no `mlruns` folder or variable changes it.
        run_id: the tracking run of an earlier start, which is continued when the store knows it.
        logged: lines of `metrics.jsonl` of earlier starts; what the store lacks of them is sent first.
        on_run: called from the thread with the tracking run's id once it is known.
    """

    def __init__(
        self,
        uri: str,
        about: RunAbout,
        run_id: str | None = None,
        logged: Sequence[Mapping[str, Any]] = (),
        on_run: Callable[[str], None] = lambda run_id: None,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.run_id: str | None = None
        self._uri, self._about, self._earlier_run, self._logged = uri, about, run_id, list(logged)
        self._on_run, self._warn = on_run, warn
        self._steps: deque[Step] = deque([self._open])
        self._more = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._send, name="mlflow", daemon=True)
        self._thread.start()

    def log(self, line: Mapping[str, Any]) -> None:
        """Send one line of the metrics log; returns at once."""
        self._add(lambda client: self._log_line(client, line))

    def add_child(self, name: str, parameters: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Send a run of its own below this one, finished; the one of that name is brought up to date if there is one.

        Args:
            parameters: must not change for a name; MLflow refuses that.
        """
        moment = time.time()
        self._add(lambda client: self._log_child(client, name, parameters, {"time": moment, "step": 0, **metrics}))

    def add_file(self, name: str, content: bytes) -> None:
        """Send a file as an artifact of the run."""

        def send(client: MlflowClient) -> None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / name
                path.write_bytes(content)
                client.log_artifact(self._id(), str(path))

        self._add(send)

    def close(
        self,
        status: str,
        table: Mapping[str, list[Any]],
        timeout: float = CLOSE_SECONDS,
        table_name: str = "answers.json",
    ) -> bool:
        """Send a table (a sample of the answers), end the tracking run, and wait for what is under way.

        Args:
            status: FINISHED, FAILED or KILLED.

        Returns:
            Whether the store has everything.
        """
        if table:
            self._add(lambda client: _log_table(client, self._id(), table, table_name))
        self._add(lambda client: client.set_terminated(self._id(), status))
        self._closing.set()
        self._more.set()
        self._thread.join(timeout)
        if self._thread.is_alive() or self._steps:
            self._warn(
                f"MLflow at {redact(self._uri)} did not take everything; run the same command again to send the rest"
            )
            return False
        return True

    def _add(self, step: Step) -> None:
        self._steps.append(step)
        self._more.set()

    def _id(self) -> str:
        if self.run_id is None:
            raise RuntimeError("the tracking run is not open")
        return self.run_id

    def _send(self) -> None:
        wait, warned, client = RETRY_SECONDS, False, None
        while True:
            if not self._steps:
                if self._closing.is_set():
                    return
                self._more.wait()
                self._more.clear()
                continue
            try:
                client = client or _client(self._uri)
                self._steps[0](client)
            except Exception as error:  # whatever a store, its database or the network raise
                if not warned:
                    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
                    self._warn(f"MLflow at {redact(self._uri)} fails ({redact(first_line)[:200]}); the run goes on")
                warned = True
                if self.run_id is not None and _refused_for_good(error):
                    self._steps.popleft()
                    continue
                if self._closing.is_set() and wait > LONGEST_RETRY_SECONDS / 8:
                    return
                self._closing.wait(wait) if not self._closing.is_set() else time.sleep(min(wait, RETRY_SECONDS))
                wait = min(2 * wait, LONGEST_RETRY_SECONDS)
                continue
            self._steps.popleft()
            wait, warned = RETRY_SECONDS, False

    def _open(self, client: MlflowClient) -> None:
        run_id = self._earlier_run if self._earlier_run and _knows(client, self._earlier_run) else None
        if run_id is None:
            run_id = self._create(client)
            seen = -1
        else:
            client.update_run(run_id, status="RUNNING")
            history = client.get_metric_history(run_id, MARKER)
            seen = max((metric.step for metric in history), default=-1)
        self.run_id = run_id
        self._on_run(run_id)
        for line in self._logged:
            if line["step"] > seen:
                self._log_line(client, line)

    def _create(self, client: MlflowClient) -> str:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        about = self._about
        run = client.create_run(
            _experiment(client, about.experiment, self._uri), tags=dict(about.tags), run_name=about.name
        )
        run_id = run.info.run_id
        self._earlier_run = run_id  # a failure below is tried again on the same run
        parameters = [Param(name, str(value)[:LONGEST_PARAMETER]) for name, value in about.parameters.items()]
        client.log_batch(run_id, params=parameters)
        dataset = Dataset(
            about.dataset_name, about.dataset_digest, "webdataset", about.dataset_source, profile=about.dataset_profile
        )
        client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "inference")])])
        client.log_text(run_id, about.config_yaml, "config.yaml")
        return run_id

    def _log_child(
        self, client: MlflowClient, name: str, parameters: Mapping[str, Any], line: Mapping[str, Any]
    ) -> None:
        from mlflow.entities import Param

        experiment = _experiment(client, self._about.experiment, self._uri)
        mine = f"tags.`{PARENT_TAG}` = '{self._id()}'"
        runs = [run for run in client.search_runs([experiment], mine, max_results=1000) if run.info.run_name == name]
        if runs:
            child = runs[0].info.run_id
        else:
            child = client.create_run(experiment, tags={PARENT_TAG: self._id()}, run_name=name).info.run_id
            params = [Param(key, str(value)[:LONGEST_PARAMETER]) for key, value in parameters.items()]
            client.log_batch(child, params=params)
        _log_metrics(client, child, line)
        client.set_terminated(child, "FINISHED")

    def _log_line(self, client: MlflowClient, line: Mapping[str, Any]) -> None:
        _log_metrics(client, self._id(), line)


def _log_table(client: MlflowClient, run_id: str, table: Mapping[str, list[Any]], name: str) -> None:
    """What `client.log_table` writes, in place of an earlier start's table: that function appends to it."""
    rows = [list(row) for row in zip(*table.values(), strict=True)]
    client.log_dict(run_id, {"columns": list(table), "data": rows}, name)
    client.set_tag(run_id, TABLES_TAG, json.dumps([{"path": name, "type": "table"}]))


def _log_metrics(client: MlflowClient, run_id: str, line: Mapping[str, Any]) -> None:
    from mlflow.entities import Metric

    moment, step = int(1000 * line["time"]), line["step"]
    values = {_ALLOWED.sub("_", name): value for name, value in line.items() if name not in ("time", "step")}
    client.log_batch(run_id, metrics=[Metric(name, value, moment, step) for name, value in values.items()])


def _client(uri: str) -> MlflowClient:
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    from mlflow import MlflowClient

    with one_at_a_time(uri):
        client = MlflowClient(tracking_uri=uri)
        client.get_experiment_by_name("Default")
    return client


def _refused_for_good(error: Exception) -> bool:
    """Whether sending the same again would fail the same way: the store is there and does not want it."""
    return getattr(error, "error_code", "") in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")


def _knows(client: MlflowClient, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def _experiment(client: MlflowClient, name: str, uri: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    return client.create_experiment(name, artifact_location=artifacts_beside(uri))
