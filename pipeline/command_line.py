"""Command line and YAML file -> `RunConfig`. The command line wins; whatever is unknown is an error."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import Config, RunConfig, build, options
from pipeline.errors import UserError
from pipeline.option_parser import OptionParser, suggestion
from pipeline.options import flag, one_of

REPEATABLE = ("input", "settings")
PLACEHOLDERS = {
    **dict.fromkeys(("timeout", "grace", "every"), "SECONDS"),
    **dict.fromkeys(("replica", "replicas", "attempts", "repeats"), "COUNT"),
    "limit": "SAMPLES",
    "quarantined": "COUNT_OR_SHARE",
    "size": "QUESTIONS",
}
"""What stands for an option's value in its help, by the last word of its name; for others that word itself."""


def parse_command(arguments: Sequence[str] | None = None) -> RunConfig:
    """The configuration that a command line of `caption_corpus` asks for; `--help` prints and exits.

    Raises:
        UserError: an unknown option or key (the nearest is named), or a value that cannot be used.
        ReductionError: the reduction is unknown or out of range.
    """
    about = "Annotate a corpus of image shards with LLaVA and token reduction, on Ray."
    return parse_options(arguments, RunConfig, "caption_corpus", about)


def parse_options(arguments: Sequence[str] | None, kind: type[Config], program: str, about: str) -> Config:
    """The configuration of `kind` that a command line of `program` asks for; raises as `parse_command` does."""
    given = vars(_parser(kind, program, about).parse_args(arguments))
    path = given.pop("config", None)
    if path and "://" in path:
        raise UserError(f"--config {path} is a URL: give a file on this machine")
    from_file = read_yaml(Path(path), kind) if path else {}
    return build({**from_file, **_converted(given, "--{}", kind)}, kind)


def read_yaml(path: Path, kind: type[RunConfig] = RunConfig) -> dict[str, Any]:
    """The settings of a YAML file by field name; keys may be spelled with `-` or `_`.

    Raises:
        UserError: unreadable, not a mapping, an unknown key, or a value that cannot be used.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"cannot read --config {path}: {reason}") from error
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise UserError(f"--config {path} must map option names to values, it holds a {type(content).__name__}")
    named = {str(key).replace("-", "_"): value for key, value in content.items()}
    for name in named:
        if name not in options(kind):
            raise UserError(f"unknown key {name!r} in {path}{suggestion(name, options(kind), kind.INSTEAD)}")
    set_ones = {name: value for name, value in named.items() if value is not None}
    return _converted(set_ones, f"{path}: {{}}", kind)


def _parser(kind: type[RunConfig], program: str, about: str) -> OptionParser:
    instead = {_switch(name): what for name, what in kind.INSTEAD.items()}
    parser = OptionParser(instead, prog=program, description=about, argument_default=argparse.SUPPRESS)
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of these options; the command line wins")
    for name, one in options(kind).items():
        _add(parser, name, one)
    return parser


def _add(parser: OptionParser, name: str, one: Field[Any]) -> None:
    switch = _switch(name)
    if one.metadata["convert"] is flag:
        parser.add_argument(switch, action="store_true", help=one.metadata["help"])
        return
    default = one.default if isinstance(one.default, str | int | float) else None
    note = f" (default: {default})" if default not in (None, "") else ""
    note = " (required)" if one.default is MISSING and one.default_factory is MISSING else note
    choices, last = "|".join(one.metadata["choices"]), name.rpartition("_")[2]
    parser.add_argument(
        switch,
        dest=name,
        action="append" if name in REPEATABLE else "store",
        metavar=choices or PLACEHOLDERS.get(last, last.upper()),
        help=one.metadata["help"] + note,
    )


def _converted(given: Mapping[str, Any], label: str, kind: type[RunConfig]) -> dict[str, Any]:
    """Values as fields take them; `label` names an option in an error."""
    known, result = options(kind), {}
    for name, value in given.items():
        shown = label.format(name.replace("_", "-"))
        if name in REPEATABLE:
            values = [value] if isinstance(value, str) else value
            if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
                raise UserError(f"{shown}: give one value, or a list of them")
            result[name] = tuple(values)
            continue
        result[name] = _value(value, known[name], shown)
    return result


def _value(value: Any, one: Field[Any], shown: str) -> Any:
    if isinstance(value, list | dict):
        raise UserError(f"{shown}: give one value, not a {type(value).__name__}")
    choices = one.metadata["choices"]
    try:
        if choices:
            one_of(choices)(value)
    except ValueError as error:
        raise UserError(f"{shown}: unknown value {str(value)!r}; {error}") from None
    try:
        return one.metadata["convert"](value)
    except ValueError as error:
        raise UserError(f"{shown} is {str(value)!r}: {error}") from error


def _switch(name: str) -> str:
    return "--" + name.replace("_", "-")
