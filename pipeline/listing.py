"""The inputs of a run -> the shards to read, each with a name that is unique and stays."""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from braceexpand import braceexpand

from pipeline.errors import UserError
from pipeline.local_search import search_local
from pipeline.locations import has_wildcard, is_local, local_path, redact
from pipeline.records import ShardRef
from pipeline.remote_search import search_remote, stat_remote
from pipeline.search import Found

__all__ = ["list_shards", "redact"]

_LOG = logging.getLogger(__name__)
_MAX_SHARDS = 10_000_000
_SHOWN = 3


def list_shards(inputs: Sequence[str], known: Mapping[str, str] | None = None) -> list[ShardRef]:
    """Every shard of the inputs, in their order; those of a folder or glob by path. A repeated one is left out.

    An input is a file, a folder (every .tar, .tar.gz, .tgz and .tar.zst in it, at any depth, hidden folders left out),
    a glob, each with brace ranges ``{00000..00003}`` and lists ``{a,b}``, as a path, ``file://``, ``s3://`` or any
    other URL that fsspec opens. A file that is named but not there is listed with ``missing=True``.

    A shard's name is its path below its input's root: the folder given, the folder before the first wildcard, the
    folder of a file. Where two would be equal, their parent folders are put before them. ``known`` maps redacted URLs
    to the names that an earlier run of the same output gave them; these stay. `redact(ref.url)` is what identifies a
    shard between runs; `ref.url` itself may hold credentials and is for opening alone. Local paths become absolute.

    Raises:
        UserError: a pattern or folder gives nothing, no named file is there, or storage cannot be listed.
    """
    if not inputs:
        raise UserError("no input: give --input a .tar file, a folder, a glob or a URL")
    found = _stat_singles([shard for text in inputs for shard in _search(text)])
    unique = {redact(shard.url): shard for shard in reversed(found)}
    if len(unique) < len(found):
        _note_repeats(found)
    shards = list(reversed(unique.values()))
    if all(shard.missing for shard in shards):
        raise UserError(f"no shard found, looked for {_enumerated(list(unique))}: give an input that exists")
    names = _name(shards, known or {})
    return [
        ShardRef(name, shard.url, shard.size, shard.fingerprint, shard.missing)
        for shard, name in zip(shards, names, strict=True)
    ]


def _search(text: str) -> Iterator[Found]:
    """The shards of one input; an exact path wins over what its characters would mean in a pattern."""
    if not text.strip():
        raise UserError("an input is empty: give --input a .tar file, a folder, a glob or a URL")
    if "\0" in text:
        raise UserError(f"the input {text!r} holds a NUL character: no path can")
    for location in [text] if _exists(text) else _expanded(text):
        wildcard = has_wildcard(location) and not _exists(location)
        yield from (search_local if is_local(location) else search_remote)(location, wildcard)


def _exists(location: str) -> bool:
    try:
        return is_local(location) and local_path(location).exists()
    except OSError:
        return False


def _expanded(text: str) -> list[str]:
    sizes = (abs(int(last) - int(first)) + 1 for first, last in re.findall(r"\{(\d{1,18})\.\.(\d{1,18})", text))
    if math.prod(sizes) > _MAX_SHARDS:
        raise UserError(f"{redact(text)} names more than {_MAX_SHARDS} shards: give a smaller range")
    try:
        return list(braceexpand(text, escape=False))
    except ValueError as error:
        raise UserError(
            f"the braces in {redact(text)} do not match ({error}): write {{00000..00003}} or {{a,b}}"
        ) from None


def _stat_singles(found: list[Found]) -> list[Found]:
    """Look up the remote files that were named one by one, all together: a listing per folder, not a request each."""
    pending = [shard for shard in found if shard.unknown]
    stats = iter(stat_remote(pending))
    return [next(stats) if shard.unknown else shard for shard in found]


def _note_repeats(found: Sequence[Found]) -> None:
    repeats = [url for url, count in Counter(redact(shard.url) for shard in found).items() if count > 1]
    _LOG.warning("Given more than once, and read once (%d): %s", len(repeats), _enumerated(repeats))


def _enumerated(urls: Sequence[str]) -> str:
    more = f" and {len(urls) - _SHOWN} more" if len(urls) > _SHOWN else ""
    return ", ".join(urls[:_SHOWN]) + more


def _name(shards: Sequence[Found], known: Mapping[str, str]) -> list[str]:
    """Names in the order of the shards: known ones as they were, new ones with as many parent folders as they need."""
    identities = [redact(shard.url) for shard in shards]
    taken = set(known.values())
    depths = [shard.root for shard in shards]
    new = [index for index, identity in enumerate(identities) if identity not in known]
    names = [known.get(identity, "") for identity in identities]
    clashing = new
    while clashing:
        for index in clashing:
            names[index] = "/".join(shards[index].parts[depths[index] :])
        counts = Counter(names[index] for index in new)
        clashing = [index for index in new if counts[names[index]] > 1 or names[index] in taken]
        exhausted = [index for index in clashing if depths[index] == 0]
        for index in exhausted:  # the same path under two schemes, or two queries of one address
            names[index] += f"~{hashlib.sha256(identities[index].encode()).hexdigest()[:12]}"
        clashing = [index for index in clashing if depths[index] > 0]
        for index in clashing:
            depths[index] -= 1
        new = [index for index in new if index not in set(exhausted)] if exhausted else new
    return names
