"""Geometry of one chart of quality against cost: scales, whiskers, the front, and labels that do not collide.

Everything is in the SVG's own units; the template draws it. Nothing here makes markup, so that all text is escaped in
one place.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.comparison import Comparison, Interval
from pipeline.report_front import Axis, front, points

WIDTH, HEIGHT = 400, 330
LEFT, RIGHT, TOP, BOTTOM = 44, 388, 18, 282
"""Edges of the plot inside the picture."""
LETTER, LINE = 6.1, 14.0
"""Width of a letter and height of a line of a label, about."""
MOST = 101.0
"""Percent that a chart reaches up to."""
LONGEST = 30
"""Letters of a label; the whole setting is in its tooltip and in the table."""


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear scale from values to places."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        inside = min(max(value, self.low), self.high)
        return round(self.start + (inside - self.low) / (self.high - self.low) * (self.end - self.start), 1)


@dataclass(frozen=True, slots=True)
class Label:
    x: float
    y: float
    anchor: str
    text: str
    leader: bool
    """It stands away from its point and needs a line to it."""


@dataclass(frozen=True, slots=True)
class Mark:
    """One setting's point with its whiskers."""

    index: int
    setting: str
    x: float
    y: float
    across: tuple[float, float]
    up: tuple[float, float]
    on_front: bool
    dense: bool
    recommended: bool
    below: bool
    """Its quality lies below the chart; it is drawn at the lower edge."""
    tip: str
    label: Label | None = None


@dataclass(frozen=True, slots=True)
class Chart:
    cost: Axis
    quality: Axis
    marks: tuple[Mark, ...]
    line: str
    """The front as the points of a polyline."""
    across: tuple[tuple[float, str], ...]
    up: tuple[tuple[float, str], ...]
    """Ticks: place and text."""


def draw_chart(comparison: Comparison, cost: Axis, quality: Axis) -> Chart | None:
    """The chart of all settings that have both measures, None where no setting has.

    The scale of quality is the same whatever the cost.
    """
    results = comparison.results
    found = points(results, cost, quality)
    if not any(found):
        return None
    best = front(found)
    x = _scale_of([point[0] for point in found if point], LEFT, RIGHT, floor=0.0)
    y = quality_scale([one for result in results if (one := quality.measure(result))])
    marks = []
    for index, (result, point) in enumerate(zip(results, found, strict=True)):
        spent, reached = cost.measure(result), quality.measure(result)
        if point is None or spent is None or reached is None:
            continue
        marks.append(
            Mark(
                index,
                result.setting,
                x.at(spent.value),
                y.at(reached.value),
                (x.at(spent.low), x.at(spent.high)),
                (y.at(reached.low), y.at(reached.high)),
                on_front=index in best,
                dense=index == 0,
                recommended=result.setting == comparison.recommended,
                below=reached.value < y.low,
                tip=f"{result.setting}: {reached.value:.1f} {quality.unit}, {short(spent.value)} {cost.unit}",
            )
        )
    line = " ".join(f"{mark.x},{mark.y}" for index in best for mark in marks if mark.index == index)
    return Chart(cost, quality, place_labels(marks), line, ticks(x), ticks(y))


def _scale_of(values: Sequence[float], start: float, end: float, floor: float | None = None) -> Scale:
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    low, high = low - margin, high + margin
    if floor is not None and (low < floor or low < 0.4 * high):
        low = floor
    return Scale(low, high, start, end)


def quality_scale(found: Sequence[Interval]) -> Scale:
    """From the least value that is no outlier (Tukey's rule), to the best and its interval; in percent."""
    values = [one.value for one in found]
    least = min(values)
    if len(values) > 3:
        lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
        least = min(value for value in values if value >= lower - 1.5 * (upper - lower))
    scale = _scale_of([least, max(one.high for one in found if one.value == max(values))], BOTTOM, TOP)
    return Scale(scale.low, min(scale.high, MOST), BOTTOM, TOP)


def ticks(scale: Scale, most: int = 5) -> tuple[tuple[float, str], ...]:
    """Round numbers inside the scale, `most` at most."""
    raw = (scale.high - scale.low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(scale.low / step - 1e-9), math.floor(scale.high / step + 1e-9)
    return tuple((scale.at(step * number), f"{step * number:,.{digits}f}") for number in range(first, last + 1))


def short(value: float) -> str:
    """A number with three significant digits, thousands set apart."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


Box = tuple[float, float, float, float]


def place_labels(marks: Sequence[Mark]) -> tuple[Mark, ...]:
    """The marks with labels on the front, on dense and on what is recommended, where there is room.

    Each label takes the nearest free place where it cannot be taken for another point's; one without is left out.
    """
    taken: list[Box] = [(mark.x - 5, mark.y - 5, mark.x + 5, mark.y + 5) for mark in marks]
    order = sorted(marks, key=lambda mark: (not mark.recommended, not mark.dense, mark.x))
    labels: dict[int, Label] = {}
    for mark in order:
        if not (mark.on_front or mark.dense or mark.recommended):
            continue
        text = brief_name(mark.setting, [other.setting for other in marks])
        others = [other for other in marks if other is not mark]
        free = [
            label
            for label in _places(mark, text)
            if _inside(box := _box(label)) and not any(_overlap(box, other) for other in taken)
        ]
        if free:
            labels[mark.index] = min(free, key=lambda label: _strain(label, mark, others))
            taken.append(_box(labels[mark.index]))
    return tuple(_labelled(mark, labels.get(mark.index)) for mark in marks)


def brief_name(setting: str, among: Sequence[str]) -> str:
    """A setting without the options that all of its method in `among` share, in `LONGEST` letters."""
    if len(setting) <= LONGEST:
        return setting
    head, *options = setting.split(",")
    method = head.partition(":")[0]
    alike = [other.split(",")[1:] for other in among if other.partition(",")[0].partition(":")[0] == method]
    own = [option for option in options if not all(option in other for other in alike)]
    short_one = ",".join([head, "…", *own] if len(own) < len(options) and len(alike) > 1 else [head, *options])
    return short_one if len(short_one) <= LONGEST else "…" + short_one[1 - LONGEST :]


def _strain(label: Label, mark: Mark, others: Sequence[Mark]) -> float:
    """How hard it is to see what a label belongs to: its distance, and how many other points are as near."""
    box, own = _box(label), _away(_box(label), mark)
    nearer = sum(_away(box, other) <= own + (0 if other.on_front else -4) for other in others)
    return own + (12 + 30 * nearer if label.leader else 200 * nearer)


def _away(box: Box, mark: Mark) -> float:
    return math.hypot(max(box[0] - mark.x, 0.0, mark.x - box[2]), max(box[1] - mark.y, 0.0, mark.y - box[3]))


def _labelled(mark: Mark, label: Label | None) -> Mark:
    values = {name: getattr(mark, name) for name in Mark.__slots__}
    return Mark(**{**values, "label": label})


def _places(mark: Mark, text: str) -> list[Label]:
    near = [
        Label(mark.x - 9, mark.y - 8, "end", text, False),
        Label(mark.x + 9, mark.y + 4, "start", text, False),
        Label(mark.x - 9, mark.y + 4, "end", text, False),
        Label(mark.x + 9, mark.y + 17, "start", text, False),
        Label(mark.x, mark.y - 12, "middle", text, False),
        Label(mark.x, mark.y + 20, "middle", text, False),
        Label(mark.x + 9, mark.y - 8, "start", text, False),
        Label(mark.x - 9, mark.y + 17, "end", text, False),
    ]
    far = [
        Label(mark.x + side * away, mark.y + rise, "start" if side > 0 else "end", text, True)
        for away in (12, 24, 40, 60, 90)
        for rise in (-78, -58, -40, -24, -10, 14, 28, 44, 62, 84, 110, 140, 170)
        for side in (-1, 1)
    ]
    return near + far


def _box(label: Label) -> Box:
    width = LETTER * len(label.text)
    left = {"start": label.x, "end": label.x - width, "middle": label.x - width / 2}[label.anchor]
    return (left - 2, label.y - LINE + 3, left + width + 2, label.y + 4)


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _inside(box: Box) -> bool:
    return box[0] >= LEFT and box[2] <= RIGHT + 8 and box[1] >= TOP - 14 and box[3] <= BOTTOM
