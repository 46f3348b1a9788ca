"""An output on a storage that fsspec opens. One PUT makes a file, so it is there whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import fsspec

from pipeline.faults import fault_point
from pipeline.file_stores import StoredFile
from pipeline.outage import Outage, StorageAway

READ_AHEAD, CONNECTIONS = 512, 32
"""Files that `read_many` fetches before it hands them on, and how many of them at a time."""
SLOWEST_WRITE = 2**20
"""Bytes per second: a write may take so much longer than other requests."""
S3_OPTIONS: dict[str, Any] = {
    "max_concurrency": 1,  # a read is then one GET, without a HEAD to see whether to split it
    "config_kwargs": {
        "retries": {"mode": "standard", "max_attempts": 4},
        "connect_timeout": 10,
        "read_timeout": 30,
    },
}
"""botocore repeats 500, 502, 503, 504, throttling answers and silence a few times; an `Outage` goes on from there."""


def open_filesystem(url: str, **options: Any) -> tuple[Any, str]:
    """fsspec's file system for a URL, with S3 kept from repeating requests for minutes, and the path there.

    Raises:
        ValueError, ImportError: nothing is known that opens such a URL.
    """
    if not url.startswith(("s3://", "s3a://")):
        filesystem, path = fsspec.core.url_to_fs(url, **options)
        return filesystem, path
    filesystem, path = fsspec.core.url_to_fs(url, **options, **S3_OPTIONS)
    filesystem.retries = 1  # s3fs would do all that botocore does five times over
    return filesystem, path


class RemoteStore:
    """A folder on such a storage.

    Args:
        outage: how long the storage may take to answer.
    """

    def __init__(self, url: str, outage: Outage) -> None:
        self.fs, root = open_filesystem(url, use_listings_cache=False)
        self.root = root.rstrip("/")
        self._outage = outage

    def write(self, path: str, data: bytes) -> None:
        fault_point("temporary-written")
        self._ask("pipe_file", self._full(path), data, more=len(data) / SLOWEST_WRITE)

    def create(self, path: str, data: bytes) -> None:
        self._ask("pipe_file", self._full(path), data, mode="create")

    def replace(self, path: str, data: bytes, expected: bytes) -> bool:
        """On S3 one conditional PUT; elsewhere a moment is left in which another's file may be replaced."""
        full = self._full(path)
        try:
            tag = self._ask("info", full).get("ETag")
            if self.read(path) != expected:
                return False
            if tag is None or not hasattr(self.fs, "call_s3"):
                self.write(path, data)
                return True
            bucket, key, _ = self.fs.split_path(full)
            self._ask("call_s3", "put_object", Bucket=bucket, Key=key, Body=data, IfMatch=tag)
        except FileNotFoundError:
            return False
        except OSError as error:
            code = _code(error)
            if code in ("PreconditionFailed", "ConditionalRequestConflict"):
                # Where the answer to a PUT got lost, its repetition finds its own work.
                return self.read(path) == data
            if code != "NotImplemented":
                raise
            self.write(path, data)
        return True

    def read(self, path: str) -> bytes:
        content: bytes = self._ask("cat_file", self._full(path))
        return content

    def read_many(self, paths: Sequence[str]) -> Iterator[tuple[str, bytes | None]]:
        pool = ThreadPoolExecutor(CONNECTIONS, "read-files")
        try:
            for start in range(0, len(paths), READ_AHEAD):
                wanted = paths[start : start + READ_AHEAD]
                yield from zip(wanted, pool.map(self._content, wanted), strict=True)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def exists(self, path: str) -> bool:
        return bool(self._ask("exists", self._full(path)))

    def list(self, prefix: str) -> list[StoredFile]:
        found = self._ask("find", self._full(prefix), detail=True)
        return [StoredFile(path[len(self.root) + 1 :], int(about["size"] or 0)) for path, about in found.items()]

    def delete(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._ask("rm_file", self._full(path))

    def _content(self, path: str) -> bytes | None:
        try:
            return self.read(path)
        except StorageAway:
            raise  # what cannot be read just now must not count as damaged
        except Exception:
            return None

    def _ask(self, method: str, *arguments: Any, more: float = 0.0, **options: Any) -> Any:
        action = getattr(self.fs, method)
        return self._outage.survive(lambda seconds: action(*arguments, **options, **self._within(seconds + more)))

    def _within(self, seconds: float) -> dict[str, float]:
        """Asynchronous file systems end a request after so many seconds; others end it when they like."""
        return {"timeout": seconds} if self.fs.async_impl else {}

    def _full(self, path: str) -> str:
        return f"{self.root}/{path.strip('/')}".rstrip("/")


def _code(error: OSError) -> str:
    """What S3 calls an error."""
    response: Any = getattr(error.__cause__, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""
