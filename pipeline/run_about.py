"""What a tracking run is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class RunAbout:
    """What a tracking run is told at its beginning; nothing in it may be a secret."""

    experiment: str
    name: str
    parameters: Mapping[str, Any]
    config_yaml: str
    dataset_name: str
    dataset_digest: str
    dataset_profile: str
    dataset_source: str
    tags: Mapping[str, str] = field(default_factory=dict)
