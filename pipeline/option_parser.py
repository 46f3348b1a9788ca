"""An argument parser whose complaints are one sentence, and argparse's form of the converters in `options`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NoReturn

from pipeline.errors import UserError, nearest
from pipeline.options import Convert, one_of


class OptionParser(argparse.ArgumentParser):
    """An argument parser that raises `UserError` with one sentence, naming the nearest known option.

    Args:
        instead: options that there are elsewhere -> what serves in their place here.
    """

    def __init__(self, instead: Mapping[str, str] | None = None, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)
        self._instead = dict(instead or {})

    def choose(self, option: str, choices: Collection[str], **settings: Any) -> None:
        """Add an option that takes one of `choices`; the nearest is named where it gets another value."""
        self.add_argument(option, type=typed(one_of(choices)), metavar="|".join(choices), **settings)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = sys.argv[1:] if args is None else list(args)
        # Before parsing, so that a misspelt option that must be given is reported as misspelt, not as missing.
        if misspelt := next(filter(self._is_unknown, words), None):
            raise UserError(self._unknown(misspelt))
        parsed, unknown = self.parse_known_args(words, namespace)
        if unknown:
            raise UserError(self._unknown(unknown[0]))
        return parsed

    def error(self, message: str) -> NoReturn:
        _, required, names = message.partition("arguments are required: ")
        raise UserError(f"{names} must be given" if required else message.removeprefix("argument "))

    def _known(self) -> list[str]:
        return [text for action in self._actions for text in action.option_strings if text.startswith("--")]

    def _is_unknown(self, word: str) -> bool:
        """What has a space in it is a value, to argparse too."""
        return word.startswith("--") and " " not in word and word.partition("=")[0] not in ("--", *self._known())

    def _unknown(self, argument: str) -> str:
        name = argument.partition("=")[0]
        if not name.startswith("-"):
            return f"unexpected argument {argument!r}: every value needs its option before it (see --help)"
        return f"unknown option {name}{suggestion(name, self._known(), self._instead)}"


def suggestion(name: str, known: Iterable[str], instead: Mapping[str, str] | None = None) -> str:
    """How a sentence about an unknown name ends; `instead` as in `OptionParser`."""
    elsewhere = instead or {}
    near = nearest(name, [*known, *elsewhere])
    if near is not None and near in elsewhere:
        return f": {elsewhere[near]}"
    return f": did you mean {near!r}?" if near else "; see --help for what is known"


def typed(convert: Convert) -> Callable[[str], Any]:
    """A converter as an argument's `type`; argparse would leave out why a value cannot be used."""

    def converted(text: str) -> Any:
        try:
            return convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} cannot be used, {error}") from None

    return converted
