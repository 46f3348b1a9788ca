"""Which of the settings that were tried hold what was asked, so that the chance to be wrong about any is bounded.

Settings form a chain for each method, from many tokens to few. A chain is followed as long as each setting holds, so
that within it no correction for many tries is needed (fixed-sequence testing, Maurer et al. 1995). The chance to be
wrong is divided evenly among the chains; one that holds to its end leaves its part to the others (Bretz et al. 2009).
Settings that are no faster than dense would not be taken, so they are left out beforehand and cost nothing: time says
nothing of right and wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.comparison import Interval, SettingResult

Bounds = Callable[[float], Mapping[str, Interval | None]]
"""Level of two-sided intervals -> setting -> its interval, None where nothing could be compared."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting that was tried."""

    setting: str
    value: float | None
    """Accuracy less dense's, or fidelity; None where nothing could be compared."""
    bound: float | None
    """The one-sided lower bound of it that was decided by."""
    images_per_second: float
    faster: bool
    """Than dense; only such settings are judged."""
    holds: bool
    """Its bound does, and those of all before it in its chain."""


def try_chains(results: Sequence[SettingResult], bounds: Bounds, least: float, chance: float) -> list[Trial]:
    """Follow each method's chain as far as lower bounds are at least `least`. `results` has dense first.

    Args:
        chance: that any setting holds here which does not on the corpus that the samples stand for.
    """
    tried = sorted(results[1:], key=lambda one: -one.visual_tokens)
    faster = {one.setting for one in tried if _speed(one) > _speed(results[0])}
    chains: dict[str, list[str]] = {}
    for one in tried:
        if one.setting in faster:
            chains.setdefault(one.method, []).append(one.setting)
    judged, holding = _judged(chains, bounds, least, chance)
    return [_trial(one, judged.get(one.setting), one.setting in faster, one.setting in holding) for one in tried]


def _judged(
    chains: Mapping[str, Sequence[str]], bounds: Bounds, least: float, chance: float
) -> tuple[dict[str, Interval | None], set[str]]:
    """Each setting's interval at the level that it was decided at, and the settings that hold."""
    undone, judged, holding = dict(chains), dict[str, Interval | None](), set[str]()
    while True:
        found = bounds(1 - 2 * chance / max(1, len(undone)))
        judged = {**found, **{setting: judged[setting] for setting in holding}}
        for chain in undone.values():
            for setting in chain:
                interval = found.get(setting)
                if interval is None or interval.low < least:
                    break
                holding.add(setting)
        left = {method: chain for method, chain in undone.items() if not holding.issuperset(chain)}
        if not left or len(left) == len(undone):
            return judged, holding
        undone = left


def _trial(result: SettingResult, interval: Interval | None, faster: bool, holds: bool) -> Trial:
    value, low = (interval.value, interval.low) if interval else (None, None)
    return Trial(result.setting, value, low, _speed(result), faster, holds)


def _speed(result: SettingResult) -> float:
    return result.images_per_second.value
