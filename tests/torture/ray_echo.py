"""The whole job on a real Ray with a model that repeats the question, as a program to be killed.

`python -m tests.torture.ray_echo LOG SECONDS [options of caption_corpus]`: a shard taken up is a line in the file LOG
(shard, process, its raylet's process), and SECONDS are slept in it. `TORTURE_BROKEN` in the environment is why no
replica can start; SIGKILL kills it then.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.cluster import WorkerSpec
from pipeline.command import carry_out
from pipeline.command_line import parse_command
from pipeline.config import RunConfig
from pipeline.fleet import ray_cluster
from pipeline.job import JobParts, JobResult, run
from pipeline.places import inside_ray_job, located
from pipeline.records import ShardRef, ShardReport, SliceReport
from pipeline.run_folder import RunFolder
from pipeline.shutdown import Shutdown
from tests.pipeline.echo_job import EchoWorker, echo_parts


class LoggedEcho(EchoWorker):
    """Writes down which process took up which shard."""

    def __init__(self, log: str, **arguments: Any) -> None:
        if broken := os.environ.get("TORTURE_BROKEN"):
            if broken == "SIGKILL":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError(broken)
        super().__init__(**arguments)
        self.log = Path(log)

    def work(self, ref: ShardRef) -> ShardReport | SliceReport:
        with self.log.open("a") as log:
            log.write(f"{ref.name} {os.getpid()} {os.getppid()}\n")
        return super().work(ref)


def ray_parts(log: str, nap: float) -> JobParts:
    parts = echo_parts(nap)

    def worker_spec(config: RunConfig, folder: RunFolder) -> WorkerSpec:
        spec = parts.worker_spec(config, folder)
        return WorkerSpec("tests.torture.ray_echo:LoggedEcho", {**spec.arguments, "log": log})

    return replace(parts, worker_spec=worker_spec, cluster=ray_cluster)


def main(log: str, nap: str, *options: str) -> int:
    def work(shutdown: Shutdown) -> JobResult:
        config = located(parse_command(options), inside_ray_job())
        return run(config, ray_parts(log, float(nap)), shutdown=shutdown)

    return carry_out("caption_corpus", work)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
