"""The questions in a sample's JSON member.

Three forms: ``question`` (one, with its answers beside it), ``questions`` (a list of strings or of objects), and
LLaVA's ``conversations`` (every human turn is a question, the reply after it the reference).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from pipeline.records import Question

_FORMS = ("question", "questions", "conversations")
_IDS = ("id", "question_id")
_REFERENCES = ("answers", "answer", "references", "reference")
_KINDS = ("kind", "type")
_HUMAN = ("human", "user")
_ASSISTANT = ("gpt", "assistant")
_UNASKED = (*_ASSISTANT, "system")


class QuestionError(ValueError):
    """The JSON, or one of its questions, cannot be read; the message says why."""


@dataclass(frozen=True, slots=True)
class UnreadableQuestion:
    index: int
    reason: str
    text: str | None = None


@dataclass(frozen=True, slots=True)
class QuestionSheet:
    questions: tuple[Question | UnreadableQuestion, ...]
    """Empty when the JSON asks nothing."""
    meta: str
    """The other fields, as a JSON object."""


def well_formed(text: str) -> str:
    """The text with every lone surrogate, which no UTF-8 writer takes, replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def read_questions(data: bytes, key: str, most: int) -> QuestionSheet:
    """Parse a sample's JSON member. A question without an id gets ``<key>#<index>``.

    NaN and infinities, which are not JSON but which exported tables hold, become null.

    Raises:
        QuestionError: it is not JSON or not an object, a name occurs twice in one object, it asks in two forms, or
            more than ``most`` questions.
    """
    try:
        fields = _parse(data)
        forms = [form for form in _FORMS if fields.get(form) is not None]
        if len(forms) > 1:
            raise QuestionError(f"it has both '{forms[0]}' and '{forms[1]}': which is meant is not known")
        form = forms[0] if forms else None
        if form not in (None, "question") and isinstance(fields[form], list):
            _refuse_many(form, fields[form], most)
        rest = {name: value for name, value in fields.items() if name not in _FORMS}
        questions, unread = _questions(form, fields, key)
        if form == "question":
            rest = unread[0]
        elif any(unread):
            rest["questions"] = unread
        meta = json.dumps(rest, ensure_ascii=False)
    except RecursionError:
        raise QuestionError("it is nested too deeply") from None
    return QuestionSheet(tuple(questions), well_formed(meta))


def _parse(data: bytes) -> dict[str, Any]:
    try:
        text = data.decode(json.detect_encoding(data))
        fields = json.loads(
            text, object_pairs_hook=_without_duplicates, parse_constant=lambda _: None, parse_float=_finite
        )
    except UnicodeDecodeError as error:
        raise QuestionError(f"it is not {error.encoding} text (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise QuestionError(f"it is not JSON ({error.msg}, line {error.lineno})") from None
    except QuestionError:
        raise
    except ValueError:
        raise QuestionError("it has a number of too many digits") from None
    if not isinstance(fields, dict):
        raise QuestionError(f"it is a JSON {_name(fields)}, not an object")
    return fields


def _refuse_many(form: str, items: list[Any], most: int) -> None:
    """Before anything is made of the questions: a few bytes of JSON each, they take a thousand times that as rows."""
    asked = sum(form == "questions" or _speaker(item) not in _UNASKED for item in items)
    if asked > most:
        raise QuestionError(f"it asks {asked} questions; the limit is {most}")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise QuestionError(f"it has '{twice[:80]}' twice in one object")
    return fields


def _finite(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None


def _questions(
    form: str | None, fields: dict[str, Any], key: str
) -> tuple[list[Question | UnreadableQuestion], list[dict[str, Any]]]:
    """The questions, and beside each the fields of its object that were not used."""
    if form is None:
        return [], []
    if form == "question":
        items: Any = [{name: value for name, value in fields.items() if name not in _FORMS[1:]}]
    elif not isinstance(fields[form], list):
        raise QuestionError(f"'{form}' is a JSON {_name(fields[form])}, not a list")
    else:
        items = fields[form] if form == "questions" else list(_turns(fields[form]))
    read = [_question(item, index, key) for index, item in enumerate(items)]
    return [question for question, _ in read], [unread for _, unread in read]


def _question(item: Any, index: int, key: str) -> tuple[Question | UnreadableQuestion, dict[str, Any]]:
    used = {"question", *_IDS, *_REFERENCES, *_KINDS}
    unread = {name: value for name, value in item.items() if name not in used} if isinstance(item, dict) else {}
    if isinstance(item, str):
        item = {"question": item}
    text = item.get("question") if isinstance(item, dict) else None
    text = well_formed(text) if isinstance(text, str) else None
    try:
        if isinstance(item, QuestionError):
            raise item
        if not isinstance(item, dict):
            raise QuestionError(f"the question is a JSON {_name(item)}, not text or an object")
        if text is None:
            raise QuestionError(f"the question is a JSON {_name(item.get('question'))}, not text")
        if not text.strip():
            raise QuestionError("the question is empty")
        question = Question(
            index=index,
            id=_text(_first(item, _IDS), "id") or f"{key}#{index}",
            text=text,
            references=tuple(_references(_first(item, _REFERENCES))),
            kind=_text(_first(item, _KINDS), "kind"),
        )
    except QuestionError as error:
        return UnreadableQuestion(index, str(error), text), unread
    return question, unread


def _turns(turns: list[Any]) -> Iterator[Any]:
    """Human turns as question objects. A reply that follows no human turn answers nothing and is passed over."""
    for turn, following in zip_longest(turns, turns[1:]):
        speaker = _speaker(turn)
        if speaker in _HUMAN:
            value = turn.get("value")
            question = value.replace("<image>", "").strip() if isinstance(value, str) else value
            replied = _speaker(following) in _ASSISTANT
            yield {"question": question, "answer": following.get("value") if replied else None}
        elif speaker not in _UNASKED:
            yield QuestionError("the turn is neither from human nor from gpt")


def _speaker(turn: Any) -> Any:
    return turn.get("from") if isinstance(turn, dict) else None


def _references(value: Any) -> Iterator[str]:
    """Text, numbers, or a list of them, or of VQA's ``{"answer": ...}``."""
    for item in value if isinstance(value, list) else [value]:
        text = _text(item.get("answer") if isinstance(item, dict) else item, "answer")
        if text is not None:
            yield text


def _first(fields: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((fields[name] for name in names if fields.get(name) is not None), None)


def _text(value: Any, what: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise QuestionError(f"its {what} is a JSON {_name(value)}, not text")
    return well_formed(str(value))


def _name(value: Any) -> str:
    names = {type(None): "null", bool: "boolean", int: "number", float: "number", str: "string", list: "list"}
    return names.get(type(value), "object")
