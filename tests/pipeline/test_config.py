"""The command line and the YAML file: what is taken, what wins, and what is refused in one sentence."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from pipeline.command_line import parse_command, read_yaml
from pipeline.config import RunConfig, options
from pipeline.errors import UserError
from pipeline.limits import ReadLimits
from pipeline.prompts import VICUNA_SYSTEM_PROMPT
from reduction.errors import ReductionError

LEAST = ["--input", "a.tar", "--output", "out", "--model", "m"]

GIVEN: dict[str, Any] = {
    "input": ["a.tar", "b"],
    "output": "out",
    "model": "m",
    "text_tower": "t",
    "reduction": "ficoco-vl",
    "keep_tokens": "11%",
    "split": 0.25,
    "prompt": "Describe: it",
    "system_prompt": "vicuna",
    "max_new_tokens": 7,
    "temperature": 0.5,
    "top_p": 0.9,
    "seed": 3,
    "metric": "vqa",
    "image_aspect": "crop",
    "draft_jpegs": True,
    "limit": 5,
    "replicas": 2,
    "cpus_per_replica": 0.5,
    "gpus_per_replica": 1,
    "batch_size": 4,
    "dtype": "bfloat16",
    "device": "cuda",
    "max_attempts": 2,
    "lease_timeout": 30,
    "start_timeout": 40,
    "stop_grace": 1,
    "max_quarantined": "1%",
    "max_image_bytes": "1MiB",
    "max_pixels": 1000,
    "max_text_bytes": 2048,
    "max_header_bytes": "64k",
    "max_questions": 5,
    "max_row_bytes": "1M",
    "read_attempts": 2,
    "storage_timeout": 20,
    "tracking_uri": "sqlite:///x.db",
    "experiment": "e",
    "run_name": "r",
    "parent_run": "p",
    "log_every": 2,
    "overwrite": True,
    "auto_samples": 7,
}
"""A value for every option but those in `ELSEWHERE`, none of them its default."""
ELSEWHERE = {"max_accuracy_drop", "min_fidelity", "retry_quarantined", "budget_tflops", "budget_share"}
"""Two are for another reduction, --overwrite excludes the third, and tokens to keep exclude the budgets."""


def parsed(*more: str) -> RunConfig:
    return parse_command([*LEAST, *more])


def test_defaults_are_those_of_the_contract() -> None:
    config = parsed()
    assert config.input == ("a.tar",)
    assert (config.max_new_tokens, config.metric, config.image_aspect) == (64, "none", "pad")
    assert (config.replicas, config.batch_size, config.dtype, config.device) == (None, None, "auto", "auto")
    assert config.tracking_uri == "sqlite:///mlflow.db"
    assert str(config.parsed_reduction) == "dense"
    assert pickle.loads(pickle.dumps(config)) == config


def test_every_option_can_be_given_on_the_command_line_and_in_yaml(tmp_path: Path) -> None:
    assert set(GIVEN) == set(options()) - ELSEWHERE
    words: list[str] = []
    for name, value in GIVEN.items():
        switch = "--" + name.replace("_", "-")
        for one in value if isinstance(value, list) else [value]:
            words += [switch] if one is True else [switch, str(one)]
    from_words = parse_command(words)
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps({name.replace("_", "-"): value for name, value in GIVEN.items()}))
    assert parse_command(["--config", str(file)]) == from_words
    assert from_words.max_quarantined == 0.01
    assert from_words.read_limits == ReadLimits(2**20, 2048, 2**16, 1000, 5, 2**20, 2, timeout=20)
    assert from_words.as_dict()["reduction"] == "ficoco-vl:11%,split=0.25"
    assert from_words.as_dict()["system_prompt"] == VICUNA_SYSTEM_PROMPT
    json.dumps(from_words.as_dict())


def test_the_command_line_wins_over_yaml(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("input: corpus\noutput: out\nmodel: m\nmax-new-tokens: 5\nseed: 9\n")
    config = parse_command(["--config", str(file), "--max-new-tokens", "6", "--input", "other"])
    assert (config.max_new_tokens, config.seed, config.input) == (6, 9, ("other",))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--redction", "dense"], "unknown option --redction: did you mean '--reduction'?"),
        (["--keep", "64"], "unknown option --keep"),
        (["stray"], "unexpected argument 'stray'"),
        (["--metric", "exakt"], "--metric: unknown value 'exakt'; did you mean 'exact'?"),
        (["--max-new-tokens", "0"], "--max-new-tokens is '0': give at least 1"),
        (["--max-new-tokens", "1.5"], "give a whole number"),
        (["--temperature", "nan"], "--temperature is 'nan': give a number from 0 on"),
        (["--top-p", "2"], "--top-p is '2': give 0 to 1"),
        (["--max-quarantined", "x"], "--max-quarantined is 'x': give a whole number"),
        (["--replicas", "many"], "--replicas is 'many': give a whole number"),
        (["--reduction", "ficoco-v"], "--reduction ficoco-v needs --keep-tokens"),
        (["--reduction", "ficoco-v:64", "--keep-tokens", "3"], "the tokens to keep are given twice"),
        (["--reduction", "ficoco-v:64", "--split", "0.5"], "--split divides the drop of ficoco-vl"),
        (["--keep-tokens", "0"], "--keep-tokens is '0': cannot keep 0"),
        (["--device", "cpu", "--gpus-per-replica", "1"], "--gpus-per-replica asks for GPUs and --device for the CPU"),
        (["--max-image-bytes", "big"], "--max-image-bytes is 'big': give a count of bytes, or a size such as 64MiB"),
        (["--max-text-bytes", "0"], "max_text_bytes is 0: give at least 1"),
        (["--max-pixels", "200000000"], "max_pixels is 200000000: Pillow decodes at most 178956970"),
        (["--max-pixel", "5"], "unknown option --max-pixel: did you mean '--max-pixels'?"),
        (["--model"], "expected one argument"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(more: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parsed(*more)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_reduction_names_the_nearest() -> None:
    with pytest.raises(ReductionError, match=r"unknown reduction 'ficoco-w'.*ficoco-v"):
        parsed("--reduction", "ficoco-w", "--keep-tokens", "64")


def test_what_must_be_given_is_named() -> None:
    with pytest.raises(UserError, match=r"^--output, --model must be given"):
        parse_command(["--input", "a"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("max_new_token: 5", "unknown key 'max_new_token' in .*: did you mean 'max_new_tokens'"),
        ("- a\n- b", "must map option names to values, it holds a list"),
        ("a: [", "cannot read --config"),
        ("model: [a, b]", "model: give one value, not a list"),
        ("input: {a: b}", "input: give one value, or a list of them"),
        ("overwrite: maybe", "overwrite is 'maybe': give true or false"),
        ("max-new-tokens: true", "give a whole number"),
    ],
)
def test_a_yaml_file_that_cannot_be_used_is_one_sentence(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_yaml(file)
    assert "\n" not in str(caught.value)


def test_a_yaml_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read --config .*absent"):
        read_yaml(tmp_path / "absent.yaml")


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        parsed().model = "other"  # type: ignore[misc]
