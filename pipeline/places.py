"""What a relative path means. Inside a Ray job the current folder is a copy of what was submitted, which Ray deletes.

There, relative outputs and tracking stores are taken from the folder that `ray start` was run in, and inputs too when
they are there: on one machine, started and submitted from the same folder, a job finds and writes the same files as
without Ray.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.sqlite_store import SQLITE

RAY_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray in the entry point of a submitted job, together with the job's runtime environment."""
_PATTERN = re.compile(r"[*?\[{]")


def inside_ray_job() -> bool:
    """Whether this process is the entry point of `ray job submit`."""
    return RAY_JOB_VARIABLE in os.environ


def located(config: Config, inside_job: bool) -> Config:
    """The configuration with absolute local paths.

    Raises:
        UserError: a relative output inside a Ray job, where the folder of `ray start` cannot be found out.
    """
    here = Path.cwd()
    home = _folder_of_ray_start() if inside_job else here
    return replace(
        config,
        input=tuple(_existing(location, home, here) for location in config.input),
        output=_written(config.output, home, "--output"),
        model=_model(config.model, here, home),
        text_tower=_model(config.text_tower, here, home) if config.text_tower else None,
        tracking_uri=_tracking(config.tracking_uri, home),
    )


def _is_relative(location: str) -> bool:
    return "://" not in location and not Path(location).expanduser().is_absolute()


def _written(location: str, home: Path | None, option: str) -> str:
    if not _is_relative(location):
        return location
    if home is None:
        raise UserError(
            f"{option} {location} is relative, and inside a Ray job that is a copy of the working directory which Ray "
            "deletes: give an absolute path or a URL"
        )
    return str(home / location)


def _existing(location: str, home: Path | None, here: Path) -> str:
    """`home` comes first: a shard is known by its path, and that of the copy changes with every submission."""
    if not _is_relative(location):
        return location
    fixed = _PATTERN.split(location)[0]
    for folder in filter(None, (home, here)):
        whole = fixed == location or fixed.endswith("/")
        if (folder / fixed if whole else (folder / fixed).parent).exists():
            return str(folder / location)
    return str((home or here) / location)


def _model(name: str, here: Path, home: Path | None) -> str:
    """Unlike an input, the copy comes first: every node of a cluster has it."""
    if _is_relative(name):
        for folder in filter(None, (here, home)):
            if (folder / name).is_dir():
                return str(folder / name)
    return name


def _tracking(uri: str, home: Path | None) -> str:
    if not uri.startswith(SQLITE) or uri.startswith(SQLITE + "/"):
        return uri
    return SQLITE + _written(uri.removeprefix(SQLITE), home, "--tracking-uri")


def _folder_of_ray_start() -> Path | None:
    """The current folder of the raylet above this process, which it has from the `ray start` that began it."""
    process = Path("/proc/self")
    try:
        for _ in range(20):
            status = dict(
                line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line
            )
            if status["Name"] == "raylet":
                return (process / "cwd").readlink()
            process = Path("/proc") / status["PPid"].strip()
    except (OSError, KeyError):
        return None
    return None
