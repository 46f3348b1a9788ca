"""The driver's connection to Ray."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private.utils import read_ray_address
from ray.exceptions import RayError

from pipeline.errors import UserError
from pipeline.places import inside_ray_job

ROOT = Path(__file__).resolve().parent.parent
OBJECT_STORE_BYTES = 100 * 2**20
"""For a Ray that is started here: shards are read by the replicas, so the object store carries reports only."""
QUIET: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
NICENESS = "RAY_worker_niceness"
"""Ray runs its workers at niceness 15; here the replicas are the work, not something beside it."""
CONNECT_SECONDS = 5.0
LONGEST_REASON = 500


def first_line(error: Exception) -> str:
    """Ray explains a loss over many lines; the one that says why is worth showing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("\t")]
    told = next((line for line in lines if "because" in line.lower() or "killed" in line.lower()), "")
    return (told or (lines[0] if lines else type(error).__name__))[:LONGEST_REASON]


@contextmanager
def connected() -> Iterator[None]:
    """Connect to the cluster in `RAY_ADDRESS`, else to the last `ray start` on this machine, else start one here.

    Raises:
        UserError: the cluster named in `RAY_ADDRESS` cannot be reached.
    """
    # Ray 2.5x warns about a change to come in how actors without a GPU see the GPUs; they never look.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Of its own, as a signal's exception in the midst of `ray.init` leaves a driver that hangs or crashes, and as Ray
    # replaces handlers in the main thread. It stays: the kernel ends Ray's processes with the thread that started them.
    with ThreadPoolExecutor(1, "ray") as thread:
        try:
            thread.submit(_connect).result()
        except (ConnectionError, RuntimeError, RayError) as error:
            where = os.environ.get("RAY_ADDRESS", "on this machine")
            raise UserError(
                f"cannot connect to the Ray cluster {where}: {first_line(error)}. "
                "Check RAY_ADDRESS, that it runs, and that RAY_AUTH_MODE and the token are those it was started with"
            ) from error
        _heed_signals()
        try:
            yield
        finally:
            thread.submit(ray.shutdown).result()


def _heed_signals() -> None:
    """Put this program's handlers back in place of those that Ray's core installs below Python.

    On SIGTERM they print a stack trace and set an alarm that aborts the process three seconds later.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.getsignal(number))
    signal.alarm(0)


def _connect() -> None:
    named = os.environ.get("RAY_ADDRESS")
    if named:
        if not _reachable(named):
            raise ConnectionError("nothing answers there")
        _join(named)
        return
    # Ray remembers the last `ray start` also after that cluster has crashed, and would try it for minutes.
    last = read_ray_address()
    if last and _reachable(last):
        _join(last)
    else:
        _start()


def _reachable(address: str) -> bool:
    """Whether something listens at `host:port`; other kinds of address are left to Ray."""
    host, colon, port = address.rpartition(":")
    if "/" in address or not colon or not port.isdecimal():
        return True
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _join(address: str) -> None:
    # A submitted job's working directory has brought this program to the workers; elsewhere it is sent along.
    modules = {} if inside_ray_job() else {"py_modules": [str(ROOT / name) for name in ("pipeline", "reduction")]}
    ray.init(address=address, runtime_env=modules, **QUIET)


def _start() -> None:
    # The workers are children of this process: they find the program where it lies.
    os.environ.setdefault(NICENESS, "0")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **QUIET)
