"""What is asked of an MLflow store; the only file that imports mlflow."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.run_about import RunAbout
from pipeline.sqlite_store import artifacts_beside, one_at_a_time

if TYPE_CHECKING:
    from mlflow import MlflowClient

LONGEST_PARAMETER = 500
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


def create_run(client: MlflowClient, experiment: str, about: RunAbout) -> str:
    """Its id; nothing but its name and tags is there yet."""
    run = client.create_run(experiment, tags=dict(about.tags), run_name=about.name)
    run_id: str = run.info.run_id
    return run_id


def describe_run(client: MlflowClient, run_id: str, about: RunAbout) -> None:
    """Send the settings and what the run works on; sending the same again changes nothing."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    log_parameters(client, run_id, about.parameters)
    dataset = Dataset(
        about.dataset_name, about.dataset_digest, "webdataset", about.dataset_source, profile=about.dataset_profile
    )
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "inference")])])
    client.log_text(run_id, about.config_yaml, "config.yaml")


def log_parameters(client: MlflowClient, run_id: str, parameters: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    params = [Param(name, str(value)[:LONGEST_PARAMETER]) for name, value in parameters.items()]
    client.log_batch(run_id, params=params)


def log_child(
    client: MlflowClient,
    experiment: str,
    parent: str,
    name: str,
    parameters: Mapping[str, Any],
    line: Mapping[str, Any],
) -> None:
    """A finished run below `parent`; the one of that name is brought up to date if there is one."""
    mine = f"tags.`{PARENT_TAG}` = '{parent}'"
    runs = [run for run in client.search_runs([experiment], mine, max_results=1000) if run.info.run_name == name]
    if runs:
        child = runs[0].info.run_id
    else:
        child = client.create_run(experiment, tags={PARENT_TAG: parent}, run_name=name).info.run_id
        log_parameters(client, child, parameters)
    log_metrics(client, child, line)
    client.set_terminated(child, "FINISHED")


def log_table(client: MlflowClient, run_id: str, table: Mapping[str, list[Any]], name: str) -> None:
    """What `client.log_table` writes, in place of an earlier start's table: that function appends to it."""
    rows = [list(row) for row in zip(*table.values(), strict=True)]
    client.log_dict(run_id, {"columns": list(table), "data": rows}, name)
    client.set_tag(run_id, TABLES_TAG, json.dumps([{"path": name, "type": "table"}]))


def log_metrics(client: MlflowClient, run_id: str, line: Mapping[str, Any]) -> None:
    from mlflow.entities import Metric

    moment, step = int(1000 * line["time"]), line["step"]
    values = {_ALLOWED.sub("_", name): value for name, value in line.items() if name not in ("time", "step")}
    client.log_batch(run_id, metrics=[Metric(name, value, moment, step) for name, value in values.items()])


def open_store(uri: str) -> MlflowClient:
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    from mlflow import MlflowClient

    with one_at_a_time(uri):
        client = MlflowClient(tracking_uri=uri)
        client.get_experiment_by_name("Default")
    return client


def refused_for_good(error: Exception) -> bool:
    """Whether sending the same again would fail the same way: the store is there and does not want it."""
    return getattr(error, "error_code", "") in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")


def knows(client: MlflowClient, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def experiment_id(client: MlflowClient, name: str, uri: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    return client.create_experiment(name, artifact_location=artifacts_beside(uri))
