"""How a reduction is written: `METHOD[:KEEP][,OPTION=VALUE]...`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from reduction.errors import ReductionError, unknown
from reduction.methods import METHODS

_SYNONYMS = {"lambda": "lam"}
_BY_PLACE = ("start", "layers")
"""Options that stand for `vision_start` and so on where a method reduces in one place."""
_SWITCH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def parse_values(text: str, types: Mapping[str, Any], *, sized: bool = True) -> dict[str, Any]:
    """The field values that `text` gives; `types` maps each field to its type.

    `sized` says that `text` must tell how many tokens to keep; otherwise it must not.
    """
    head, *options = (part.strip() for part in text.split(","))
    method, _, keep = head.partition(":")
    check_method(method)
    if not keep:
        keep, options = _keep_option(options)
    if keep and not sized:
        raise ReductionError(f"{text!r} keeps {keep} and a budget is given as well: give one of them.")
    if method != "dense" and sized and not keep:
        raise ReductionError(
            f"{method!r} does not say how many visual tokens to keep: write {method}:64 or {method}:11%."
        )
    values: dict[str, Any] = {"method": method, "keep": _parse_keep(keep) if keep else None}
    for option in options:
        name, equals, value = (part.strip() for part in option.partition("="))
        if not equals:
            raise ReductionError(f"option {option!r} of {text!r} has no value: write NAME=VALUE.")
        name = _option_name(method, name, types)
        if name in values:
            raise ReductionError(f"option {name!r} stands twice in {text!r}.")
        values[name] = _parse_value(name, value, types[name])
    return values


def check_method(name: str) -> None:
    """Raises ReductionError, naming the nearest method, unless there is one of this name."""
    if name not in METHODS:
        raise unknown("reduction", name, METHODS)


def _keep_option(options: list[str]) -> tuple[str, list[str]]:
    """`keep=64` among the options, for those who write it there."""
    given = [option for option in options if option.partition("=")[0].strip() == "keep"]
    if len(given) != 1:
        return "", options
    return given[0].partition("=")[2].strip(), [option for option in options if option != given[0]]


def _option_name(method: str, name: str, types: Mapping[str, Any]) -> str:
    name = _SYNONYMS.get(name, name)
    if name in _BY_PLACE:
        places = METHODS[method]
        if "projector" in places:
            raise ReductionError(f"{method} reduces at the projector's output, without layers: leave {name!r} out.")
        if len(places) != 1:
            raise ReductionError(f"option {name!r} does not say where: write vision_{name} or language_{name}.")
        return f"{next(iter(places))}_{name}"
    options = [option for option in types if option not in ("method", "keep")]
    if name not in options:
        raise unknown("reduction option", name, options)
    return name


def _parse_keep(text: str) -> int | str:
    return int(text) if text.isdecimal() else text.replace(" ", "")


ADAPTIVE = "adaptive"
"""How KEEP is written where the method decides for each image."""


def check_keep(keep: int | str | None) -> None:
    """Raises ReductionError unless `keep` is None, "adaptive", a count of at least 1 or a share above 0 %."""
    if keep is None or keep == ADAPTIVE:
        return
    if isinstance(keep, str):
        try:
            good = keep.endswith("%") and 0 < float(keep[:-1]) <= 100
        except ValueError:
            good = False
    else:
        good = not isinstance(keep, bool) and keep >= 1
    if not good:
        raise ReductionError(
            f"cannot keep {keep!r} visual tokens: give a count (64) or a share (11%), 1 token at least, or adaptive."
        )


def _parse_value(name: str, text: str, hint: Any) -> Any:
    kinds = get_args(hint) or (hint,)
    try:
        if bool in kinds:
            return _SWITCH[text.lower()]
        if int in kinds:
            return int(text)
        return float(text) if float in kinds else text
    except (KeyError, ValueError) as error:
        kind = "true or false" if bool in kinds else "a whole number" if int in kinds else "a number"
        raise ReductionError(f"option {name}={text!r} is not {kind}.") from error


def show(value: object) -> str:
    """An option's value as `parse_values` reads it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
