"""The front against a plain definition; scales, ticks and labels of charts; overlays of patches."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.comparison import Comparison, Flow, Interval
from pipeline.report_chart import (
    BOTTOM,
    TOP,
    Chart,
    Scale,
    _away,
    _box,
    _overlap,
    brief_name,
    draw_chart,
    quality_scale,
    short,
    ticks,
)
from pipeline.report_front import Axis, cost_axes, front, quality_axis
from pipeline.report_overlay import arrows_path, dropped_path, strongest
from tests.pipeline.comparisons import GRID, comparison, flow, many, result

NUMBERS = st.integers(0, 5).map(float)


def drawn(measured: Comparison, cost: Axis) -> Chart:
    chart = draw_chart(measured, cost, quality_axis(measured))
    assert chart is not None
    return chart


@given(st.lists(st.one_of(st.none(), st.tuples(NUMBERS, NUMBERS)), max_size=12))
def test_front_is_what_nothing_beats(found: list[tuple[float, float] | None]) -> None:
    def beaten(point: tuple[float, float]) -> bool:
        return any(o and o != point and o[0] <= point[0] and o[1] >= point[1] for o in found)

    expected = {point for point in found if point and not beaten(point)}
    chosen = [found[index] for index in front(found)]
    assert set(chosen) == expected
    assert len(chosen) == len(expected)
    assert chosen == sorted(expected)


def test_whiskers_of_time_turn_the_rate_round() -> None:
    measured = comparison()
    time = cost_axes(measured)[0].measure(result("a", images_per_second=Interval(10.0, 8.0, 20.0)))
    assert time == Interval(100.0, 50.0, 125.0)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_few_round_and_inside(low: float, width: float) -> None:
    scale = Scale(low, low + width, 0, 100)
    found = ticks(scale)
    assert 1 <= len(found) <= 6
    assert all(0 <= place <= 100 for place, _ in found)
    places = [place for place, _ in found]
    assert places == sorted(places)


def test_what_was_not_measured_is_not_drawn() -> None:
    nothing: dict[str, Any] = {"accuracy": None, "fidelity": None}
    stopped: dict[str, Any] = {"images_per_second": Interval(0.0, 0.0, 0.0)}
    others = (result("random:9", accuracy=None), result("tome:9", **stopped))
    measured = comparison(result("dense", share=1.0, **nothing), *others)
    shown = [[mark.setting for mark in drawn(measured, cost).marks] for cost in cost_axes(measured)]
    assert shown == [["dense", "random:9"], ["dense", "random:9", "tome:9"], ["dense", "random:9"]]
    still = comparison(result("dense", **stopped))
    assert draw_chart(still, cost_axes(still)[0], quality_axis(still)) is None


def test_an_outlier_does_not_flatten_the_chart() -> None:
    values = [0.95, 0.94, 0.93, 0.92, 0.91, 0.1]
    scale = quality_scale([Interval(v, v - 0.01, v + 0.01) for v in values])
    assert scale.low > 0.8
    assert scale.at(0.1) == BOTTOM
    assert scale.high > 0.96
    measured = comparison(*(result(f"random:{i + 1}", v, 0.5 + i / 20) for i, v in enumerate(values)))
    marks = drawn(measured, cost_axes(measured)[0]).marks
    assert [mark.below for mark in marks] == [False] * 5 + [True]


def test_no_chart_goes_beyond_100_percent() -> None:
    scale = quality_scale([Interval(100.0, 60.0, 100.0)] * 3)
    assert ticks(scale)[-1][1] == "100"


def test_labels_collide_with_nothing() -> None:
    for count in (3, 12, 50):
        measured = many(count, 0)
        for cost in cost_axes(measured):
            marks = drawn(measured, cost).marks
            boxes = [_box(mark.label) for mark in marks if mark.label]
            assert len(boxes) >= min(3, count)
            for place, box in enumerate(boxes):
                assert not any(_overlap(box, other) for other in boxes[place + 1 :])
                assert not any(_overlap(box, (mark.x, mark.y, mark.x, mark.y)) for mark in marks)
                assert box[1] >= TOP - 14


def test_a_label_is_nearest_to_its_own_point_or_has_a_line_to_it() -> None:
    for count in (3, 12, 50):
        measured = many(count, 0)
        for cost in cost_axes(measured):
            marks = [mark for mark in drawn(measured, cost).marks if mark.on_front or mark.dense]
            for mark in marks:
                if mark.label and not mark.label.leader:
                    own = _away(_box(mark.label), mark)
                    assert own < min(_away(_box(mark.label), other) for other in marks if other is not mark)


def test_long_names_are_told_apart_by_what_differs() -> None:
    whole = "ficoco-l:16,language_layers=1"
    others = [f"{whole},{more}" for more in ("gamma=1.0", "compress=prune", "filter=random,compress=prune")]
    among = ["dense", whole, *others]
    assert [brief_name(one, among) for one in among[:4]] == [
        *("dense", whole, "ficoco-l:16,…,gamma=1.0", "ficoco-l:16,…,compress=prune")
    ]
    assert max(len(brief_name(one, among)) for one in among) == 30
    assert len({brief_name(one, among) for one in among}) == len(among)


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (1234567.0, "1,234,567"), (12.345, "12.3"), (0.001234, "0.00123"), (-2.5, "-2.50")]
)
def test_short_numbers(value: float, text: str) -> None:
    assert short(value) == text


@given(st.sets(st.integers(0, 24)))
def test_dropped_cells_are_covered_and_kept_ones_are_not(kept: set[int]) -> None:
    covered: list[int] = []
    for x, y, width, back in re.findall(r"M(\d+) (\d+)h(\d+)v1H(\d+)z", dropped_path(kept, 5)):
        assert x == back
        covered += range(int(y) * 5 + int(x), int(y) * 5 + int(x) + int(width))
    assert sorted(covered) == sorted(set(range(25)) - kept)


def test_arrows_are_the_strongest_and_start_and_end_in_the_middle_of_their_cells() -> None:
    moved = ((0, 7, 0.2), (1, 7, 0.9), (24, 7, 0.5))
    path = arrows_path(Flow("a", "", (7,), moved), 5, 2)
    assert re.findall(r"M([\d.]+ [\d.]+)L([\d.]+ [\d.]+)M", path) == [("1.5 0.5", "2.5 1.5"), ("4.5 4.5", "2.5 1.5")]


def test_of_equally_strong_moves_some_from_all_over_are_drawn() -> None:
    moved = tuple((cell, 0, 1.0) for cell in range(1, GRID * GRID))
    rows = {cell // GRID for cell, _, _ in strongest(moved, 12)}
    assert len(rows) >= 8
    assert len(strongest(flow("a").moved, 1000)) == GRID * GRID - 64
