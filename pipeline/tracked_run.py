"""What a tracking run is told about a run of the job."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import yaml

from pipeline.config import RunConfig
from pipeline.locations import redact
from pipeline.provenance import code_version
from pipeline.records import ShardRef
from pipeline.run_about import RunAbout
from pipeline.run_folder import RunFolder, redacted

DIGEST_LENGTH = 36
LONGEST_SOURCE = 2000


def about_run(config: RunConfig, folder: RunFolder, refs: Sequence[ShardRef]) -> RunAbout:
    """Parameters, configuration, input manifest and tags, without credentials."""
    settings = redacted(folder.config)
    tags = {"mlflow.source.name": "jobs/caption_corpus.py", "mlflow.source.type": "JOB"}
    if config.parent_run:
        tags["mlflow.parentRunId"] = config.parent_run
    sizes = [ref.size for ref in refs if ref.size is not None]
    return RunAbout(
        experiment=config.experiment,
        name=config.run_name or PurePosixPath(redact(config.output)).name or "annotate",
        parameters={**_flat(settings), "fingerprint": folder.fingerprint, "code_version": code_version()},
        config_yaml=yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
        dataset_name=PurePosixPath(redact(config.input[0])).name or "corpus",
        dataset_digest=manifest_digest(refs),
        dataset_profile=json.dumps({"shards": len(refs), "bytes": sum(sizes)}),
        dataset_source=json.dumps({"uri": [redact(location) for location in config.input]})[:LONGEST_SOURCE],
        tags=tags,
    )


def manifest_digest(refs: Sequence[ShardRef]) -> str:
    """A digest of the list of shards: their names, sizes and states, in order."""
    digest = hashlib.sha256()
    for ref in refs:
        digest.update(json.dumps([ref.name, ref.size, ref.fingerprint, ref.missing, ref.take]).encode() + b"\n")
    return digest.hexdigest()[:DIGEST_LENGTH]


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in settings.items()}
