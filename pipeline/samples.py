"""The members of one sample -> what is asked about its image, or why nothing can be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from pipeline.archive import FILE, Member
from pipeline.limits import ReadLimits
from pipeline.questions import QuestionError, QuestionSheet, UnreadableQuestion, read_questions, well_formed
from pipeline.records import Question, Rejection, Sample

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
"""In order of preference where one key has several images."""
_NAMED_OTHERS = 5


def split_name(name: str) -> tuple[str, str] | None:
    """(key, extension) as webdataset defines them: the file name is split at its first dot, folders stay in the key.

    The extension is in lower case. None for a name that has no extension, or nothing before it.
    """
    folders, slash, file_name = name.rpartition("/")
    base, dot, extension = file_name.partition(".")
    return (f"{folders}{slash}{base}", extension.lower()) if base and dot else None


@dataclass
class MemberGroup:
    """The neighbouring members of one key, as far as they are of use."""

    key: str
    image: bytes | None = None
    image_extension: str = ""
    json: bytes | None = None
    text: bytes | None = None
    extensions: set[str] = field(default_factory=set)
    """Of the members of use: images, json, txt."""
    faults: dict[str, str] = field(default_factory=dict)
    """What of it could not be read ("image", "json", "txt", "sample"), and why."""
    others: list[str] = field(default_factory=list)
    """Some of the extensions that are of no use here, to be named where no image is found."""

    def wants(self, member: Member, extension: str, limits: ReadLimits) -> str | None:
        """Why the member's content is not to be read (counted under this name), or None if it is."""
        part = "image" if extension in IMAGE_EXTENSIONS else extension
        if part not in ("image", "json", "txt"):
            if len(self.others) < _NAMED_OTHERS:
                self.others.append(extension)
            return "other extension" if member.kind == FILE else member.kind
        if extension in self.extensions:
            self.faults["sample"] = f"it has two .{extension} members: which is meant is not known"
            return "repeated member"
        self.extensions.add(extension)
        if part == "image" and self._has_better_image(extension):
            return "second image"
        limit = limits.max_image_bytes if part == "image" else limits.max_text_bytes
        if member.kind != FILE:
            self._fault(part, extension, f"{member.name} is no file but a {member.kind}")
            return member.kind
        if member.size > limit:
            self._fault(part, extension, f"{member.name} has {member.size} bytes; the limit is {limit}")
            return "too large"
        return None

    def take(self, extension: str, data: bytes) -> None:
        if extension == "json":
            self.json = data
        elif extension == "txt":
            self.text = data
        else:
            self.image, self.image_extension = data, extension
            self.faults.pop("image", None)

    def _has_better_image(self, extension: str) -> bool:
        return self.image is not None and IMAGE_EXTENSIONS.index(self.image_extension) < IMAGE_EXTENSIONS.index(
            extension
        )

    def _fault(self, part: str, extension: str, reason: str) -> None:
        if part != "image" or self.image is None:
            self.faults[part] = reason


def read_sample(shard: str, group: MemberGroup, prompt: str | None, limits: ReadLimits) -> Iterator[Sample | Rejection]:
    """Yield the sample with its readable questions, if there are an image and a question, and a rejection for the rest.

    An image that cannot be had rejects each of its questions; without a readable question there is one rejection.
    """
    try:
        if "sample" in group.faults:
            raise QuestionError(group.faults["sample"])
        sheet = _ask(group, prompt, limits.max_questions)
    except QuestionError as error:
        yield Rejection(shard, group.key, "sample", str(error))
        return
    readable = tuple(question for question in sheet.questions if isinstance(question, Question))
    if group.image is not None and readable:
        yield Sample(shard, group.key, group.image, readable, sheet.meta)
    for question in sheet.questions:
        if isinstance(question, UnreadableQuestion):
            yield Rejection(shard, group.key, "sample", question.reason, question.index, None, question.text)
        elif group.image is None:
            yield Rejection(
                shard, group.key, "sample", _why_no_image(group), question.index, question.id, question.text
            )


def _ask(group: MemberGroup, prompt: str | None, most: int) -> QuestionSheet:
    """What the JSON asks or, where it asks nothing, the prompt with the caption as its reference."""
    if "json" in group.faults:
        raise QuestionError(group.faults["json"])
    sheet = QuestionSheet((), "{}")
    if group.json is not None:
        try:
            sheet = read_questions(group.json, group.key, most)
        except QuestionError as error:
            raise QuestionError(f"{group.key}.json: {error}") from None
    if sheet.questions:
        return sheet
    if prompt is None:
        raise QuestionError("no question: neither its JSON nor --prompt asks one")
    question = Question(0, f"{group.key}#0", well_formed(prompt), _caption(group))
    return QuestionSheet((question,), sheet.meta)


def _caption(group: MemberGroup) -> tuple[str, ...]:
    if "txt" in group.faults:
        raise QuestionError(group.faults["txt"])
    try:
        caption = (group.text or b"").decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise QuestionError(f"{group.key}.txt: it is not UTF-8 text (byte {error.start})") from None
    return (caption,) if caption else ()


def _why_no_image(group: MemberGroup) -> str:
    if "image" in group.faults:
        return group.faults["image"]
    reason = f"no image ({', '.join('.' + extension for extension in IMAGE_EXTENSIONS)}) under this key"
    if group.others:
        found = ", ".join(f".{extension[:40]}" for extension in group.others)
        reason += f", but {found} (a name is split at its first dot)"
    return reason
