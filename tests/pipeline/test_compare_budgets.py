"""Settings brought to a cost, and what is said of those that cannot be."""

from __future__ import annotations

import pytest

from pipeline.compare_budgets import choose_settings
from pipeline.compare_config import Budget
from pipeline.errors import UserError
from reduction.budget import Request, cost_of
from reduction.settings import Reduction
from reduction.shapes import NAMED

SEVEN = NAMED["llava-1.5-7b"]


def test_each_budget_gives_each_method_its_own_number_and_what_is_out_of_reach_is_said_once() -> None:
    budgets: tuple[Budget, ...] = ((3.3, "tflops"), (1.6, "tflops"), (0.25, "share"))
    found = choose_settings(["random", "ficoco-l", "stride:9"], budgets, SEVEN, Request())
    first, *_, last = found.names
    assert (first, last) == ("dense", "stride:9")
    assert set(found.budgets) == set(found.names) - {first, last}
    for setting, solved in found.budgets.items():
        assert solved.reached == cost_of(Reduction.parse(setting), SEVEN, Request(), solved.unit)
        assert 0.97 * solved.asked < solved.reached <= solved.asked
    assert [Reduction.parse(setting).method for setting in found.budgets] == ["random"] * 3 + ["ficoco-l"]
    (sentence,) = found.out_of_reach
    assert sentence.startswith("ficoco-l cannot meet 1.6 TFLOPs and 25% of dense: it costs 2.34 TFLOPs to 8.4")


def test_nothing_in_reach_is_an_error() -> None:
    with pytest.raises(UserError, match=r"ficoco-l cannot meet a budget of 1\.6 TFLOPs on llava-1\.5-7b"):
        choose_settings(["ficoco-l"], ((1.6, "tflops"),), SEVEN, Request())
