"""Paths and URLs of shards: what is local, what is a secret, what the parts are."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit
from urllib.request import url2pathname

SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.zst")
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
_URL_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
_PLAIN_PARAMETERS = frozenset({"id", "name", "file", "filename", "path", "version", "versionid", "generation"})
_SECRET_PARAMETER = re.compile(
    r"sig|token|secret|key|pass|pwd|auth|cred|expires|policy|^x-|^s[a-z]{1,2}$", flags=re.IGNORECASE
)
_USER = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://([^?#]*:[^?#]*@)")
"""User and password; a secret key may hold slashes."""
_DIGEST = re.compile(r"~[0-9a-f]{8}\W*$")
"""What stands for the value of a parameter that was redacted before."""


def is_local(location: str) -> bool:
    return not _SCHEME.match(location) or location.startswith("file://")


def is_http(location: str) -> bool:
    return location.startswith(("http://", "https://"))


def is_shard_name(name: str) -> bool:
    return name.lower().endswith(SHARD_SUFFIXES)


def local_path(location: str) -> Path:
    """The path of a local location: a plain path, or a ``file://`` URL with its percent-escapes undone."""
    if location.startswith("file://"):
        return Path(url2pathname(urlsplit(location).path))
    return Path(location).expanduser()


def has_wildcard(location: str) -> bool:
    """Whether the location is a glob. HTTP has no listing, and its ``?`` starts a query, so it never is one there."""
    return not is_http(location) and any(mark in location for mark in "*?[")


def parts(location: str) -> tuple[str, ...]:
    """The folders and the file name, with the bucket or host first and without scheme, user and query."""
    if is_local(location):
        return tuple(part for part in str(local_path(location)).split("/") if part)
    rest = location.split("://", 1)[1]
    if is_http(location):
        rest = unquote(rest.split("?", 1)[0].split("#", 1)[0])
    host, *folders = rest.split("/")
    return tuple(part for part in (host.rsplit("@", 1)[-1], *folders) if part)


def redact(text: str) -> str:
    """The location without credentials: what may be stored, logged and compared between runs.

    User and password go; parameters that sign or expire go, so that a URL signed anew is the same shard; the values
    of other unknown parameters become a digest, so that two different files stay two. In any other text, such as a
    library's error message, every URL is treated so.
    """
    return _redacted_url(text) if _SCHEME.match(text) else redact_urls(text)


def redact_urls(text: str) -> str:
    """A text, which may begin with a URL without being one, with every URL in it redacted; twice is as once."""
    return _URL_IN_TEXT.sub(lambda match: _redacted_url(match.group()), text)


def _redacted_url(url: str) -> str:
    scheme, rest = url.split("://", 1)
    if scheme == "file":
        return url
    if is_http(url):
        rest = rest.split("#", 1)[0]
    else:
        rest = re.sub(r"^[^/@]*:[^@]*@", "", rest)  # an object store's secret key may hold slashes
    host, slash, path = rest.partition("/")
    address, mark, query = f"{scheme}://{host.rsplit('@', 1)[-1]}{slash}{path}".partition("?")
    if not is_http(url) and "=" not in query:
        return address + mark + query  # the question mark of a glob
    kept = "&".join(filter(None, (_redacted(name, value) for name, value in parse_qsl(query, keep_blank_values=True))))
    return f"{address}?{kept}" if kept else address


def _redacted(name: str, value: str) -> str:
    if name.lower() in _PLAIN_PARAMETERS or _DIGEST.match(value):
        return f"{name}={value}"
    if _SECRET_PARAMETER.search(name):
        return ""
    return f"{name}=~{hashlib.sha256(value.encode()).hexdigest()[:8]}"


def without_secrets(message: str, location: str) -> str:
    """The message of a library's error, which may quote the location or a part of it, without its credentials."""
    message = message.replace(location, redact(location))
    if user := _USER.match(location):
        message = message.replace(user[1], "")
    return redact_urls(message)
