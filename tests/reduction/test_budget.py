"""A budget given as cost: the count that it becomes is the best there is, and what cannot be is refused."""

from __future__ import annotations

import json

import pytest

from reduction import flops
from reduction.budget import Request, cost_of, parse_budget, solve
from reduction.cost import cost, main
from reduction.methods import METHODS
from reduction.schedule import plan
from reduction.settings import Reduction, ReductionError
from reduction.shapes import NAMED, from_config
from tests.clip_checkpoint import text_tower
from tests.tiny import tiny_config

SEVEN = NAMED["llava-1.5-7b"]
TINY = from_config(tiny_config(), text_tower=text_tower().shape)


def best(text: str, budget: float, unit: str, request: Request) -> tuple[float, int]:
    """The dearest setting within the budget, by trying every count one after the other."""
    found = (0.0, 0)
    for count in range(1, TINY.vision.visual_tokens + 1):
        method, comma, rest = text.partition(",")
        try:
            setting = Reduction.parse(f"{method}:{count}{comma}{rest}")
            schedule = plan(setting, TINY)
        except ReductionError:
            continue
        if unit == "tflops":
            price = flops.llm_viewer_tflops(TINY, schedule, request.text_tokens)
        else:
            whole = flops.count(TINY, plan(Reduction(), TINY), 2, 9, 4, Reduction()).total
            price = flops.count(TINY, schedule, 2, 9, 4, setting).total / whole
        if price <= budget:
            found = max(found, (price, count))
    return found


@pytest.mark.parametrize("unit", ["tflops", "share"])
@pytest.mark.parametrize("method", [*(name for name in METHODS if name != "dense"), "fastv,filter=random"])
def test_the_nearest_from_below(method: str, unit: str) -> None:
    request, setting = Request(9, 2, 4), Reduction.parse(method, sized=False)
    most = cost_of(setting, TINY, request, unit)  # type: ignore[arg-type]
    for share in (1.0, 0.9, 0.8, 0.7):
        expected = best(method, share * most, unit, request)
        if not expected[1]:
            with pytest.raises(ReductionError, match=f"{setting.method} cannot meet a budget of"):
                solve(setting, TINY, share * most, unit, request)  # type: ignore[arg-type]
            continue
        solved = solve(setting, TINY, share * most, unit, request)  # type: ignore[arg-type]
        assert (solved.reached, solved.reduction.keep) == expected
        assert solved.asked == share * most
        assert solved.reached <= solved.asked


@pytest.mark.parametrize(
    ("text", "tflops", "kept"),
    [("ficoco-v", 2.4, 123), ("fastv", 2.4, 93), ("random", 1.57, 60), ("random", 8.5, 576)],
)
def test_published_labels_on_the_published_shape(text: str, tflops: float, kept: int) -> None:
    assert solve(Reduction.parse(text, sized=False), SEVEN, tflops, "tflops", Request()).reduction.keep == kept


def test_what_is_out_of_reach_names_the_reachable() -> None:
    with pytest.raises(ReductionError, match=r"1\.5 TFLOPs on llava-1\.5-7b: it costs 2\.34 TFLOPs to 8\.45 TFLOPs"):
        solve(Reduction.parse("ficoco-l", sized=False), SEVEN, 1.5, "tflops", Request())
    with pytest.raises(ReductionError, match=r"a budget of 10 TFLOPs .* choose a budget between them\.$"):
        solve(Reduction.parse("fastv", sized=False), SEVEN, 10, "tflops", Request())
    with pytest.raises(ReductionError, match="dense has one cost"):
        solve(Reduction(), SEVEN, 2.4, "tflops", Request())
    with pytest.raises(ReductionError, match="keep 121, or 144"):
        plan(Reduction.parse("average-pool:127"), SEVEN)


def test_both_conventions_stand_beside_each_other() -> None:
    figures = cost(SEVEN, Reduction(), 60, 0, 32)
    assert figures["flops_llm_viewer"]["vision"] == 0
    assert figures["flops_causal"]["prefill"] < figures["flops"]["prefill"] < figures["flops_llm_viewer"]["prefill"]
    assert figures["mean_visual_tokens"] == 576
    steps = [
        flops.llm_viewer(SEVEN, plan(Reduction(), SEVEN), 60, count).decode for count in (1, 2, 3, 4)
    ]  # one more step each, over one more key in 32 layers
    assert steps[0] == 0
    assert (steps[3] - steps[2]) - (steps[2] - steps[1]) == pytest.approx(32 * (4 * 4096 + 5 * 32))


def test_the_command_finds_the_count(capsys) -> None:
    common = ["cost", "--model-shape", "llava-1.5-7b", "--reduction"]
    assert main([*common, "fastv", "--reduction", "dense", "--budget-tflops", "2.4"]) == 0
    out = capsys.readouterr().out.splitlines()
    reduced, dense = json.loads(out[-1])["settings"]
    assert reduced["reduction"] == "fastv:93"
    assert reduced["budget"]["asked"] == 2.4
    assert reduced["budget"]["reached"] == reduced["llm_viewer_tflops"]
    assert "budget" not in dense
    assert any(line == "budget: 2.4 TFLOPs asked, 2.398 TFLOPs reached" for line in out)
    assert main([*common, "random", "--budget-share", "28%"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert main([*common, "dense"]) == 0
    whole = json.loads(capsys.readouterr().out.splitlines()[-1])["flops_total"]
    assert figures["flops_total"] / whole == pytest.approx(figures["budget"]["reached"])
    assert 0.27 < figures["budget"]["reached"] <= 0.28


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["fastv:64", "--budget-tflops", "2.4"], "keeps 64 and a budget is given as well"),
        (["fastv", "--budget-tflops", "much"], "'much' is no amount"),
        (["fastv", "--budget-share", "0.28"], "'0.28' is no share"),
        (["fastv", "--budget-share", "0%"], "'0%' is no share"),
        (["fastv", "--budget-share", "1%"], "it costs"),
        (["fastv", "--budget-share", "50%", "--budget-tflops", "3"], "given twice"),
        (["fastv", "--budget-tflop", "3"], "did you mean '--budget-tflops'"),
    ],
)
def test_bad_budgets_are_one_sentence(options: list[str], words: str, capsys) -> None:
    assert main(["cost", "--model-shape", "llava-1.5-7b", "--reduction", *options]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1


def test_one_budget_or_none() -> None:
    assert parse_budget(None, None) is None
    assert parse_budget("2.4", None) == (2.4, "tflops")
    assert parse_budget(None, " 28 %") == (0.28, "share")
    with pytest.raises(ReductionError, match="given twice"):
        parse_budget("2.4", "28%")
