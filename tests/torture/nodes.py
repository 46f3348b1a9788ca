"""A Ray cluster of several raylets on one machine, in a process of its own: Ray reads its settings when it is loaded.

Reads lines from stdin: `join` adds a node with room for one replica and prints its raylet's process; `leave PROCESS`
kills the node of that raylet. At the end of stdin all is shut down.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STORE_BYTES = 80 * 2**20
ROOT = Path(__file__).parents[2]


class Nodes:
    """The other end of the pipe."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.torture.nodes"],
            cwd=ROOT,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.environment = {**environment, "RAY_ADDRESS": self._told()}

    def join(self) -> int:
        return int(self._ask("join"))

    def leave(self, raylet: int) -> None:
        self._ask(f"leave {raylet}")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(120)

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)
        return self._told()

    def _told(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("> "):
                return line[2:].strip()
        raise AssertionError("the cluster's process has ended")


@contextmanager
def cluster(home: Path) -> Iterator[Nodes]:
    """A head without room for replicas. `home` is Ray's folder."""
    token = home / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    settings = {"RAY_TMPDIR": str(home), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    made = Nodes({**os.environ, **settings, "RAY_worker_niceness": "0", "PYTHONPATH": str(ROOT)})
    try:
        yield made
    finally:
        made.close()


def _serve() -> None:
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": STORE_BYTES})
    nodes: dict[str, Any] = {}
    print(f"> {made.address}", flush=True)
    for line in sys.stdin:
        match line.split():
            case ["join"]:
                node = made.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
                raylet = str(node.all_processes["raylet"][0].process.pid)
                nodes[raylet] = node
                print(f"> {raylet}", flush=True)
            case ["leave", raylet]:
                made.remove_node(nodes.pop(raylet), allow_graceful=False)
                print("> gone", flush=True)
    made.shutdown()


if __name__ == "__main__":
    _serve()
