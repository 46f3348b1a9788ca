"""What an output needs of the place where its files live, and a local folder as such a place."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.faults import fault_point

TEMPORARY_SUFFIX = ".tmp"
READERS, FILES_PER_READER = 8, 128
"""Threads of `read_many` on a local disk, for files that are not in the page cache, and what each takes at a time."""


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

    def replace(self, path: str, data: bytes, expected: bytes) -> bool:
        """Like `write`, but only if the file's content is `expected`; says whether it was."""
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

    def replace(self, path: str, data: bytes, expected: bytes) -> bool:
        """Processes of this machine keep out of each other's way; those of others that mount the folder may not."""
        try:
            with _locked(self.root):
                if self.read(path) != expected:
                    return False
                self.write(path, data)
                return True
        except FileNotFoundError:
            return False

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


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
