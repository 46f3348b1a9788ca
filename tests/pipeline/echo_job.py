"""The whole job with a model that repeats the question, on threads instead of Ray; also a program to be killed.

`python -m tests.pipeline.echo_job SECONDS [options of caption_corpus]`: SECONDS are slept in every shard.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.cluster import Pulse, ShardFailed, WorkerSpec
from pipeline.command import carry_out
from pipeline.command_line import parse_command
from pipeline.config import RunConfig
from pipeline.job import JobParts, JobResult, run
from pipeline.limits import ReadLimits
from pipeline.places import located
from pipeline.records import Answer, Rejection, Sample, ShardRef, ShardReport, SliceReport
from pipeline.retrying import Select, assemble_retry, retry_shard, stage_retry
from pipeline.run_folder import RunFolder
from pipeline.scoring import score
from pipeline.shards import ShardEnd, read_shard
from pipeline.shutdown import Shutdown
from pipeline.staging import assemble, finish_shard
from pipeline.storage import open_output
from pipeline.tasks import Assembly, Retry
from tests.pipeline.shard_bytes import numbered, tar_bytes

ROOT = Path(__file__).parents[2]


class EchoWorker:
    """Answers every question with itself; commits as the real worker does.

    Args:
        nap: seconds slept in every shard.
        fail: the name of a shard that never works.
    """

    def __init__(
        self,
        output: str,
        provenance: Mapping[str, str],
        prompt: str | None,
        metric: str,
        limits: ReadLimits,
        nap: float,
        fail: str,
    ) -> None:
        self.limits = limits
        self.output, self.provenance, self.prompt, self.metric = output, provenance, prompt, metric
        self.nap, self.fail = nap, fail

    def describe(self) -> dict[str, Any]:
        return {"pid": 0}

    def work(self, ref: ShardRef) -> ShardReport | SliceReport:
        time.sleep(self.nap)
        if isinstance(ref.task, Assembly):
            if ref.again is not None:
                return assemble_retry(open_output(self.output), ref, ref.again, ref.task, self.provenance)
            return assemble(open_output(self.output), ref, ref.task, self.provenance)
        if ref.again is not None:
            asked = partial(self._annotate, ref)
            return stage_retry(open_output(self.output), ref, ref.again, self.provenance, asked)
        if ref.name == self.fail:
            raise OSError("the storage is away")
        if isinstance(ref.task, Retry):
            return retry_shard(
                open_output(self.output), ref, ref.task, self.provenance, lambda select: self._annotate(ref, select)[:3]
            )
        report, answers, rejections, numbered = self._annotate(ref)
        return finish_shard(
            open_output(self.output), ref, report, answers, rejections, self.provenance, numbered=numbered
        )

    def _annotate(
        self, ref: ShardRef, select: Select = lambda items: items
    ) -> tuple[ShardReport, list[Answer], list[Rejection], int]:
        report = ShardReport(ref.name, ref.url, ref.fingerprint)
        answers: list[Answer] = []
        rejections: list[Rejection] = []
        numbered = 0
        for item in select(read_shard(ref, self.prompt, self.limits)):
            if isinstance(item, ShardEnd):
                report.samples, report.incomplete, numbered = item.samples, item.incomplete_reason, item.numbered
                break
            if isinstance(item, Rejection):
                rejections.append(item)
            else:
                answers += self._answers(item)
        report.flops["prefill"] = 1e9 * len(answers)
        return report, answers, rejections, numbered

    def _answers(self, sample: Sample) -> Iterator[Answer]:
        for one in sample.questions:
            yield Answer(
                shard=sample.shard,
                key=sample.key,
                question_index=one.index,
                question_id=one.id,
                question=one.text,
                answer=one.text,
                references=one.references,
                correct=score(self.metric, one.text, one.references, one.text),
                kind=one.kind,
                finish_reason="stop",
                prompt_tokens=1,
                visual_tokens=4,
                generated_tokens=2,
                mean_logprob=-1.0,
                flops=1e9,
                meta=sample.meta,
            )


class ThreadReplica:
    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self.threads = ThreadPoolExecutor(1)
        self.worker: Any = None

    def start(self) -> Future[Any]:
        def make() -> dict[str, Any]:
            module, _, name = self.spec.factory.partition(":")
            self.worker = getattr(importlib.import_module(module), name)(**self.spec.arguments)
            return self.worker.describe()

        return self.threads.submit(make)

    def work(self, ref: ShardRef) -> Future[Any]:
        return self.threads.submit(lambda: self.worker.work(ref))

    def expect(self, ref: ShardRef) -> None:
        if expect := getattr(self.worker, "expect", None):
            expect(ref)

    def pulse(self) -> Future[Any]:
        done: Future[Any] = Future()
        pulse = getattr(self.worker, "pulse", lambda: -1)
        done.set_result(Pulse(pulse(), getattr(self.worker, "batches", 0)))
        return done

    def kill(self) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)


class ThreadCluster:
    """Replicas as threads of this process."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec

    def launch(self) -> ThreadReplica:
        return ThreadReplica(self.spec)

    def capacity(self) -> int:
        return 2

    def wait(self, calls: Sequence[Future[Any]], timeout: float) -> list[Future[Any]]:
        return list(wait(calls, timeout, FIRST_COMPLETED).done)

    def result(self, call: Future[Any]) -> Any:
        try:
            return call.result()
        except Exception as error:
            raise ShardFailed(str(error)) from error


def echo_parts(nap: float = 0.0, fail: str = "") -> JobParts:
    def worker_spec(config: RunConfig, folder: RunFolder) -> WorkerSpec:
        arguments = {
            "output": config.output,
            "provenance": folder.provenance,
            "prompt": config.prompt,
            "metric": config.metric,
            "limits": config.read_limits,
            "nap": nap,
            "fail": fail,
        }
        return WorkerSpec("tests.pipeline.echo_job:EchoWorker", arguments)

    @contextmanager
    def cluster(config: RunConfig, spec: WorkerSpec) -> Iterator[ThreadCluster]:
        yield ThreadCluster(spec)

    return JobParts(lambda config: f"digest of {config.model}", worker_spec, cluster)


def run_echo(folder: Path, *more: str, nap: float = 0.0, fail: str = "", corpus: str = "corpus") -> JobResult:
    """Run the job on `folder/corpus`, or another folder there, into `folder/out`, tracked in `folder/mlflow.db`."""
    words = ["--input", f"{folder}/{corpus}", "--output", f"{folder}/out", "--model", "echo"]
    words += ["--tracking-uri", f"sqlite:///{folder}/mlflow.db", *more]
    return run(located(parse_command(words), inside_job=False), echo_parts(nap, fail))


def small_corpus(folder: Path, shards: int = 3, samples: int = 4) -> None:
    """Write `folder/corpus`."""
    (folder / "corpus").mkdir()
    for number in range(shards):
        (folder / "corpus" / f"{number:05d}.tar").write_bytes(tar_bytes(numbered(samples)))


def rows(folder: Path, what: str = "data") -> list[dict[str, Any]]:
    """What stands in `folder/out`."""
    paths = sorted((folder / "out" / what).glob("*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def start_echo(folder: Path, nap: float, *more: str) -> subprocess.Popen[str]:
    """The same as `run_echo` in a process of its own, to be killed."""
    words = [sys.executable, "-m", "tests.pipeline.echo_job", str(nap), "--input", f"{folder}/corpus"]
    words += ["--output", f"{folder}/out", "--model", "echo", "--tracking-uri", f"sqlite:///{folder}/mlflow.db", *more]
    return subprocess.Popen(words, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def main(nap: str, *options: str) -> int:
    def work(shutdown: Shutdown) -> JobResult:
        return run(located(parse_command(options), inside_job=False), echo_parts(float(nap)), shutdown=shutdown)

    return carry_out("echo_job", work)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
