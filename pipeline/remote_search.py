"""Finds shards in remote storage, with one listing per folder rather than one request per shard."""

from __future__ import annotations

import glob
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from pipeline.errors import UserError
from pipeline.limits import ReadLimits
from pipeline.locations import SHARD_SUFFIXES, is_http, is_shard_name, parts, redact, without_secrets
from pipeline.remote_store import open_filesystem
from pipeline.search import Found
from pipeline.sources import as_meant

_T = TypeVar("_T")
_CONNECTIONS = 16
_LISTED_FROM = 16
"""From so many files of one folder on, the folder is listed."""
_CHECKSUMS = ("ETag", "etag", "Content-MD5", "md5Hash", "LastModified", "Last-Modified", "last_modified", "mtime")


def search_remote(location: str, wildcard: bool) -> Iterator[Found]:
    """The shards of a URL. A file is not looked up yet, but given as unknown, for `stat_remote`.

    Raises:
        UserError: a folder or glob gives none, or the storage cannot be listed.
    """
    if not wildcard and (is_http(location) or is_shard_name(location)):
        yield Found(location, parts(location), len(parts(location)) - 1, unknown=True)
        return
    infos = _attempt(location, lambda: _list(location, wildcard))
    found = sorted(name for name, info in infos.items() if info.get("type") == "file" and is_shard_name(name))
    if not found:
        if not wildcard and location in infos:  # a file, without a shard's suffix
            yield _found(location, len(parts(location)) - 1, infos[location])
            return
        raise UserError(
            f"no shard ({', '.join(SHARD_SUFFIXES)}) in {redact(location)}: give a folder or pattern that holds some"
        )
    root = _fixed_parts(location) if wildcard else len(parts(location))
    yield from (_found(url, root, infos[url]) for url in found)


def stat_remote(shards: Sequence[Found]) -> list[Found]:
    """The same shards with size and fingerprint, or marked as missing.

    Raises:
        UserError: the storage does not answer or refuses.
    """
    folders: dict[str, list[Found]] = defaultdict(list)
    for shard in shards:
        folders[shard.url.rsplit("/", 1)[0]].append(shard)
    infos: dict[str, Mapping[str, Any] | None] = {}
    single: list[str] = []
    for folder, members in folders.items():
        if len(members) < _LISTED_FROM or is_http(folder):
            single += [shard.url for shard in members]
        else:
            listed = _attempt(folder, partial(_list, folder, wildcard=False, depth=1))
            infos |= {shard.url: listed.get(shard.url) for shard in members}
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        infos |= dict(zip(single, pool.map(_info, single), strict=True))
    return [_found(shard.url, shard.root, infos[shard.url]) for shard in shards]


def _found(url: str, root: int, info: Mapping[str, Any] | None) -> Found:
    if info is None:
        return Found(url, parts(url), root, missing=True)
    size = info.get("size")
    changed = next((str(info[name]).strip('"') for name in _CHECKSUMS if info.get(name)), "")
    return Found(url, parts(url), root, size, f"{size}-{changed}")


def _info(url: str) -> Mapping[str, Any] | None:
    def look() -> Mapping[str, Any] | None:
        filesystem, path = open_filesystem(url)
        filesystem.invalidate_cache()
        try:
            return filesystem.info(path)
        except FileNotFoundError as error:
            if isinstance(meant := as_meant(error), FileNotFoundError):
                return None
            raise meant from None

    return _attempt(url, look)


def _list(location: str, wildcard: bool, depth: int | None = None) -> dict[str, Mapping[str, Any]]:
    """URL -> what the storage says of it. A listing that finds nothing is empty, not an error."""
    filesystem, path = open_filesystem(location)
    filesystem.invalidate_cache()
    try:
        if wildcard:
            infos = filesystem.glob(path, detail=True)
        else:
            infos = filesystem.find(path, maxdepth=depth, detail=True)
    except FileNotFoundError:
        return {}
    prefix = location.split("://", 1)[0] + "://"
    return {prefix + str(name).split("://", 1)[-1].lstrip("/"): info for name, info in infos.items()}


def _attempt(location: str, action: Callable[[], _T]) -> _T:
    limits = ReadLimits()
    failure: Exception | None = None
    for attempt in range(limits.attempts):
        if attempt:
            time.sleep(limits.retry_seconds * 2 ** (attempt - 1))
        try:
            return action()
        except (PermissionError, ImportError, ValueError) as error:
            failure = error
            break
        except Exception as error:  # each storage library raises its own kinds
            failure = error
    reason = without_secrets(str(failure) or type(failure).__name__, location)
    raise UserError(f"{redact(location)} cannot be listed: {reason}; check the address and the credentials") from None


def _fixed_parts(location: str) -> int:
    names: Iterable[str] = parts(location)
    return next((index for index, part in enumerate(names) if glob.has_magic(part)), len(parts(location)) - 1)
