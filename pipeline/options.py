"""Options as fields of a typed value, and what turns text or YAML into a field's value.

A converter raises ValueError, or ReductionError, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import MISSING, field
from typing import Any

from pipeline.errors import nearest
from reduction.errors import ReductionError
from reduction.notation import check_keep

Convert = Callable[[Any], Any]


def option(about: str, default: Any = MISSING, *, convert: Convert = str, choices: tuple[str, ...] = ()) -> Any:
    """A field that is an option too; without a default it must be given.

    Args:
        about: the help text.
        convert: text or YAML value -> the field's value; raises ValueError with the reason.
    """
    return field(default=default, metadata={"help": about, "convert": convert, "choices": choices})


def one_of(choices: Collection[str]) -> Convert:
    def convert(value: Any) -> str:
        if value not in choices:
            near = nearest(str(value), choices)
            raise ValueError(f"did you mean {near!r}?" if near else f"known are {', '.join(choices)}")
        return str(value)

    return convert


def count(least: int) -> Convert:
    def convert(value: Any) -> int:
        if isinstance(value, bool) or not re.fullmatch(r"[+-]?\d+", str(value).strip()):
            raise ValueError("give a whole number")
        if int(value) < least:
            raise ValueError(f"give at least {least}")
        return int(value)

    return convert


def byte_count(value: Any) -> int:
    """A count of bytes, or a size such as 64MiB; K, M and G are powers of 1024 however they are spelled."""
    match = re.fullmatch(r"(\d{1,12})\s*(?:([KMG])(?:i?B)?|B)?", str(value).strip(), flags=re.IGNORECASE)
    if match is None or isinstance(value, bool):
        raise ValueError("give a count of bytes, or a size such as 64MiB")
    return int(match[1]) * 1024 ** (" KMG".index(match[2].upper()) if match[2] else 0)


def number(least: float, most: float = float("inf")) -> Convert:
    def convert(value: Any) -> float:
        try:
            result = float("nan") if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            result = float("nan")
        if not least <= result <= most:
            raise ValueError(
                f"give a number from {least:g} on" if most == float("inf") else f"give {least:g} to {most:g}"
            )
        return result

    return convert


def auto_or(convert: Convert) -> Convert:
    return lambda value: None if value in (None, "auto") else convert(value)


def keep(value: Any) -> int | str:
    """A count of tokens, or a share such as "11%"."""
    text = str(value).strip()
    kept: int | str = int(text) if text.isdecimal() else text
    check_keep(kept)
    return kept


def count_or_share(value: Any) -> int | float:
    """An int as it is; "1%" as the float 0.01."""
    text = str(value).strip()
    if text.endswith("%"):
        return number(0, 100)(text[:-1].strip()) / 100
    return count(0)(value)


def as_value_error(convert: Callable[[str], float]) -> Convert:
    def converted(value: Any) -> float:
        try:
            return convert(str(value))
        except ReductionError as error:
            raise ValueError(str(error).partition(": ")[2].rstrip(".")) from None

    return converted


def flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError("give true or false")
