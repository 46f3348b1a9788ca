"""A run whose tokens to keep follow from a budget."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.budget import within_budget
from pipeline.command_line import parse_command
from pipeline.config import RunConfig
from pipeline.errors import UserError
from reduction.budget import Request, cost_of
from reduction.errors import ReductionError
from reduction.settings import Reduction
from reduction.shapes import from_folder
from tests.checkpoint import save_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("model"))


def parsed(model: Path | str, *more: str) -> RunConfig:
    return parse_command(["--input", "a.tar", "--output", "out", "--model", str(model), *more])


@pytest.mark.parametrize("text", ["ficoco-v", "fastv,filter=random", "random"])
def test_a_share_becomes_the_most_tokens_that_it_pays_for(model: Path, text: str) -> None:
    shape, request = from_folder(model), Request(60, 0, 5)
    settled, remark = within_budget(
        parsed(model, "--reduction", text, "--budget-share", "93%", "--max-new-tokens", "5")
    )
    setting = settled.parsed_reduction
    assert isinstance(setting.keep, int)
    assert cost_of(setting, shape, request, "share") <= 0.93
    more = Reduction(setting.method, setting.keep + 1, filter=setting.filter)
    assert cost_of(more, shape, request, "share") > 0.93
    assert remark["budget"]["reduction"] == str(setting)
    assert remark["budget"]["reached"] == cost_of(setting, shape, request, "share")
    given = parsed(model, "--reduction", str(setting), "--max-new-tokens", "5")
    assert settled == given, "a rerun with either is the same run"


def test_tflops_and_a_split(model: Path) -> None:
    shape = from_folder(model)
    dense = cost_of(Reduction(), shape, Request(), "tflops")
    asked = f"{0.95 * dense:.12f}"
    settled, _ = within_budget(parsed(model, "--reduction", "ficoco-vl", "--split", "0.3", "--budget-tflops", asked))
    assert settled.parsed_reduction.split == 0.3
    assert cost_of(settled.parsed_reduction, shape, Request(), "tflops") <= float(asked)


def test_without_a_budget_nothing_changes() -> None:
    config = parsed("nowhere", "--reduction", "ficoco-v:64")
    assert within_budget(config) == (config, {})
    assert "budget_tflops" not in config.as_dict()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["fastv", "--budget-share", "28%", "--budget-tflops", "2"], "given twice"),
        (["fastv", "--budget-share", "28%", "--keep-tokens", "4"], "follow from the budget"),
        (["fastv:64", "--budget-share", "28%"], "keeps 64 and a budget is given as well"),
        (["fastv", "--budget-share", "28"], "give one of the whole dense cost, such as 28%"),
        (["fastv", "--budget-tflops", "-2"], "give a number of TFLOPs above 0"),
        (["auto", "--min-fidelity", "0.9", "--budget-share", "28%"], "leave the budget out"),
    ],
)
def test_what_contradicts_a_budget_is_one_sentence(options: list[str], words: str) -> None:
    with pytest.raises((UserError, ReductionError), match=words):
        parsed("m", "--reduction", *options)


def test_a_budget_out_of_reach_names_the_reachable(model: Path) -> None:
    with pytest.raises(ReductionError, match=r"it costs .* choose a budget between them"):
        within_budget(parsed(model, "--reduction", "ficoco-l", "--budget-share", "1%"))
