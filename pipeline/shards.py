"""One shard, read as a stream: samples, what had to be rejected, and how the shard ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import BinaryIO

from pipeline.archive import ArchiveError, Member, TarMembers
from pipeline.expected_count import expected_samples
from pipeline.limits import ReadLimits
from pipeline.records import Rejection, Sample, ShardRef
from pipeline.row_size import row_bytes
from pipeline.samples import IMAGE_EXTENSIONS, MemberGroup, read_sample, split_name
from pipeline.sources import CompressionError, SourceError, decompressed, open_source
from pipeline.tasks import END, WHOLE, Slice

__all__ = ["ReadLimits", "ShardEnd", "SourceError", "read_shard"]


@dataclass(frozen=True, slots=True)
class ShardEnd:
    """Always the last item of a shard."""

    samples: int
    """Keys met, whether they became a sample or were rejected; without a damaged remainder."""
    complete: bool
    incomplete_reason: str | None = None
    members_skipped: dict[str, int] = field(default_factory=dict)
    """Members that were not read, by why: "directory", "link", "other extension", "no extension", "too large", ..."""
    numbered: int = field(default=0, compare=False)
    """What slices count in: samples, and keys that came again."""


def read_shard(
    ref: ShardRef, prompt: str | None, limits: ReadLimits | None = None, passed: Callable[[], None] = lambda: None
) -> Iterator[Sample | Rejection | ShardEnd]:
    """Read a shard, or the slice that is its task, member by member; nothing is unpacked, nothing is written.

    Samples are neighbouring members with the same key. A key that comes again later is rejected, as (shard, key,
    question index) is an answer's identity. A damaged shard gives its whole samples, then one rejection that says how
    much was read. A shard that is missing or may not be opened gives one rejection of stage "open". With `ref.take` it
    ends after so many samples. A slice gives what the whole shard gives for these samples, and says nothing of the
    shard's end unless it reaches to it.

    Args:
        passed: called at every member, also those that a slice passes over.

    Raises:
        SourceError: remote storage failed through all attempts, or the shard is no longer what was sliced; it should
            be leased again.
    """
    limits = limits or ReadLimits()
    part = ref.task if isinstance(ref.task, Slice) else WHOLE
    with ExitStack() as stack:
        try:
            if ref.missing:
                raise FileNotFoundError
            raw = stack.enter_context(closing(open_source(ref.url, limits)))
            expected = expected_samples(ref.url, limits) if part.stop is None else None
        except SourceError:
            raise
        except OSError as error:
            reason = _why_not_opened(error)
            if part not in (WHOLE, END):
                raise SourceError(f"{reason}, and it was there when it was sliced") from error
            yield Rejection(ref.name, "", "open", reason)
            yield ShardEnd(0, complete=False, incomplete_reason=reason)
            return
        yield from _ShardReading(ref, prompt, limits, part, passed).run(raw, expected)


def _why_not_opened(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "the shard is missing"
    if isinstance(error, PermissionError):
        return "the shard may not be read (permission denied)"
    if isinstance(error, IsADirectoryError):
        return "the shard is a folder"
    raise SourceError(f"the shard cannot be opened now ({error.strerror or type(error).__name__})") from error


class _ShardReading:
    """The state of reading one shard: the keys met, what was skipped, the group in progress."""

    def __init__(
        self, ref: ShardRef, prompt: str | None, limits: ReadLimits, part: Slice, passed: Callable[[], None]
    ) -> None:
        self._ref, self._prompt, self._limits, self._part, self._passed = ref, prompt, limits, part, passed
        self._number = 0
        """Of the group in progress."""
        self._cut = False
        """Whether reading stopped before the shard's end, as was asked."""
        self._skipped: Counter[str] = Counter()
        self._keys: set[str] = set()
        self._samples = 0
        self._row_bytes = 0
        self._group: MemberGroup | None = None
        self._group_is_torn = False
        self._usual: set[str] | None = None
        """The extensions of the last whole sample: what the next one may be expected to have."""
        self._last_key = ""

    def run(self, raw: BinaryIO, expected: int | None) -> Iterator[Sample | Rejection | ShardEnd]:
        reason = None
        members: TarMembers | None = None
        try:
            members = TarMembers(decompressed(raw), self._limits)
            yield from self._read(members)
        except (ArchiveError, CompressionError, OSError) as error:
            if isinstance(error, SourceError):
                raise
            if self._group is not None and self._group_is_whole():
                yield from self._finish_group()
            reason = self._damage(str(error), members)
        else:
            if expected is not None and self._samples < expected and not self._cut:
                reason = f"the shard holds {self._samples} samples of the {expected} that its index names"
        if self._part.stop is not None:
            if self._number < self._part.stop:
                why = f" ({reason})" if reason else ""
                raise SourceError(f"the shard gives fewer than the {self._part.stop} samples it was sliced by{why}")
            reason = None  # the slice that reaches to the end says how it ends
        if reason is not None:
            yield Rejection(self._ref.name, self._last_key, "read", reason)
        yield ShardEnd(self._samples, reason is None, reason, dict(sorted(self._skipped.items())), self._number)

    def _read(self, members: TarMembers) -> Iterator[Sample | Rejection]:
        for member in members:
            self._passed()
            named = split_name(member.name)
            if named is None or member.kind == "directory" or member.name.startswith("__"):
                self._skipped[_why_unnamed(member)] += 1
                continue
            key, extension = named
            if self._group is None or self._group.key != key:
                yield from self._finish_group()
                if self._ends_before(key):
                    self._cut = True
                    return
                if self._row_bytes > self._limits.max_row_bytes:
                    raise ArchiveError(f"the rows of this shard take more than {self._limits.max_row_bytes} bytes")
                self._group = MemberGroup(key)
            unwanted = self._group.wants(member, extension, self._limits)
            if unwanted:
                self._skipped[unwanted] += 1
                continue
            if extension in IMAGE_EXTENSIONS and self._group.image is not None:
                self._skipped["second image"] += 1
            self._group_is_torn = True
            self._group.take(extension, self._content(members))
            self._group_is_torn = False
        yield from self._finish_group()

    def _content(self, members: TarMembers) -> bytes:
        if self._number >= self._part.first:
            return members.read()
        members.skip()
        return b""

    def _ends_before(self, key: str) -> bool:
        if self._part.stop is not None and self._number >= self._part.stop:
            return True
        return self._ref.take is not None and self._samples >= self._ref.take and key not in self._keys

    def _finish_group(self) -> Iterator[Sample | Rejection]:
        group, self._group = self._group, None
        if group is None or not (group.extensions or group.others):
            return
        self._last_key, self._usual = group.key, group.extensions
        wanted, self._number = self._number >= self._part.first, self._number + 1
        for item in self._items(group, wanted):
            self._row_bytes += row_bytes(item)
            yield item

    def _items(self, group: MemberGroup, wanted: bool) -> Iterator[Sample | Rejection]:
        if group.key in self._keys:
            if not wanted:
                return
            reason = f"the key {group.key!r} comes twice in this shard; a sample's members must stand side by side"
            yield Rejection(self._ref.name, group.key, "sample", reason)
            return
        self._keys.add(group.key)
        self._samples += 1
        if wanted:
            items = self._bounded(group.key, list(read_sample(self._ref.name, group, self._prompt, self._limits)))
            yield from items if not self._part.condemned else _condemned(items, self._part.condemned)

    def _bounded(self, key: str, items: list[Sample | Rejection]) -> list[Sample | Rejection]:
        """The items of a sample, or one rejection in place of what would take too much."""
        size, limit = sum(map(row_bytes, items)), self._limits.max_row_bytes // 8
        if size <= limit:
            return items
        reason = f"its questions, each with the other fields of its JSON, take {size} bytes; the limit is {limit}"
        return [Rejection(self._ref.name, key, "sample", reason)]

    def _group_is_whole(self) -> bool:
        """Whether the group before the damage can be taken for a whole sample: it has what the one before it had."""
        return (
            not self._group_is_torn
            and self._group is not None
            and self._usual is not None
            and self._group.extensions >= self._usual
        )

    def _damage(self, reason: str, members: TarMembers | None) -> str:
        if self._group is not None:
            self._last_key = self._group.key
        if members is None or members.members == 0:
            return reason
        read = f"read before it: members {members.members}, whole samples {self._samples}, bytes {members.position}"
        torn = f"; the sample {self._group.key!r} is not whole" if self._group is not None else ""
        return f"{reason}; {read}{torn}"


def _condemned(items: Iterable[Sample | Rejection], reason: str) -> Iterator[Rejection]:
    """A rejection in place of every question of a sample that must not be touched."""
    for item in items:
        if isinstance(item, Rejection):
            yield item
        else:
            for one in item.questions:
                yield Rejection(item.shard, item.key, "model", reason, one.index, one.id, one.text)


def _why_unnamed(member: Member) -> str:
    if member.kind != "file":
        return member.kind
    return "metadata" if member.name.startswith("__") else "no extension"
