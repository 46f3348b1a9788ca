"""Sends a run to MLflow. A store that fails costs the run nothing but a warning.

Everything is sent by one thread, in order, and tried again until it is through; what is not through when the run ends
is in the output's `metrics.jsonl`, from where the next start of the run sends it.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.locations import redact
from pipeline.run_about import RunAbout
from pipeline.tracking_store import (
    create_run,
    describe_run,
    experiment_id,
    knows,
    log_child,
    log_metrics,
    log_table,
    open_store,
    refused_for_good,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

MARKER = "shards_done"
"""A metric that every line has: its last step tells what a tracking run has already got."""
RETRY_SECONDS, LONGEST_RETRY_SECONDS = 1.0, 60.0
CLOSE_SECONDS = 20.0
"""How long the end of a run waits for the store."""
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
        self._is_new = False
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
            self._add(lambda client: log_table(client, self._id(), table, table_name))
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
                client = client or open_store(self._uri)
                self._steps[0](client)
            except Exception as error:  # whatever a store, its database or the network raise
                if not warned:
                    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
                    self._warn(f"MLflow at {redact(self._uri)} fails ({redact(first_line)[:200]}); the run goes on")
                warned = True
                if self.run_id is not None and refused_for_good(error):
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
        run_id = self._earlier_run if self._earlier_run and knows(client, self._earlier_run) else None
        if run_id is None:
            run_id = create_run(client, self._experiment(client), self._about)
            self._earlier_run, self._is_new = run_id, True  # a failure below is tried again on the same run
        seen = -1
        if self._is_new:
            describe_run(client, run_id, self._about)
        else:
            client.update_run(run_id, status="RUNNING")
            history = client.get_metric_history(run_id, MARKER)
            seen = max((metric.step for metric in history), default=-1)
        self.run_id = run_id
        self._on_run(run_id)
        for line in self._logged:
            if line["step"] > seen:
                self._log_line(client, line)

    def _log_child(
        self, client: MlflowClient, name: str, parameters: Mapping[str, Any], line: Mapping[str, Any]
    ) -> None:
        log_child(client, self._experiment(client), self._id(), name, parameters, line)

    def _experiment(self, client: MlflowClient) -> str:
        return experiment_id(client, self._about.experiment, self._uri)

    def _log_line(self, client: MlflowClient, line: Mapping[str, Any]) -> None:
        log_metrics(client, self._id(), line)
