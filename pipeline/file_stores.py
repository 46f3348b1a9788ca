"""Where output files live: a local folder, or any storage fsspec speaks to. Both write a file whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import fsspec

from pipeline.faults import fault_point

TEMPORARY_SUFFIX = ".tmp"
READ_AHEAD = 512
"""Files fetched together by `read_many` on remote storage."""
READERS, FILES_PER_READER = 8, 128
"""Threads of `read_many` on a local disk, for files that are not in the page cache, and what each takes at a time."""
S3_OPTIONS: dict[str, Any] = {
    "max_concurrency": 1,  # a read is then one GET, without a HEAD to see whether to split it
    "config_kwargs": {
        "retries": {"mode": "standard", "max_attempts": 8},
        "connect_timeout": 10,
        "read_timeout": 30,
    },
}
"""botocore repeats 500, 502, 503, 504, throttling answers and silence, with exponential backoff up to 20 s a time."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    path: str
    """Relative to the output, with forward slashes."""
    size: int


class FileStore(Protocol):
    """The operations an output needs. Paths are relative to the store's root; errors are the storage's own."""

    def write(self, path: str, data: bytes) -> None: ...

    def create(self, path: str, data: bytes) -> None:
        """Like `write`, but raises FileExistsError when there is such a file already."""
        ...

    def read(self, path: str) -> bytes: ...

    def read_many(self, paths: Sequence[str]) -> Iterator[tuple[str, bytes | None]]:
        """Each path with its content, or None where it cannot be read."""
        ...

    def exists(self, path: str) -> bool: ...

    def list(self, prefix: str) -> list[StoredFile]: ...

    def delete(self, path: str) -> None: ...


class LocalStore:
    """A local folder. A write is a temporary file, fsync, rename, fsync of the folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, data: bytes) -> None:
        target = self.root / path
        temporary = _write_temporary(target, data)
        try:
            fault_point("temporary-written")
            temporary.replace(target)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)

    def create(self, path: str, data: bytes) -> None:
        target = self.root / path
        temporary = _write_temporary(target, data)
        try:
            target.hardlink_to(temporary)
        finally:
            temporary.unlink()

    def read(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def read_many(self, paths: Sequence[str]) -> Iterator[tuple[str, bytes | None]]:
        root = f"{self.root}{os.sep}"
        groups = (paths[start : start + FILES_PER_READER] for start in range(0, len(paths), FILES_PER_READER))
        under_way: deque[Future[list[tuple[str, bytes | None]]]] = deque()
        with ThreadPoolExecutor(READERS, "read-files") as pool:
            for group in groups:
                under_way.append(pool.submit(_read_all, root, group))
                if len(under_way) > READERS:
                    yield from under_way.popleft().result()
            while under_way:
                yield from under_way.popleft().result()

    def exists(self, path: str) -> bool:
        return (self.root / path).exists()

    def list(self, prefix: str) -> list[StoredFile]:
        found: list[StoredFile] = []
        folders = [prefix.strip("/")]
        while folders:
            folder = folders.pop()
            try:
                entries = os.scandir(self.root / folder)
            except FileNotFoundError:
                continue
            with entries:
                for entry in entries:
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(path)
                    else:
                        with suppress(FileNotFoundError):
                            found.append(StoredFile(path, entry.stat().st_size))
        return found

    def delete(self, path: str) -> None:
        (self.root / path).unlink(missing_ok=True)


class RemoteStore:
    """A folder on a storage that fsspec opens. One PUT makes a file, so it is there whole or not at all."""

    def __init__(self, url: str) -> None:
        options = S3_OPTIONS if url.startswith(("s3://", "s3a://")) else {}
        self.fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False, **options)
        self.root = root.rstrip("/")

    def write(self, path: str, data: bytes) -> None:
        fault_point("temporary-written")
        self.fs.pipe_file(self._full(path), data)

    def create(self, path: str, data: bytes) -> None:
        self.fs.pipe_file(self._full(path), data, mode="create")

    def read(self, path: str) -> bytes:
        return self.fs.cat_file(self._full(path))

    def read_many(self, paths: Sequence[str]) -> Iterator[tuple[str, bytes | None]]:
        for start in range(0, len(paths), READ_AHEAD):
            wanted = paths[start : start + READ_AHEAD]
            contents = self.fs.cat([self._full(path) for path in wanted], on_error="return")
            for path in wanted:
                content = contents.get(self._full(path))
                yield path, content if isinstance(content, bytes) else None

    def exists(self, path: str) -> bool:
        return bool(self.fs.exists(self._full(path)))

    def list(self, prefix: str) -> list[StoredFile]:
        found = self.fs.find(self._full(prefix), detail=True)
        return [StoredFile(path[len(self.root) + 1 :], int(about["size"] or 0)) for path, about in found.items()]

    def delete(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self.fs.rm_file(self._full(path))

    def _full(self, path: str) -> str:
        return f"{self.root}/{path.strip('/')}".rstrip("/")


def _read_all(root: str, paths: Sequence[str]) -> list[tuple[str, bytes | None]]:
    found: list[tuple[str, bytes | None]] = []
    for path in paths:
        content = None
        with suppress(OSError), open(root + path, "rb", buffering=0) as file:  # noqa: PTH123, a hundred thousand times
            content = file.read()
        found.append((path, content))
    return found


def _write_temporary(target: Path, data: bytes) -> Path:
    """A synced file beside `target`; hidden, and with a suffix that no reader of *.parquet or *.json takes up."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
