"""An output folder as a run: begun, continued, refused or overwritten; `run.json` and `_SUCCESS`."""

from __future__ import annotations

import json
import platform
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pipeline.errors import UserError
from pipeline.fingerprint import difference, row_settings, run_fingerprint
from pipeline.locations import redact
from pipeline.part_names import is_own
from pipeline.provenance import code_version, provenance
from pipeline.storage import Output, StorageError
from pipeline.totals import Totals

RUN_PATH, SUCCESS_PATH, METRICS_PATH = "run.json", "_SUCCESS", "metrics.jsonl"
COMPARISON_PATH = "comparison.json"
"""Stands in the place of run.json where the output is a comparison's."""
PROGRAM = "ficoco-annotate"
PACKAGES = ("torch", "transformers", "ray", "mlflow", "pyarrow", "webdataset", "pillow", "tokenizers", "numpy")
SECRET_WORDS = ("password", "secret", "token_value", "credential", "access_key", "api_key")
"""A setting whose name holds one of these is never stored."""


@dataclass
class RunFolder:
    """An output that this run may write to."""

    output: Output
    fingerprint: str
    config: Mapping[str, Any]
    resumed: bool
    """Whether an earlier run of the same settings has been here."""
    record: dict[str, Any] = field(default_factory=dict)
    """The content of run.json."""
    _saving: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)
    """MLflow's thread writes run.json too."""

    @property
    def mlflow_run_id(self) -> str | None:
        """The tracking run that an earlier start of this run used."""
        return self.record.get("mlflow_run_id")

    @property
    def provenance(self) -> dict[str, str]:
        """Metadata for every Parquet part."""
        return provenance(self.fingerprint, self.config)

    def set_mlflow_run(self, run_id: str) -> None:
        """Remember the tracking run, so that a continued run goes on in it."""
        self.record["mlflow_run_id"] = run_id
        self._save()

    def remember_replica(self, description: Mapping[str, Any]) -> list[str]:
        """Note on what a replica runs; returns the types that replicas of this run have computed in."""
        about = {name: description[name] for name in ("device", "dtype") if name in description}
        kinds: list[dict[str, Any]] = self.record.setdefault("replicas", [])
        if about and about not in kinds:
            kinds.append(about)
            self._save()
        return sorted({kind["dtype"] for kind in kinds if "dtype" in kind})

    def succeed(self, totals: Totals) -> None:
        """Write `_SUCCESS` with the totals: all shards are in."""
        content = {"fingerprint": self.fingerprint, **totals.as_dict()}
        self.output.put_atomic(SUCCESS_PATH, _encode(content))

    def reopen(self) -> None:
        """Take `_SUCCESS` away: there is work to do again."""
        self.output.delete(SUCCESS_PATH)

    def _save(self) -> None:
        with self._saving:
            self.output.put_atomic(RUN_PATH, _encode(self.record))


def prepare(output: Output, config: Mapping[str, Any], overwrite: bool = False) -> RunFolder:
    """Begin a run in `output`, or continue the one that is there. Call it holding the `DriverLock`.

    Args:
        config: every setting of the run as JSON values; `fingerprint.ROW_SETTINGS` names those that count.
        overwrite: remove what an earlier run wrote, and nothing else.

    Raises:
        UserError: the output holds a run with other settings (each named), a comparison, or files that no run
            accounts for.
        StorageError: the output cannot be written.
    """
    output.check_writable()
    earlier = read_run(output)
    if earlier is None or overwrite:
        refuse_comparison(output)
    if earlier is None:
        _refuse_foreign(output)
    elif overwrite:
        remove_run(output)
        earlier = None
    else:
        _refuse_other_run(output, earlier, config)
    folder = RunFolder(output, run_fingerprint(config), dict(config), resumed=earlier is not None)
    folder.record = _record(folder, earlier)
    folder._save()
    return folder


def read_run(output: Output, path: str = RUN_PATH) -> dict[str, Any] | None:
    """The content of run.json, or of another record of this program; None where there is none.

    Raises:
        UserError: there is such a file that this program did not write.
    """
    try:
        record = json.loads(output.read(path))
    except FileNotFoundError:
        return None
    except ValueError as error:
        if isinstance(error, StorageError):
            raise
        record = None
    if not isinstance(record, dict) or record.get("program") != PROGRAM:
        raise UserError(f"{output.url}/{path} was not written by {PROGRAM}; choose another --output")
    return record


def read_success(output: Output) -> dict[str, Any] | None:
    """The content of `_SUCCESS`; None where the run has not ended or the file is not JSON."""
    try:
        content = json.loads(output.read(SUCCESS_PATH))
    except FileNotFoundError:
        return None
    except ValueError as error:
        if isinstance(error, StorageError):
            raise
        return None
    return content if isinstance(content, dict) else None


def remove_run(output: Output) -> list[str]:
    """Remove the files that this program writes, by their names; run.json goes last, the lock and all others stay.

    Returns:
        The paths removed.
    """
    own = [file.path for file in output.list() if is_own(file.path) and file.path != "driver.lock"]
    ordered = sorted(own, key=lambda path: (path == RUN_PATH, path != SUCCESS_PATH, path))
    for path in ordered:
        output.delete(path)
    return ordered


def refuse_comparison(output: Output) -> None:
    """A run beside a comparison would keep it from being continued, so not even overwriting begins one there.

    Raises:
        UserError: the output holds a comparison.
    """
    if read_run(output, COMPARISON_PATH) is not None:
        raise UserError(f"{output.url} holds a comparison of settings; choose another --output")


def redacted(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` without credentials: URLs lose theirs, settings named like a secret lose their value."""
    return {str(name): _hidden(str(name), value) for name, value in config.items()}


def _hidden(name: str, value: Any) -> Any:
    if any(word in name.lower() for word in SECRET_WORDS):
        return "***"
    if isinstance(value, str):
        return redact(value) if "://" in value else value
    if isinstance(value, Mapping):
        return redacted(value)
    if isinstance(value, list | tuple):
        return [_hidden(name, item) for item in value]
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _refuse_foreign(output: Output) -> None:
    """Parts that no run.json explains would be read together with this run's."""
    strangers = [file.path for folder in ("data", "quarantine", "ledger") for file in output.list(folder)]
    if strangers:
        raise UserError(
            f"{output.url} holds {strangers[0]} but no {RUN_PATH}, so it is not known what it belongs to; "
            "choose another --output or move these files away"
        )


def _refuse_other_run(output: Output, earlier: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    if earlier.get("fingerprint") == run_fingerprint(config):
        return
    clauses = difference(redacted(earlier.get("rows_depend_on") or {}), redacted(row_settings(config)))
    raise UserError(
        f"{output.url} holds a run with other settings: {'; '.join(clauses) or 'their fingerprints differ'}. "
        "Choose another --output, or give --overwrite to remove the earlier run"
    )


def _record(folder: RunFolder, earlier: Mapping[str, Any] | None) -> dict[str, Any]:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    before = earlier or {}
    return {
        "program": PROGRAM,
        "fingerprint": folder.fingerprint,
        "config": redacted(folder.config),
        "rows_depend_on": redacted(row_settings(folder.config)),
        "versions": _versions(),
        "mlflow_run_id": before.get("mlflow_run_id"),
        "replicas": before.get("replicas", []),
        "created": before.get("created", now),
        "starts": [*before.get("starts", []), {"time": now, "code_version": code_version()}],
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "code": code_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _encode(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
