"""What a comparison's command line and YAML file refuse, before any model is looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.command_line import parse_options, read_yaml
from pipeline.compare_budgets import check_settings
from pipeline.compare_config import INSTEAD, CompareConfig
from pipeline.config import RunConfig, options
from pipeline.errors import UserError
from reduction.shapes import NAMED

LEAST = ["--input", "a.tar", "--output", "out", "--model", "m"]


def parsed(*more: str) -> CompareConfig:
    return parse_options([*LEAST, *more], CompareConfig, "compare_reductions", "")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("ficocov", "unknown reduction 'ficocov': did you mean 'ficoco-v'?"),
        ("random:4,ficocov:64", "unknown reduction 'ficocov': did you mean 'ficoco-v'?"),
        ("auto", "auto is no setting to compare: --reduction auto is an option of caption_corpus.py"),
        ("dense,auto:64", "auto:64 is no setting to compare"),
    ],
)
def test_a_name_is_checked_before_its_number_of_tokens(settings: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        _ = parsed("--settings", settings).wanted
    assert sentence in str(caught.value)
    file = tmp_path / "grid.yaml"
    file.write_text(f"settings: [{', '.join(repr(one) for one in settings.split(','))}]\n")
    with pytest.raises(ValueError) as caught:
        _ = parsed("--settings-file", str(file)).wanted
    assert sentence in str(caught.value)


def test_a_setting_without_tokens_is_shown_with_them() -> None:
    with pytest.raises(UserError, match="how many tokens to keep: write fastv:64,filter=random, or give a budget"):
        check_settings(["fastv,filter=random"], (), NAMED["llava-1.5-7b"])


def test_every_option_that_only_the_annotation_job_has_is_answered_by_what_serves_here() -> None:
    assert set(INSTEAD) == set(options(RunConfig)) - set(options(CompareConfig))
    for name, what in INSTEAD.items():
        switch = "--" + name.replace("_", "-")
        with pytest.raises(UserError) as caught:
            parsed(switch, "64")
        assert str(caught.value) == f"unknown option {switch}: {what}"


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--keep-tokens=64", "unknown option --keep-tokens: a comparison takes the tokens to keep with each setting"),
        ("--keep-token", "as --settings ficoco-v:64"),
        ("--setting", "did you mean '--settings'?"),
        ("--max-new-token", "did you mean '--max-new-tokens'?"),
    ],
)
def test_the_nearest_option_is_told_wherever_it_belongs(option: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        parsed(option, "64")
    assert sentence in str(caught.value)


def test_a_yaml_file_written_for_the_annotation_job_is_told_the_same(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("keep-tokens: 64\n")
    with pytest.raises(UserError, match=r"unknown key 'keep_tokens' in .*run.yaml: a comparison takes the tokens"):
        read_yaml(file, CompareConfig)
