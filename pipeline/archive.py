"""Reads a tar archive forwards, once, in bounded memory, and never takes damage for an end.

webdataset's own iterator, and `tarfile` as it stands, both end quietly at a corrupt header and at a missing end of
archive, and both read any header into memory whatever its size. So the loop over the headers is this project's; what a
header means (ustar, GNU, PAX) is still `tarfile`'s.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import zstandard

from pipeline.limits import ReadLimits
from pipeline.sources import SourceError

_CHUNK_BYTES = 2**20
_ZEROS = bytes(2**16)
_DAMAGE = (OSError, EOFError, zlib.error, zstandard.ZstdError)
FILE = "file"


class ArchiveError(ValueError):
    """The archive cannot be read further; the message says why."""


@dataclass(frozen=True, slots=True)
class Member:
    name: str
    """As stored, made safe for UTF-8: a byte that is none stands as ``\\xff``."""
    kind: str
    """``file``, ``directory``, ``link``, ``sparse file`` or ``device``."""
    size: int


class TarMembers:
    """The members of a tar stream in order; the content of the current one can be read once."""

    def __init__(self, stream: BinaryIO, limits: ReadLimits) -> None:
        self._stream = _ForwardStream(stream)
        self._limits = limits
        self._size = 0
        self.members = 0

    @property
    def position(self) -> int:
        """Bytes read so far, uncompressed."""
        return self._stream.tell()

    def __iter__(self) -> Iterator[Member]:
        """Yield every member.

        Raises:
            ArchiveError: a header is corrupt, data is cut off, the compression is broken, or the blocks that mark
                the end of an archive are missing.
        """
        archive = _HeaderContext(self._stream)
        while (header := self._next_header(archive)) is not None:
            self.members += 1
            self._size = header.size
            yield Member(_safe(header.name), _kind(header), header.size)

    def read(self) -> bytes:
        """The content of the current member, which must be a file.

        Raises:
            ArchiveError: the archive ends within it.
        """
        data = self._stream.read(self._size)
        if len(data) < self._size:
            raise ArchiveError(f"the archive is cut off {len(data)} bytes into a member of {self._size} bytes")
        return data

    def skip(self) -> None:
        """Pass over the current member's content; damage within it is found as `read` finds it.

        Raises:
            ArchiveError: the archive ends within it.
        """
        skipped = self._stream.discard(self._size)
        if skipped < self._size:
            raise ArchiveError(f"the archive is cut off {skipped} bytes into a member of {self._size} bytes")

    def _next_header(self, archive: _HeaderContext) -> tarfile.TarInfo | None:
        if self._stream.tell() < archive.offset:
            self._stream.skip_to(archive.offset)
        ended = False
        while True:
            self._stream.budget = self._limits.max_header_bytes
            try:
                header = _Header.fromtarfile(archive)  # type: ignore[arg-type]
            except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
                ended = True  # two such blocks end an archive; another archive may follow, as `cat a.tar b.tar` makes
                self._stream.budget = None
                self._stream.skip_zero_blocks()
                continue
            except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
                if ended:
                    return None
                raise ArchiveError(self._why_it_stops()) from None
            except ArchiveError:
                raise
            except SourceError:
                raise
            except Exception as error:  # tarfile lets IndexError, ValueError and others out of corrupt headers
                raise ArchiveError(self._what_is_corrupt(error, ended)) from None
            finally:
                self._stream.budget = None
            if archive.offset < self._stream.tell() or header.size < 0:
                raise ArchiveError("a header gives a negative size")
            return header

    def _why_it_stops(self) -> str:
        if self._stream.tell() == 0:
            return "the file is empty (0 bytes)"
        return "the end-of-archive blocks are missing: the file is cut off between two members"

    def _what_is_corrupt(self, error: Exception, ended: bool) -> str:
        if self._stream.at_end and self._stream.tell() >= tarfile.BLOCKSIZE:
            return "the archive is cut off within a header"
        if ended:
            return "bytes that are no tar archive follow the end of the archive"
        if self.members == 0:
            return "it is not a tar archive (no valid header at its start)"
        return f"the header after member {self.members} is corrupt ({error})"


class _ForwardStream:
    """What `tarfile` needs of a file, over a stream that cannot seek."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._position = 0
        self._pushed_back = b""
        self.at_end = False
        """Whether a read found fewer bytes than it asked for."""
        self.budget: int | None = None
        """Bytes that may still be read before the header counts as hostile; None outside headers."""

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        """Exactly ``size`` bytes, fewer only where the stream ends."""
        if size < 0:
            raise ArchiveError("a header gives a negative size")
        if self.budget is not None:
            self.budget -= size
            if self.budget < 0:
                raise ArchiveError("the headers of one member are larger than the limit max_header_bytes")
        chunks = []
        while size > 0 and (chunk := self._read_once(min(size, _CHUNK_BYTES))):
            chunks.append(chunk)
            size -= len(chunk)
        self.at_end = size > 0
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def skip_to(self, offset: int) -> None:
        while self._position < offset:
            if not self._read_once(min(_CHUNK_BYTES, offset - self._position)):
                raise ArchiveError(f"the archive is cut off {offset - self._position} bytes before a member's end")

    def discard(self, size: int) -> int:
        """Go ``size`` bytes on, fewer only where the stream ends; how many it were."""
        left = size
        while left > 0 and (chunk := self._read_once(min(_CHUNK_BYTES, left))):
            left -= len(chunk)
        return size - left

    def skip_zero_blocks(self) -> None:
        """Go to the next block that is not all zeros: a small compressed file may hold gigabytes of them."""
        while chunk := self.read(len(_ZEROS)):
            if chunk == _ZEROS:
                continue
            zeros = len(chunk) - len(chunk.lstrip(b"\0"))
            self._pushed_back = chunk[zeros - zeros % tarfile.BLOCKSIZE :]
            self._position -= len(self._pushed_back)
            return

    def _read_once(self, size: int) -> bytes:
        if self._pushed_back:
            chunk, self._pushed_back = self._pushed_back[:size], self._pushed_back[size:]
            self._position += len(chunk)
            return chunk
        try:
            chunk = self._stream.read(size)
        except SourceError:
            raise
        except _DAMAGE as error:
            kind = (
                "compressed data" if not isinstance(error, OSError) or isinstance(error, gzip.BadGzipFile) else "file"
            )
            raise ArchiveError(f"the {kind} cannot be read further ({error})") from None
        self._position += len(chunk)
        return chunk


class _Header(tarfile.TarInfo):
    """A header whose size is that of what is stored, whatever a PAX record says of a sparse file's whole length."""

    def _apply_pax_info(self, pax_headers: dict[str, str], encoding: str, errors: str) -> None:
        stored = {name: value for name, value in pax_headers.items() if name != "GNU.sparse.realsize"}
        super()._apply_pax_info(stored, encoding, errors)  # type: ignore[misc]


class _HeaderContext:
    """The part of `tarfile.TarFile` that parsing one header uses."""

    encoding = "utf-8"
    errors = "surrogateescape"

    def __init__(self, stream: _ForwardStream) -> None:
        self.fileobj = stream
        self.offset = 0
        """Where the next header starts; set by the parser."""
        self.pax_headers: dict[str, Any] = {}


def _kind(header: tarfile.TarInfo) -> str:
    if header.issparse():
        return "sparse file"
    if header.isreg():
        return FILE
    if header.isdir():
        return "directory"
    if header.issym() or header.islnk():
        return "link"
    return "device" if header.isdev() else "unknown member type"


def _safe(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") if not name.isascii() else name
