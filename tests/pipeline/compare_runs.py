"""Comparisons with a tiny real model on threads instead of Ray; also a program to be killed.

`python -m tests.pipeline.compare_runs [options of compare_reductions]`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.cluster import WorkerSpec
from pipeline.command import carry_out
from pipeline.command_line import parse_options
from pipeline.compare_config import CompareConfig
from pipeline.compare_job import CompareResult, compare
from pipeline.config import RunConfig
from pipeline.places import located
from pipeline.shutdown import Shutdown
from tests.pipeline.echo_job import ThreadCluster
from tests.pipeline.shard_bytes import encoded, noise, tar_bytes

SETTINGS = "ficoco-v:4,random:4,fastv:4"


class OneThread(ThreadCluster):
    """One replica: two at once would only make a small machine busy."""

    def capacity(self) -> int:
        return 1


@contextmanager
def thread_cluster(config: RunConfig, spec: WorkerSpec) -> Iterator[ThreadCluster]:
    yield OneThread(spec)


def write_corpus(folder: Path, shards: int = 2, samples: int = 4) -> Path:
    """Shards of noise with two questions a picture, and in each one sample that is no picture."""
    folder.mkdir(exist_ok=True)
    for shard in range(shards):
        members: list[tuple[str, bytes | dict[str, Any]]] = []
        for index in range(samples):
            asked = [{"question": f"What is {n}?", "answers": ["x"], "kind": f"kind {n}"} for n in range(2)]
            picture = encoded(noise(60, 60, seed=10 * shard + index), "JPEG") if index else b"no picture"
            members += [(f"{index:05d}.jpg", picture), (f"{index:05d}.json", {"questions": asked})]
        (folder / f"{shard:05d}.tar").write_bytes(tar_bytes(members))
    return folder


def words(folder: Path, model: Path, *more: str) -> list[str]:
    given = ["--input", f"{folder}/corpus", "--output", f"{folder}/out", "--model", str(model)]
    given += ["--tracking-uri", f"sqlite:///{folder}/mlflow.db", "--max-new-tokens", "3", "--metric", "exact"]
    given += ["--repeats", "2", "--batch-size", "4"]
    return [*given, *(() if "--settings" in more or "--settings-file" in more else ("--settings", SETTINGS)), *more]


def run_compare(arguments: list[str], shutdown: Shutdown | None = None) -> CompareResult:
    config = located(parse_options(arguments, CompareConfig, "compare_reductions", ""), inside_job=False)
    return compare(config, thread_cluster, shutdown)


if __name__ == "__main__":
    sys.exit(carry_out("compare_runs", lambda shutdown: run_compare(sys.argv[1:], shutdown)))
