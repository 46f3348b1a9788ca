"""Intervals, McNemar's test and ROUGE-L against plain loops, scipy and values known by hand."""

from __future__ import annotations

import random
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from pipeline.mcnemar import mcnemar
from pipeline.resampling import Ratio, intervals
from pipeline.rouge import longest_common, rouge_l


def ratio(sums: list[float], counts: list[float] | None = None, worst: float = 0.0) -> Ratio:
    return Ratio(np.array(sums, float), np.array(counts or [1] * len(sums), float), worst)


def plain_interval(sums: list[float], counts: list[float], worst: float, level: float) -> tuple[float, float]:
    """Weight images one by one, the sample's and one more."""
    chance, ends = random.Random(7), []
    mean = sum(counts) / sum(count > 0 for count in counts)
    for extreme in (worst, 1.0):
        ratios = []
        for _ in range(4000):
            top = bottom = 0.0
            for ours, count in [*zip(sums, counts, strict=True), (extreme * mean, mean)]:
                weight = chance.expovariate(1.0)
                top, bottom = top + weight * ours, bottom + weight * count
            ratios.append(top / bottom)
        ends.append(sorted(ratios))
    tail = (1 - level) / 2
    return ends[0][int(tail * len(ends[0]))], ends[1][int((1 - tail) * len(ends[1]))]


def test_intervals_are_those_of_weighting_images_one_by_one() -> None:
    chance = random.Random(1)
    counts = [float(chance.randrange(4)) for _ in range(60)]
    sums = [float(sum(chance.random() < 0.8 for _ in range(int(count)))) for count in counts]
    [found] = intervals([ratio(sums, counts, worst=-1.0)], level=0.9)
    low, high = plain_interval(sums, counts, -1.0, 0.9)
    assert found.value == pytest.approx(sum(sums) / sum(counts))
    assert found.low == pytest.approx(low, abs=0.006)
    assert found.high == pytest.approx(high, abs=0.006)


@pytest.mark.parametrize("wrong", [0, 1, 4, 30, 300])
def test_the_ends_for_right_and_wrong_are_the_exact_binomial_ones(wrong: int) -> None:
    images = 300
    [found] = intervals([ratio([0.0] * wrong + [1.0] * (images - wrong))], draws=40_000)
    exact = binomtest(images - wrong, images).proportion_ci(0.95, "exact")
    assert found.low == pytest.approx(exact.low, abs=6e-4)
    assert found.high == pytest.approx(exact.high, abs=6e-4)


@pytest.mark.parametrize(("lost", "gained"), [(0.03, 0.0), (0.03, 0.02), (0.2, 0.1)])
def test_a_bound_on_a_paired_difference_holds_as_often_as_it_says(lost: float, gained: float) -> None:
    chance, images, times = np.random.default_rng(0), 60, 500
    drawn = chance.choice([-1.0, 0.0, 1.0], (times, images), p=[lost, 1 - lost - gained, gained])
    bounds = intervals([Ratio(one, np.ones(images), worst=-1.0) for one in drawn], level=0.9)
    assert sum(bound.low <= gained - lost for bound in bounds) / times > 0.94


def test_several_questions_about_an_image_do_not_count_as_several_images() -> None:
    rights = [float(index % 5 != 0) for index in range(100)]
    alone, together = intervals([ratio(rights), ratio([8 * right for right in rights], [8.0] * 100)])
    assert together.high - together.low == pytest.approx(alone.high - alone.low, rel=0.01)


def test_a_paired_difference_is_narrower_than_the_two_it_is_of() -> None:
    chance = np.random.default_rng(0)
    dense = (chance.random(400) < 0.7).astype(float)
    reduced = np.where(chance.random(400) < 0.03, 1 - dense, dense)
    ones = np.ones(400)
    both = intervals([Ratio(dense, ones), Ratio(reduced - dense, ones, worst=-1.0)])
    assert both[1].value == pytest.approx(reduced.mean() - dense.mean())
    assert both[1].high - both[1].low < 0.6 * (both[0].high - both[0].low)


def test_an_interval_over_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        intervals([ratio([0.0, 0.0], [0.0, 0.0])])


@pytest.mark.parametrize(("gained", "lost"), [*product((0, 1, 7), (1, 3, 12)), (0, 0), (5, 5), (300, 370)])
def test_mcnemar_is_the_exact_binomial_test(gained: int, lost: int) -> None:
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(expected, rel=1e-9)


def plain_longest_common(ours: list[str], theirs: list[str]) -> int:
    lengths = [[0] * (len(theirs) + 1) for _ in range(len(ours) + 1)]
    for i, one in enumerate(ours):
        for j, other in enumerate(theirs):
            both = lengths[i][j] + 1 if one == other else max(lengths[i][j + 1], lengths[i + 1][j])
            lengths[i + 1][j + 1] = both
    return lengths[-1][-1]


@given(st.lists(st.sampled_from("abc"), max_size=20), st.lists(st.sampled_from("abcd"), max_size=20))
def test_the_longest_common_subsequence_is_that_of_the_table(ours: list[str], theirs: list[str]) -> None:
    assert longest_common(ours, theirs) == plain_longest_common(ours, theirs)


@pytest.mark.parametrize(
    ("answer", "other", "expected"),
    [
        ("police killed the gunman", "police kill the gunman", 0.75),  # Lin 2004, section 3.1
        ("the gunman kill police", "police killed the gunman", 0.5),
        ("A red cube.", "a red  cube", 1.0),
        ("", "", 1.0),
        ("", "a cube", 0.0),
        ("ein Würfel", "EIN WÜRFEL", 1.0),
    ],
)
def test_rouge_l_has_its_known_values(answer: str, other: str, expected: float) -> None:
    assert rouge_l(answer, other) == pytest.approx(expected)
