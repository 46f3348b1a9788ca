"""Which setting to take, and why, in one sentence with its evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.comparison import Interval, SettingResult

MARGIN = 0.01
"""One point of accuracy."""
FIDELITY = 0.95


def cheapest_first(results: Sequence[SettingResult]) -> list[SettingResult]:
    """By the median time for an image, which is what a run's machine hours, and so its money, follow."""
    return sorted(results, key=_speed, reverse=True)


@dataclass(frozen=True, slots=True)
class Advice:
    sentence: str
    setting: str
    """What to take, in full notation."""


def recommend(results: Sequence[SettingResult], margin: float = MARGIN, fidelity: float = FIDELITY) -> Advice:
    """The cheapest setting that holds `margin` to dense's accuracy, or where nothing is scored `fidelity`.

    A setting holds when the low end of its 95 % interval does. Where none does, dense is to be taken, and the cheapest
    that holds by its estimate, or the best, is named beside it. `results` has dense first.
    """
    dense, others = results[0], cheapest_first(results[1:])
    if not others:
        return Advice("Only dense was measured, so there is nothing to recommend.", dense.setting)
    scored = dense.accuracy is not None
    least = -margin if scored else fidelity
    what = f"within {points(margin)} of dense" if scored else f"as dense in {fidelity:.0%} of its answers"
    measures = [(one, measure) for one in others if (measure := _measure(one, scored)) is not None]
    holding = [one for one, measure in measures if measure.low >= least]
    faster = [(one, measure) for one, measure in measures if _speed(one) > _speed(dense)]
    if holding and _speed(holding[0]) > _speed(dense):
        evidence = _evidence(holding[0], dense, scored)
        return Advice(f"The cheapest setting {what}, with 95 % confidence, is {evidence}.", holding[0].setting)
    near = [one for one, measure in faster if measure.value >= least]
    if holding and not near:
        speeds = [f"{_speed(one):.3g} images/s" for one in (holding[0], dense)]
        sentence = f"Take dense: {holding[0].setting}, the cheapest setting {what}, is no faster"
        return Advice(f"{sentence} ({speeds[0]} against {speeds[1]}).", dense.setting)
    if near:
        sentence = f"Take dense: no faster setting is {what} with 95 % confidence on these samples"
        evidence = _evidence(near[0], dense, scored)
        return Advice(
            f"{sentence}. More samples may tell: by its estimate alone the cheapest is {evidence}.", dense.setting
        )
    if not measures:
        return Advice("Take dense: no setting answered anything that could be compared.", dense.setting)
    best = max(measures, key=lambda pair: pair[1].value)[0]
    return Advice(f"Take dense: no setting is {what}; the best is {_evidence(best, dense, scored)}.", dense.setting)


def _speed(result: SettingResult) -> float:
    return result.images_per_second.value


def points(share: float) -> str:
    """A share of 1 in words: `1 point` for 0.01."""
    return f"{100 * share:g} point{'' if share == 0.01 else 's'}"


def _measure(result: SettingResult, scored: bool) -> Interval | None:
    return result.accuracy_difference if scored else result.fidelity


def _evidence(result: SettingResult, dense: SettingResult, scored: bool) -> str:
    speed = _speed(result) / _speed(dense)
    flops = sum(result.flops.values()) / sum(dense.flops.values())
    cost = f"{speed:.2f} times dense's images per second, {flops:.0%} of its FLOPs"
    if result.usd_per_million_images is not None:
        usd = result.usd_per_million_images
        cost += f", {usd:,.0f} USD per million images" if usd >= 10 else f", {usd:.2g} USD per million images"
    measure, accuracy = _measure(result, scored), result.accuracy
    if measure is None:
        return f"{result.setting}: {cost}"
    if scored and accuracy is not None and dense.accuracy is not None:
        points = (
            f"{100 * measure.value:+.1f} points, 95 % interval {100 * measure.low:+.1f} to {100 * measure.high:+.1f}"
        )
        held = f"accuracy {accuracy.value:.1%} against {dense.accuracy.value:.1%} ({points})"
    else:
        held = f"{measure.value:.1%} of its answers are dense's (95 % interval {measure.low:.1%} to {measure.high:.1%})"
    return f"{result.setting}: {held}, {cost}"
