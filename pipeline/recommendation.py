"""Which setting to take, and why, in one sentence with its evidence."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.comparison import Interval, SettingResult

MARGIN = 0.01
"""One point of accuracy."""
FIDELITY = 0.95


def cheapest_first(results: Sequence[SettingResult]) -> list[SettingResult]:
    """By the median time for an image, which is what a run's machine hours, and so its money, follow."""
    return sorted(results, key=lambda result: -result.images_per_second.value)


def recommendation(results: Sequence[SettingResult], margin: float = MARGIN, fidelity: float = FIDELITY) -> str:
    """The cheapest setting that holds `margin` to dense's accuracy, or where nothing is scored `fidelity`.

    A setting holds when the low end of its 95 % interval does. Where none does, the nearest by estimate is named as
    such. `results` has dense first.
    """
    dense, others = results[0], cheapest_first(results[1:])
    scored = dense.accuracy is not None
    what = (
        f"within {100 * margin:g} point{'s' * (margin != 0.01)} of dense"
        if scored
        else (f"with {fidelity:.0%} of dense's own answers")
    )
    bounds = [(one, _measure(one, scored), -margin if scored else fidelity) for one in others]
    if not others:
        return "Only dense was measured, so there is nothing to recommend."
    holding = [one for one, measure, least in bounds if measure is not None and measure.low >= least]
    if holding and holding[0].images_per_second.value > dense.images_per_second.value:
        return f"The cheapest setting {what}, with 95 % confidence, is {_evidence(holding[0], dense, scored)}."
    if holding:
        return (
            f"Take dense: of the settings that hold {what} the cheapest, {holding[0].setting}, is no faster "
            f"({holding[0].images_per_second.value:.3g} images/s against {dense.images_per_second.value:.3g})."
        )
    near = [one for one, measure, least in bounds if measure is not None and measure.value >= least]
    if near:
        return (
            f"No setting is {what} with 95 % confidence on these samples; the cheapest by its estimate alone is "
            f"{_evidence(near[0], dense, scored)}. More samples would tell."
        )
    best = max(bounds, key=lambda bound: bound[1].value if bound[1] is not None else float("-inf"))[0]
    return f"Take dense: no setting is {what}; the best is {_evidence(best, dense, scored)}."


def _measure(result: SettingResult, scored: bool) -> Interval | None:
    return result.accuracy_difference if scored else result.fidelity


def _evidence(result: SettingResult, dense: SettingResult, scored: bool) -> str:
    speed = result.images_per_second.value / dense.images_per_second.value
    flops = sum(result.flops.values()) / sum(dense.flops.values())
    cost = f"{speed:.2f} times dense's images per second, {flops:.0%} of its FLOPs"
    if result.usd_per_million_images is not None:
        cost += f", {result.usd_per_million_images:,.0f} USD per million images"
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
