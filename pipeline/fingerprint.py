"""What makes two runs give different rows: the settings that count, their hash, and the difference in words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pipeline.records import ANSWER_SCHEMA, QUARANTINE_SCHEMA

ROW_SETTINGS = (
    "model_digest",
    "text_tower_digest",
    "reduction",
    "prompt",
    "system_prompt",
    "max_new_tokens",
    "temperature",
    "top_p",
    "seed",
    "image_aspect",
    "draft_jpegs",
    "dtype",
    "metric",
    "limit",
)
"""Settings whose change changes rows. `metric` fills the column `correct`; `limit` decides which rows a shard has.

Left out on purpose: the input (a corpus may grow), batch size, replicas, device, logging and timeouts. They change how
rows are made, not which; on another device or batch size the last bits of a float may differ, and with them, rarely, a
greedy token. The limits on reading decide what is quarantined; no answer depends on them. `seed` counts only when the
run samples. The code's version is recorded in every part, but a corrected program may continue a run.
"""

LATER_SETTINGS = ("text_tower_digest", "draft_jpegs")

_NAMES = {"model_digest": "model", "text_tower_digest": "text tower"}


def run_fingerprint(config: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that change exactly when a setting in `ROW_SETTINGS` or an output schema does.

    Args:
        config: setting -> JSON value; absent ones count as None, others than `ROW_SETTINGS` are ignored.
    """
    canonical = json.dumps(row_settings(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def row_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `config` that changes rows, and the schemas' digest, as values that JSON gives back unchanged."""
    settings = {name: _plain(config.get(name)) for name in ROW_SETTINGS}
    if not settings["temperature"]:
        settings.update(temperature=None, top_p=None, seed=None)
    for name in LATER_SETTINGS:
        # Left out where they are not used, so that runs from before they came keep their fingerprint.
        if not settings[name]:
            del settings[name]
    return {**settings, "schema": _schema_digest()}


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One clause for each setting in which two results of `row_settings` differ.

    Example: ``reduction was 'ficoco-v:64', is now 'dense'``.
    """
    clauses = []
    for name in (*ROW_SETTINGS, "schema"):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if name == "schema":
            clauses.append("the output's columns are those of another version of this program")
        else:
            clauses.append(f"{_NAMES.get(name, name)} was {_shown(before)}, is now {_shown(after)}")
    return clauses


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    return str(value)


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}...{text[-17:]}"


def _schema_digest() -> str:
    described = f"{ANSWER_SCHEMA.to_string()}\n{QUARANTINE_SCHEMA.to_string()}"
    return hashlib.sha256(described.encode()).hexdigest()[:8]
