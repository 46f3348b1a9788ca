"""What the files of a shard are called, and which files of an output folder are this program's own."""

from __future__ import annotations

import hashlib
import re

from pipeline.locations import redact

LONGEST_NAME = 100
"""Characters of the shard's name kept in a file name; the hash keeps names distinct."""

_ARCHIVE_SUFFIX = re.compile(r"\.(tar|tgz|tar\.gz|tar\.zst)$", re.IGNORECASE)
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_OWN_FILE = re.compile(
    r"(run\.json|_SUCCESS|metrics\.jsonl|driver\.lock"
    r"|(data|quarantine)/[^/]+-[0-9a-f]{8}(\.r\d+)?\.parquet"
    r"|ledger/[^/]+-[0-9a-f]{8}\.json"
    r"|staged/[^/]+-[0-9a-f]{8}\.\d+-(\d+|end)\.[0-9a-f]{8}\.json\.zst)$"
)
_STAGED = re.compile(r"staged/(.+-[0-9a-f]{8})\.(\d{1,20})-(\d{1,20}|end)\.([0-9a-f]{8})\.json\.zst")
_TEMPORARY = re.compile(r"(.+/)?\.[^/]+\.\d+-[0-9a-f]{8}\.tmp$|\.probe-[0-9a-f]{8}$")


def shard_id(url: str) -> str:
    """What identifies a shard in the ledger: its URL without credentials, so that a new signature does not matter."""
    return redact(url)


def file_stem(name: str, url: str) -> str:
    """`<name>-<hash of url>`, safe on every file system; shared by the shard's parts and its report."""
    readable = _UNSAFE.sub("_", _ARCHIVE_SUFFIX.sub("", name)).lstrip(".")[-LONGEST_NAME:] or "shard"
    digest = hashlib.sha256(shard_id(url).encode("utf-8", "surrogatepass")).hexdigest()
    return f"{readable}-{digest[:8]}"


def data_path(stem: str, retry: int = 0) -> str:
    return f"data/{stem}{f'.r{retry}' if retry else ''}.parquet"


def quarantine_path(stem: str, retry: int = 0) -> str:
    return f"quarantine/{stem}{f'.r{retry}' if retry else ''}.parquet"


def report_path(stem: str) -> str:
    return f"ledger/{stem}.json"


def staged_path(stem: str, first: int, stop: int | None, state: str) -> str:
    """A slice's result before its shard is committed; `state` tells apart what other runs or other contents staged."""
    return f"staged/{stem}.{first}-{'end' if stop is None else stop}.{state}.json.zst"


def parse_staged(path: str) -> tuple[str, int, int | None, str] | None:
    """What `staged_path` was given for this path; None where it is none of its."""
    match = _STAGED.fullmatch(path)
    return match and (match[1], int(match[2]), None if match[3] == "end" else int(match[3]), match[4])


def is_staged(path: str) -> bool:
    return bool(_OWN_FILE.fullmatch(path)) and path.startswith("staged/")


def is_part(path: str) -> bool:
    return bool(_OWN_FILE.fullmatch(path)) and path.startswith(("data/", "quarantine/"))


def is_own(path: str) -> bool:
    """Whether a file of the output, by its path in it, is one that this program writes."""
    return bool(_OWN_FILE.fullmatch(path)) or is_temporary(path)


def is_temporary(path: str) -> bool:
    """Whether the file was left behind by a write that never ended."""
    return bool(_TEMPORARY.fullmatch(path))
