"""Where an answer comes from: the key-value metadata of every Parquet part."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.locations import redact

FINGERPRINT_KEY = "ficoco.fingerprint"


def provenance(fingerprint: str, config: Mapping[str, Any]) -> dict[str, str]:
    """Run fingerprint, reduction, model and its digest, dtype and code version, for `write_part`'s metadata."""
    tower = config.get("text_tower_digest")
    return {
        FINGERPRINT_KEY: fingerprint,
        "ficoco.reduction": str(config.get("reduction", "")),
        "ficoco.model": redact(str(config.get("model", ""))),
        "ficoco.model_digest": str(config.get("model_digest", "")),
        **({"ficoco.text_tower_digest": str(tower)} if tower else {}),
        "ficoco.dtype": str(config.get("dtype", "")),
        "ficoco.code_version": code_version(),
    }


@cache
def code_version() -> str:
    """A digest of this program's source files: the same on every machine that runs the same code, with no need for
    git or an installed package."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for package in ("pipeline", "reduction"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return f"source-{digest.hexdigest()[:12]}"
