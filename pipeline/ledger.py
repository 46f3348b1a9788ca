"""Which shards are done: one small JSON report per shard, written last, is the done marker.

The truth is the files alone. A report counts only while the parts it names are there in the size it names, so a part
lost or half copied is made again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, field, fields
from operator import attrgetter
from typing import Any

from pipeline.part_names import file_stem, report_path, shard_id
from pipeline.records import ShardRef, ShardReport
from pipeline.storage import Output
from pipeline.totals import SUMMED, Totals

FIELDS = tuple(one.name for one in fields(ShardReport))
REQUIRED = {one.name for one in fields(ShardReport) if one.default is MISSING and one.default_factory is MISSING}
_summed = attrgetter(*SUMMED)


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """What must be remembered of a finished shard to decide about it; 100,000 of them fit into memory."""

    shard: str
    url: str
    fingerprint: str
    incomplete: str | None
    parts: tuple[tuple[str, int], ...]
    """(path, bytes) of each file written."""


@dataclass
class LedgerScan:
    entries: dict[str, LedgerEntry] = field(default_factory=dict)
    """Shard URL -> entry."""
    totals: Totals = field(default_factory=Totals)
    """Sums over `entries`."""
    damaged: list[str] = field(default_factory=list)
    """One sentence for each report that cannot be trusted; its shard counts as not done."""

    def pending(self, refs: Iterable[ShardRef]) -> list[ShardRef]:
        """The shards to process, in the order given and each once: new ones, and those whose file has changed.

        A shard that was missing or cut short and has been repaired has another fingerprint, so it is processed again.
        One that was answered and is missing now keeps its answers.
        """
        chosen: dict[str, ShardRef] = {}
        for ref in refs:
            entry = self.entries.get(shard_id(ref.url))
            if entry is None or (entry.fingerprint != ref.fingerprint and not ref.missing):
                chosen.setdefault(shard_id(ref.url), ref)
        return list(chosen.values())

    def recorded(self, refs: Iterable[ShardRef]) -> list[ShardRef]:
        """Those of the shards that have an entry, as they are or as they were."""
        return [ref for ref in refs if shard_id(ref.url) in self.entries]

    def quarantined(self, refs: Iterable[ShardRef]) -> list[ShardRef]:
        """The shards that are done, unchanged and there, and hold questions without an answer."""
        found: dict[str, ShardRef] = {}
        for ref in refs:
            entry = self.entries.get(shard_id(ref.url))
            if entry is None or ref.missing or entry.fingerprint != ref.fingerprint:
                continue
            if any(path.startswith("quarantine/") for path, _ in entry.parts):
                found.setdefault(entry.url, ref)
        return list(found.values())

    @property
    def known_names(self) -> dict[str, str]:
        """Shard URL -> the name that it has in the rows already written."""
        return {url: entry.shard for url, entry in self.entries.items()}


class Ledger:
    """The folder `ledger/` of an output."""

    def __init__(self, output: Output) -> None:
        self.output = output

    def commit(self, report: ShardReport) -> None:
        """Write the report: from here on the shard is done.

        Raises:
            StorageError: full, read-only or unreachable storage.
        """
        self.output.put_atomic(report_path(file_stem(report.shard, report.url)), encode_report(report))

    def report(self, shard: str, url: str) -> ShardReport | None:
        """The report of one shard; None where there is none, or what is there is none.

        Raises:
            StorageError: it cannot be read now.
        """
        try:
            content = self.output.read(report_path(file_stem(shard, url)))
        except FileNotFoundError:
            return None
        try:
            return decode_report(content)
        except ValueError:
            return None

    def reports(self, refs: Iterable[ShardRef]) -> list[ShardReport]:
        """The reports of some shards, of those that have one that can be read.

        Raises:
            StorageError: unreachable storage.
        """
        found = []
        for _, content in self.output.read_many([report_path(file_stem(ref.name, ref.url)) for ref in refs]):
            with suppress(ValueError):
                found.append(decode_report(content))
        return found

    def retract(self, shard: str, url: str) -> None:
        """Take the done marker away, before the shard's parts are replaced."""
        self.output.delete(report_path(file_stem(shard, url)))

    def done(self) -> dict[str, LedgerEntry]:
        """Shard URL -> entry of every shard that is done."""
        return self.scan().entries

    def scan(self) -> LedgerScan:
        """Read every report and check that its parts are there; 100,000 take seconds on a local disk.

        Raises:
            StorageError: unreachable storage.
        """
        scan = LedgerScan()
        sizes = {file.path: file.size for folder in ("data", "quarantine") for file in self.output.list(folder)}
        paths = [file.path for file in self.output.list("ledger") if file.path.endswith(".json")]
        for path, content in self.output.read_many(paths):
            try:
                report = decode_report(content)
                _check(report, path, sizes)
            except ValueError as error:
                scan.damaged.append(f"{path}: {error}")
                continue
            parts = tuple((str(part["path"]), int(str(part["bytes"]))) for part in report.parts)
            url = shard_id(report.url)
            scan.entries[url] = LedgerEntry(report.shard, url, report.fingerprint, report.incomplete, parts)
            scan.totals.add(report)
        return scan


def encode_report(report: ShardReport) -> bytes:
    """The report as JSON, on one line, without credentials."""
    plain = {**asdict(report), "url": shard_id(report.url)}
    return (json.dumps(plain, separators=(",", ":")) + "\n").encode()


def decode_report(content: bytes | None) -> ShardReport:
    """The report in a ledger file.

    Raises:
        ValueError: it is not one; the message says why.
    """
    if content is None:
        raise ValueError("the file cannot be read")
    plain: Any = json.loads(content)
    if not isinstance(plain, dict):
        raise ValueError("not a JSON object")
    if absent := sorted(REQUIRED - plain.keys()):
        raise ValueError(f"fields are missing: {', '.join(absent)}")
    report = ShardReport(**{name: plain[name] for name in FIELDS if name in plain})
    try:
        report.scores_by_kind = {kind: (int(pair[0]), float(pair[1])) for kind, pair in report.scores_by_kind.items()}
        for part in report.parts:
            str(part["path"]), int(str(part["bytes"])), int(str(part["rows"])), str(part["sha256"])
        sum((*_summed(report), *report.seconds.values(), *report.flops.values()))
    except (TypeError, AttributeError, KeyError, IndexError) as error:
        raise ValueError(f"a field has a value of another type ({error})") from error
    return report


def _check(report: ShardReport, path: str, sizes: Mapping[str, int]) -> None:
    if path != report_path(file_stem(report.shard, report.url)):
        raise ValueError(f"it reports another shard, {report.shard} at {report.url}")
    for part in report.parts:
        size = sizes.get(str(part["path"]))
        if size is None:
            raise ValueError(f"its part {part['path']} is not there")
        if size != part["bytes"]:
            raise ValueError(f"its part {part['path']} has {size} bytes instead of {part['bytes']}")
