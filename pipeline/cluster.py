"""What the driver's loop needs of a cluster, whatever stands behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.records import ShardRef


class ShardFailed(Exception):
    """A replica could not finish a shard and lives on; the message is the reason."""


class ReplicaLost(Exception):
    """A replica's process is gone; the message is the reason."""

    def __init__(self, reason: str, blameless: bool = False) -> None:
        super().__init__(reason)
        self.blameless = blameless
        """Whether its machine vanished, so that the shard it worked on is not to blame."""


class RunStopped(Exception):
    """The run cannot go on; the message says why. What is committed stays."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """What a replica says of itself while it starts or works."""

    number: int
    """Changes as work gets on."""
    batches: int = 0
    """Answered since the replica started, where its worker counts them."""


Call = Any
"""A call to a replica that has not been answered yet; hashable."""


class ReplicaHandle(Protocol):
    """A replica on the cluster; its methods return at once."""

    def start(self) -> Call:
        """Load the model; answered with a description, a dict with at least `pid`."""
        ...

    def work(self, ref: ShardRef) -> Call:
        """Do a shard; answered with its ShardReport."""
        ...

    def expect(self, ref: ShardRef) -> None:
        """Say which shard it will probably be asked for next, so that it can begin to read it."""
        ...

    def pulse(self) -> Call:
        """Answered with a `Pulse`, also while it starts or works."""
        ...

    def kill(self) -> None: ...


class Cluster(Protocol):
    def launch(self) -> ReplicaHandle: ...

    def capacity(self) -> int:
        """Replicas that fit on the machines that are there now; raises RunStopped when the driver's own is gone."""
        ...

    def wait(self, calls: Sequence[Call], timeout: float) -> list[Call]:
        """The calls answered within `timeout` seconds; returns as soon as there is one."""
        ...

    def result(self, call: Call) -> Any:
        """A call's answer; raises ShardFailed or ReplicaLost."""
        ...


@dataclass(frozen=True)
class WorkerSpec:
    """How a replica's process makes its worker.

    The worker offers `work(ref) -> ShardReport` and `describe() -> dict`. It may offer, called from another thread,
    `pulse() -> int`, which changes as a shard gets on, and `expect(ref)`, told the shard that probably comes next. It
    may have `batches: int`, how many batches it has answered, for people to see that a long shard gets on.
    """

    factory: str
    """`module:callable`."""
    arguments: Mapping[str, Any]
    """Keyword arguments of the callable; must pickle."""
