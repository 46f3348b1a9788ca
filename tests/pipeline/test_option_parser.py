"""Command lines that cannot be used: one sentence, with the nearest name."""

from __future__ import annotations

import pytest

from pipeline.errors import UserError
from pipeline.option_parser import OptionParser, typed
from pipeline.options import count


def parser() -> OptionParser:
    made = OptionParser(prog="program")
    made.add_argument("--output", required=True)
    made.add_argument("--repeats", type=typed(count(1)), default=5)
    made.choose("--metric", ("exact", "vqa"), default="exact")
    return made


def test_what_can_be_used() -> None:
    words = ["--output", "-- a value with spaces", "--repeats=3", "--metric", "vqa"]
    assert vars(parser().parse_args(words)) == {"output": "-- a value with spaces", "repeats": 3, "metric": "vqa"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--ouput", "x"], "unknown option --ouput: did you mean '--output'?"),
        (["--output", "x", "--metirc=vqa"], "unknown option --metirc: did you mean '--metric'?"),
        (["--output", "x", "--outp", "y"], "unknown option --outp: did you mean '--output'?"),
        (["--output", "x", "--zzz"], "unknown option --zzz; see --help for what is known"),
        (["--output", "x", "y"], "unexpected argument 'y': every value needs its option before it (see --help)"),
        ([], "--output must be given"),
        (["--output"], "--output: expected one argument"),
        (["--output", "x", "--repeats", "0"], "--repeats: '0' cannot be used, give at least 1"),
        (["--output", "x", "--repeats", "two"], "--repeats: 'two' cannot be used, give a whole number"),
        (["--output", "x", "--metric", "vqq"], "--metric: 'vqq' cannot be used, did you mean 'vqa'?"),
        (["--output", "x", "--metric", "none"], "--metric: 'none' cannot be used, known are exact, vqa"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        parser().parse_args(words)
    assert str(caught.value) == sentence
