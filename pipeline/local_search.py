"""Finds shards in local folders."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.errors import UserError
from pipeline.locations import SHARD_SUFFIXES, is_shard_name, local_path
from pipeline.search import Found


def search_local(location: str, wildcard: bool) -> Iterator[Found]:
    """The shards of a local file, folder or glob.

    Raises:
        UserError: the folder or glob gives none.
    """
    path = Path(os.path.abspath(local_path(location)))  # noqa: PTH100 - links are to stay as they are named
    if wildcard:
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
        shards = [Path(match) for match in matches if is_shard_name(match)]
        yield from _required(location, _stat_all(shards, _fixed_parts(path)))
    elif _is_folder(path):
        yield from _required(location, _stat_all(sorted(_walk(path)), len(_parts(path))))
    else:
        yield _stat(path, len(_parts(path)) - 1)


def _required(location: str, found: Iterable[Found]) -> list[Found]:
    shards = list(found)
    if not shards:
        raise UserError(
            f"no shard ({', '.join(SHARD_SUFFIXES)}) in {location}: give a folder or pattern that holds some"
        )
    return shards


def _fixed_parts(pattern: Path) -> int:
    return next(index for index, part in enumerate(_parts(pattern)) if glob.has_magic(part))


def _parts(path: Path) -> tuple[str, ...]:
    return path.parts[1:]  # without the root: the path is absolute


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # such as a name that is too long
        return False


def _stat_all(paths: Iterable[Path], root: int) -> Iterator[Found]:
    return (_stat(path, root) for path in paths if not _is_folder(path))


def _stat(path: Path, root: int) -> Found:
    url = str(path)
    try:
        status = path.stat()
    except PermissionError:
        return Found(url, _parts(path), root)  # there, and opening it will say why it cannot be read
    except OSError:
        return Found(url, _parts(path), root, missing=True)
    return Found(url, _parts(path), root, status.st_size, f"{status.st_size}-{status.st_mtime_ns}")


def _walk(folder: Path) -> Iterator[Path]:
    """Shard files at any depth, through linked folders too, each folder once."""
    seen: set[tuple[int, int]] = set()
    for current, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        status = Path(current).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(current, name) for name in files if is_shard_name(name) and not name.startswith("."))


def _refuse(error: OSError) -> None:
    raise UserError(f"the folder {error.filename} cannot be listed ({error.strerror}): make it readable")
