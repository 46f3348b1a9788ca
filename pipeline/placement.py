"""How many replicas fit on a cluster, and what share of a machine each one gets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import UserError

CORES_PER_REPLICA = 8
"""On the CPU: more cores than this in one replica leave some of them idle between layers."""
HOST_CORES_PER_GPU = 4
"""Beside a GPU, cores are for reading and decoding images."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What one node of the cluster offers in all, in use or not."""

    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True, slots=True)
class Share:
    """What one replica gets of a machine."""

    cpus: float
    gpus: float = 0.0

    @property
    def threads(self) -> int:
        return max(1, int(self.cpus))

    def fitting(self, machines: Sequence[Machine]) -> int:
        """Replicas that the machines hold together."""
        return sum(self._fitting_one(machine) for machine in machines)

    def _fitting_one(self, machine: Machine) -> int:
        limits = [
            math.floor(offered / needed + 1e-9)
            for offered, needed in ((machine.cpus, self.cpus), (machine.gpus, self.gpus))
            if needed
        ]
        return min(limits) if limits else 1


def share_of(
    machines: Sequence[Machine],
    device: str = "auto",
    replicas: int | None = None,
    cpus: float | None = None,
    gpus: float | None = None,
) -> Share:
    """The share of one replica; what is None is decided here: a GPU each where there are GPUs, else CPU cores.

    Args:
        replicas: how many there shall be; None for as many as fit well.

    Raises:
        UserError: no machine of the cluster has what one replica needs.
    """
    has_gpus = any(machine.gpus for machine in machines)
    if gpus is None:
        gpus = 1.0 if device == "cuda" or (device == "auto" and has_gpus) else 0.0
    if gpus and not has_gpus:
        raise UserError("a GPU is asked for and the cluster has none: choose --device cpu, or add a machine with one")
    usable = [machine for machine in machines if machine.gpus >= gpus]
    if cpus is None:
        cpus = _cores_beside_gpu(usable, gpus) if gpus else _cores(usable, replicas)
    share = Share(cpus, gpus)
    if not share.fitting(machines):
        best = max((machine.cpus for machine in machines), default=0)
        raise UserError(
            f"a replica needs {cpus:g} CPU cores and {gpus:g} GPUs, and no machine of the cluster has that "
            f"(the largest has {best:g} cores): lower --cpus-per-replica or --gpus-per-replica"
        )
    return share


def _cores_beside_gpu(machines: Sequence[Machine], gpus: float) -> float:
    scarcest = min((machine.cpus / max(1, machine.gpus // gpus) for machine in machines), default=1.0)
    return max(1.0, min(HOST_CORES_PER_GPU, math.floor(scarcest))) if scarcest >= 1 else scarcest


def _cores(machines: Sequence[Machine], replicas: int | None) -> float:
    sizes = [machine.cpus for machine in machines if machine.cpus]
    if not sizes:
        return 1.0
    if replicas is None:
        smallest = min(sizes)
        return max(1.0, smallest // max(1, round(smallest / CORES_PER_REPLICA)))
    fair = sum(sizes) / replicas
    return min(float(math.floor(fair)) if fair >= 1 else fair, max(sizes))
