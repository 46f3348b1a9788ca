"""Replicas as Ray actors, and what the dispatcher asks of the cluster; only `ray_connection` imports ray too."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import ActorUnschedulableError, NodeDiedError, RayActorError, RayError, RayTaskError

from pipeline.cluster import Call, Cluster, Pulse, ReplicaLost, RunStopped, ShardFailed, WorkerSpec
from pipeline.config import RunConfig
from pipeline.device_errors import breaks_device
from pipeline.placement import Machine, Share, share_of
from pipeline.ray_connection import LONGEST_REASON, connected, first_line
from pipeline.records import ShardRef, ShardReport, SliceReport


class _ReplicaActor:
    """A replica's process. `start` is a method, so that its exception reaches the driver as it was raised."""

    def __init__(self, spec: WorkerSpec, threads: int) -> None:
        self._spec = spec
        self._threads = threads
        self._worker: Any = None

    def start(self) -> dict[str, Any]:
        module, _, name = self._spec.factory.partition(":")
        self._worker = getattr(importlib.import_module(module), name)(**self._spec.arguments)
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(self._threads)
        context = ray.get_runtime_context()
        where = {"pid": os.getpid(), "node": ray.util.get_node_ip_address(), "node_id": context.get_node_id()}
        return {**self._worker.describe(), **where}

    def work(self, ref: ShardRef) -> ShardReport | SliceReport:
        try:
            return self._worker.work(ref)
        except Exception as error:
            if breaks_device(error):
                print(f"leaving after {error}", file=sys.stderr, flush=True)
                os._exit(1)
            raise

    def expect(self, ref: ShardRef) -> None:
        if expect := getattr(self._worker, "expect", None):
            expect(ref)

    def pulse(self) -> Pulse:
        pulse = getattr(self._worker, "pulse", None)
        return Pulse(-1 if pulse is None else int(pulse()), getattr(self._worker, "batches", 0))


class RayReplica:
    """A handle on one replica's actor."""

    def __init__(self, spec: WorkerSpec, share: Share) -> None:
        remote: Any = ray.remote  # its overloads know no concurrency groups
        actor = remote(
            num_cpus=share.cpus,
            num_gpus=share.gpus,
            max_restarts=0,
            max_task_retries=0,
            # A lane of its own answers while a shard is worked on.
            concurrency_groups={"pulse": 1},
        )(_ReplicaActor)
        self._actor: Any = actor.remote(spec, share.threads)

    def start(self) -> Call:
        return self._actor.start.remote()

    def work(self, ref: ShardRef) -> Call:
        return self._actor.work.remote(ref)

    def expect(self, ref: ShardRef) -> None:
        self._actor.expect.options(concurrency_group="pulse").remote(ref)

    def pulse(self) -> Call:
        return self._actor.pulse.options(concurrency_group="pulse").remote()

    def kill(self) -> None:
        ray.kill(self._actor, no_restart=True)


class RayCluster:
    """The Ray cluster that the driver is connected to."""

    def __init__(self, spec: WorkerSpec, share: Share) -> None:
        self._spec = spec
        self._share = share

    def launch(self) -> RayReplica:
        return RayReplica(self._spec, self._share)

    def capacity(self) -> int:
        home = ray.get_runtime_context().get_node_id()
        if home in (node["NodeID"] for node in ray.nodes() if not node["Alive"]):
            # Ray gives up all actors of a driver whose own raylet has died, and lets it make no new ones.
            raise RunStopped("Ray has died on the driver's machine")
        return self._share.fitting(machines())

    def wait(self, calls: Sequence[Call], timeout: float) -> list[Call]:
        ready, rest = ray.wait(list(calls), num_returns=1, timeout=timeout)
        if ready and rest:
            more, _ = ray.wait(rest, num_returns=len(rest), timeout=0)
            ready += more
        return ready

    def result(self, call: Call) -> Any:
        try:
            return ray.get(call)
        except RayTaskError as error:
            raise ShardFailed(_reason(error)) from error
        except (RayActorError, NodeDiedError, ActorUnschedulableError) as error:
            raise ReplicaLost(first_line(error), blameless=_machine_vanished(error)) from error
        except RayError as error:
            raise ReplicaLost(first_line(error)) from error


def _reason(error: RayTaskError) -> str:
    """The exception as the worker raised it, in one line."""
    cause = error.cause
    if not isinstance(cause, BaseException):
        return first_line(error)
    text = " ".join(str(cause).split())[:LONGEST_REASON]
    return text if isinstance(cause, ValueError) and text else f"{type(cause).__name__}: {text}"


def _machine_vanished(error: RayError) -> bool:
    return isinstance(error, NodeDiedError) or bool(getattr(error, "preempted", False)) or "node has died" in str(error)


def machines() -> list[Machine]:
    """The machines of the cluster that are alive."""
    offers = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Machine(offer.get("CPU", 0.0), offer.get("GPU", 0.0)) for offer in offers]


@contextmanager
def ray_cluster(config: RunConfig, spec: WorkerSpec) -> Iterator[Cluster]:
    """Connect to Ray and decide what share of a machine a replica gets.

    Raises:
        UserError: no Ray to connect to, or no machine in it has what one replica needs.
    """
    with connected():
        share = share_of(machines(), config.device, config.replicas, config.cpus_per_replica, config.gpus_per_replica)
        yield RayCluster(spec, share)
