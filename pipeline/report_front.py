"""Which settings are worth their cost: the Pareto front of quality against time, FLOPs and money."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.comparison import Comparison, Interval, SettingResult

Measure = Callable[[SettingResult], Interval | None]


@dataclass(frozen=True, slots=True)
class Axis:
    """One way to count cost or quality."""

    key: str
    title: str
    unit: str
    measure: Measure


def quality_axis(comparison: Comparison) -> Axis:
    """Accuracy in percent where dense has one, else fidelity to dense in percent, which is dense's own in full."""
    dense = comparison.results[0]
    if dense.accuracy is not None:
        return Axis("accuracy", "Accuracy", "%", lambda result: percent(result.accuracy))
    own = Interval(1.0, 1.0, 1.0)
    return Axis(
        "fidelity",
        "Fidelity to dense",
        "%",
        lambda result: percent(own if result is dense and result.fidelity is None else result.fidelity),
    )


def cost_axes(comparison: Comparison) -> list[Axis]:
    """Time and FLOPs, and money where there is a price."""
    axes = [
        Axis("time", "Time", "seconds per 1,000 images", lambda result: inverse(result.images_per_second, 1000.0)),
        flops_axis(comparison),
    ]
    if any(result.usd_per_million_images is not None for result in comparison.results):
        axes.append(Axis("money", "Money", "USD per million images", _usd))
    return axes


def flops_axis(comparison: Comparison) -> Axis:
    """All parts per answer, in the unit that suits the dearest setting."""
    scale, unit = flops_unit(comparison)

    def total(result: SettingResult) -> Interval:
        value = sum(result.flops.values()) / scale
        return Interval(value, value, value)

    return Axis("flops", "FLOPs", f"{unit} per answer", total)


def flops_unit(comparison: Comparison) -> tuple[float, str]:
    """FLOPs in one unit, and its name."""
    most = max(sum(result.flops.values()) for result in comparison.results)
    return (1e12, "TFLOPs") if most >= 1e12 else (1e9, "GFLOPs")


def percent(interval: Interval | None) -> Interval | None:
    """A share as percent."""
    return interval and Interval(100 * interval.value, 100 * interval.low, 100 * interval.high)


def inverse(rate: Interval, amount: float) -> Interval | None:
    """What `amount` takes at a rate; None at a rate of zero."""
    if rate.low <= 0:
        return None
    return Interval(amount / rate.value, amount / rate.high, amount / rate.low)


def _usd(result: SettingResult) -> Interval | None:
    usd, rate = result.usd_per_million_images, result.images_per_second
    if usd is None or rate.low <= 0:
        return None
    return Interval(usd, usd * rate.value / rate.high, usd * rate.value / rate.low)


def front(points: Sequence[tuple[float, float] | None]) -> list[int]:
    """Indices of the (cost, quality) that no other is at least as good as in both and better in one, by cost.

    Of equal points the first stands for all. None is on no front.
    """
    known = [(cost, -quality, index) for index, point in enumerate(points) if point for cost, quality in [point]]
    found: list[int] = []
    best = float("inf")
    for _, worse, index in sorted(known):
        if worse < best:
            found.append(index)
            best = worse
    return found


def points(results: Sequence[SettingResult], cost: Axis, quality: Axis) -> list[tuple[float, float] | None]:
    """(cost, quality) of each result; None where either was not measured."""
    both = [(cost.measure(result), quality.measure(result)) for result in results]
    return [(x.value, y.value) if x and y else None for x, y in both]
