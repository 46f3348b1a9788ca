"""Opens a shard wherever it lies, with retries on remote storage, and undoes its compression."""

from __future__ import annotations

import gzip
import io
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, BinaryIO, cast

import zstandard

from pipeline.limits import ReadLimits
from pipeline.locations import is_http, is_local, local_path, redact, without_secrets
from pipeline.remote_store import open_filesystem

_BUFFER_BYTES = 2**20
_BLOCK_BYTES = 8 * 2**20
"""Of remote storage, per request."""
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_UNREADABLE = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\x03\x04": "zip", b"7z\xbc\xaf": "7-zip"}


class SourceError(OSError):
    """Remote storage kept failing through all attempts: nothing is known of the data, so the shard is to be retried."""


class CompressionError(ValueError):
    """The file is packed in a way that is not read here."""


def open_source(location: str, limits: ReadLimits) -> BinaryIO:
    """Open the file's raw bytes for reading forwards.

    Raises:
        FileNotFoundError, PermissionError, IsADirectoryError: it cannot be opened, and trying again would not help.
        SourceError: remote storage failed ``limits.attempts`` times, or for ``limits.timeout`` seconds.
    """
    if is_local(location):
        return local_path(location).open("rb", buffering=_BUFFER_BYTES)
    return io.BufferedReader(_RetryingReader(location, limits), buffer_size=_BUFFER_BYTES)


def decompressed(raw: BinaryIO) -> BinaryIO:
    """Undo gzip or Zstandard compression, recognised by the content; anything else is passed through.

    Raises:
        CompressionError: the content is bzip2, xz, zip or 7-zip.
    """
    start = cast(io.BufferedReader, raw).peek(6)[:6]
    if start.startswith(b"\x1f\x8b"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw, mode="rb"))
    if start.startswith(b"\x28\xb5\x2f\xfd"):
        reader = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True, closefd=False)
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, reader), buffer_size=_BUFFER_BYTES))
    for magic, name in _UNREADABLE.items():
        if start.startswith(magic):
            raise CompressionError(f"it is {name}-compressed; only .tar, .tar.gz and .tar.zst are read")
    return raw


def as_meant(error: Exception) -> Exception:
    """The error that a storage library meant: fsspec calls most failures of an HTTP server a missing file."""
    cause = error.__cause__ if isinstance(error, FileNotFoundError) else error
    if not type(cause).__module__.startswith("aiohttp"):
        return error
    status = getattr(cause, "status", None)
    if status in (401, 403):
        return PermissionError(f"HTTP status {status}")
    if status in (404, 410):
        return FileNotFoundError(f"HTTP status {status}")
    return ConnectionError(f"HTTP status {status}" if status else str(cause))


class _RetryingReader(io.RawIOBase):
    """Reads a remote file forwards; after a failure it opens the file again and goes on where it was."""

    def __init__(self, location: str, limits: ReadLimits) -> None:
        super().__init__()
        self._location = location
        self._limits = limits
        self._file: Any = None
        self._position = 0
        self._retry(lambda: None)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._retry(lambda: self._file.read(len(buffer)))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._drop()
        super().close()

    def _drop(self) -> None:
        if self._file is not None:
            with suppress(Exception):
                self._file.close()
            self._file = None

    def _open(self) -> None:
        filesystem, path = open_filesystem(self._location)
        block = 0 if is_http(self._location) else _BLOCK_BYTES  # 0 streams: not every HTTP server gives ranges
        self._file = filesystem.open(path, "rb", block_size=block)
        skipped = 0
        while skipped < self._position:  # a plain HTTP stream cannot seek
            skipped += len(chunk := self._file.read(min(_BUFFER_BYTES, self._position - skipped)))
            if not chunk:
                raise OSError(f"it now ends after {skipped} bytes")

    def _retry(self, action: Callable[[], Any]) -> Any:
        failure: Exception | None = None
        attempt, deadline = 0, time.monotonic() + self._limits.timeout
        while attempt < self._limits.attempts and time.monotonic() < deadline:
            if attempt:
                time.sleep(self._limits.retry_seconds * 2 ** (attempt - 1))
            attempt += 1
            try:
                if self._file is None:
                    self._open()
                return action()
            except Exception as error:  # each storage library raises its own kinds
                failure = as_meant(error)
                self._drop()
                if isinstance(failure, _FINAL):
                    raise failure from None
        reason = without_secrets(str(failure) or type(failure).__name__, self._location)
        raise SourceError(f"{redact(self._location)} could not be read in {attempt} attempts: {reason}") from None
