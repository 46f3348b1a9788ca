"""The output folder as one object: whole-file writes, one listing, and errors that say what to do."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import UserError
from pipeline.file_stores import FileStore, LocalStore, StoredFile
from pipeline.locations import redact, without_secrets
from pipeline.outage import STORAGE_TIMEOUT, Outage, StorageAway
from pipeline.remote_store import RemoteStore


class StorageError(UserError):
    """The output cannot be read or written; the message says which file and what to do about it."""


ADVICE = {
    errno.ENOSPC: "the disk is full; make room and run the same command again, it continues where it stopped",
    errno.EDQUOT: "the disk quota is used up; make room and run the same command again, it continues where it stopped",
    errno.EROFS: "the file system is read-only; choose another --output",
    errno.EACCES: "no permission; choose another --output or change the folder's permissions",
    errno.EPERM: "no permission; choose another --output or change the folder's permissions",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another --output",
    errno.EISDIR: "a folder stands where a file should be; choose another --output",
    errno.ENAMETOOLONG: "the path is too long for this file system; choose a shorter --output",
}
CHECK = "check address and credentials, then run the same command again"
REFUSED = f"the storage refused it; {CHECK}"


class Output:
    """An output folder by path or URL. Pickles as its URL, so replicas open it themselves.

    Args:
        timeout: seconds after which remote storage that does not answer is given up.
    """

    def __init__(self, url: str, timeout: float = STORAGE_TIMEOUT) -> None:
        self._url = url
        self.url = redact(url)
        """The address without credentials, fit for logs."""
        self._timeout = timeout
        self._outage = Outage(timeout)
        self._store = _open_store(url, self._outage)

    def __reduce__(self) -> tuple[Callable[[str, float], Output], tuple[str, float]]:
        return open_output, (self._url, self._timeout)

    @property
    def trouble(self) -> str:
        """Why nothing can be read or written for long already; empty where there is no such trouble."""
        return f"{self.url} has not answered for {self._outage.patience:g} s" if self._outage.too_long else ""

    def hurry(self) -> None:
        """Wait for storage that does not answer no longer than a moment: the run is over."""
        self._outage.hurry()

    @property
    def local_root(self) -> Path | None:
        """The folder when the output is local, else None."""
        return self._store.root if isinstance(self._store, LocalStore) else None

    def put_atomic(self, path: str, data: bytes) -> None:
        """Write a file whole or not at all, replacing an older one.

        Raises:
            StorageError: full, read-only or unreachable storage.
        """
        with self._explained("write", path):
            self._store.write(path, data)

    def put_new(self, path: str, data: bytes) -> bool:
        """Write a file only if there is none of that name; say whether it was written."""
        with self._explained("write", path):
            try:
                self._store.create(path, data)
            except FileExistsError:
                if not self._store.exists(path):
                    raise
                return False
            return True

    def put_instead(self, path: str, data: bytes, expected: bytes) -> bool:
        """Replace a file only if its content is `expected`; say whether it was replaced."""
        with self._explained("write", path):
            return self._store.replace(path, data, expected)

    def read(self, path: str) -> bytes:
        """The file's bytes.

        Raises:
            FileNotFoundError: there is no such file.
            StorageError: it is there and cannot be read.
        """
        with self._explained("read", path):
            return self._store.read(path)

    def read_many(self, paths: Sequence[str]) -> Iterator[tuple[str, bytes | None]]:
        """Many small files, fetched in parallel on remote storage; None where a file cannot be read."""
        with self._explained("read", "files"):
            yield from self._store.read_many(paths)

    def exists(self, path: str) -> bool:
        with self._explained("look for", path):
            return self._store.exists(path)

    def list(self, prefix: str = "") -> list[StoredFile]:
        """Every file under `prefix` (a folder), at any depth, sorted by path, from one listing."""
        with self._explained("list", prefix or "files"):
            return sorted(self._store.list(prefix), key=lambda file: file.path)

    def delete(self, path: str) -> None:
        """Remove a file; one that is not there is no error."""
        with self._explained("delete", path):
            self._store.delete(path)

    def check_writable(self) -> None:
        """Write, read back and delete a probe file, so that a run fails before it has cost anything.

        Raises:
            StorageError: the output cannot be written.
        """
        probe = f".probe-{secrets.token_hex(4)}"
        self.put_atomic(probe, b"probe")
        try:
            if self.read(probe) != b"probe":
                raise StorageError(f"{self.url} does not give back what was written to it; choose another --output")
        finally:
            self.delete(probe)

    @contextmanager
    def _explained(self, action: str, path: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, StorageError) as error:
            if action == "read" or isinstance(error, StorageError):
                raise
            raise StorageError(f"cannot {action} {path} in {self.url}: no such folder or bucket") from error
        except Exception as error:
            # fsspec's storages raise their client libraries' own types; the user needs the one sentence.
            advice = without_secrets(_advice(error, self.local_root is None), self._url)
            raise StorageError(f"cannot {action} {path} in {self.url}: {advice}") from error


def _advice(error: Exception, remote: bool) -> str:
    number = error.errno if isinstance(error, OSError) else None
    first_line = redact(str(error).strip().split("\n")[0]) or type(error).__name__
    if isinstance(error, StorageAway):
        return f"{first_line} ({CHECK})"
    if remote:
        return f"{first_line} ({REFUSED})"
    if isinstance(error, FileExistsError):
        return ADVICE[errno.ENOTDIR]
    if number is None:
        return first_line
    return ADVICE.get(number, f"{os.strerror(number)} ({first_line})")


def _open_store(url: str, outage: Outage) -> FileStore:
    scheme, separator, rest = url.partition("://")
    if not separator:
        return LocalStore(Path(url).expanduser().absolute())
    if scheme in ("file", "local"):
        return LocalStore(Path(rest).absolute())
    try:
        return RemoteStore(url, outage)
    except (ValueError, ImportError) as error:
        raise UserError(
            f"cannot open the output {redact(url)}: {error}; use a local folder or a URL such as s3://bucket/folder"
        ) from error


def open_output(url: str, timeout: float = STORAGE_TIMEOUT) -> Output:
    """The output at a local path or a URL (file://, s3://, and whatever else fsspec opens).

    Args:
        timeout: seconds after which remote storage that does not answer is given up.

    Raises:
        UserError: nothing is known that opens such a URL.
    """
    return Output(url, timeout)
