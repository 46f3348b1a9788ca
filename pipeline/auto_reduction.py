"""`--reduction auto`: a few samples of the corpus decide which setting annotates the whole of it.

The chance that the setting taken loses more than was asked, on the corpus that the samples stand for, is at most 5 %
(see `auto_trials`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from pipeline.auto_trials import Trial, try_chains
from pipeline.compare_answers import answer_statistics, read_answers
from pipeline.compare_config import DENSE, SHARED, CompareConfig
from pipeline.compare_job import CompareResult, compare
from pipeline.comparison import Interval, SettingResult
from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.job import JobParts, JobResult, run
from pipeline.listing import list_shards
from pipeline.model_check import checked_shape
from pipeline.recommendation import points
from pipeline.records import Sample
from pipeline.run_folder import read_run, refuse_comparison
from pipeline.shards import read_shard
from pipeline.shutdown import Shutdown
from pipeline.spread_samples import spread_samples
from pipeline.storage import open_output
from reduction.errors import ReductionError
from reduction.schedule import plan
from reduction.settings import Reduction
from reduction.shapes import ModelShape

METHODS = ("ficoco-v", "ficoco-l", "vispruner", "divprune", "cdpruner")
"""Those that a model cannot do (CDPruner without a text tower) are left out."""
SHARES = ("67%", "50%", "33%", "22%", "11%")
"""Of the visual tokens, kept: 386, 288, 190, 127 and 63 of 576."""
CHANCE = 0.05
"""That the setting taken loses more than was asked."""
REPEATS = 2
FOLDER = "auto"


@dataclass(frozen=True, slots=True)
class Choice:
    """What was taken and why; stands in run.json."""

    reduction: str
    sentence: str
    asked: dict[str, float]
    samples: int
    trials: tuple[Trial, ...]
    comparison: str
    """Folder or URL of the comparison, with its report."""
    mlflow_run_id: str | None


def run_auto(config: RunConfig, parts: JobParts, shutdown: Shutdown | None = None) -> JobResult:
    """Choose a setting, or find the one that an earlier start chose, and annotate with it.

    Raises:
        UserError, ReductionError: it cannot work, or the output holds a run whose reduction was given, or a comparison.
    """
    chosen = _earlier(config)
    if chosen is None:
        result = _compared(config, parts, shutdown)
        if result.comparison is None:
            return JobResult(result.exit_code, result.summary)
        chosen = asdict(_choose(config, result))
    print(chosen["sentence"], file=sys.stderr, flush=True)
    return run(settled(config, chosen["reduction"]), parts, {"chosen": chosen}, shutdown)


def settled(config: RunConfig, reduction: str) -> RunConfig:
    """The run as if `reduction` had been given."""
    return replace(config, reduction=reduction, max_accuracy_drop=None, min_fidelity=None)


def _earlier(config: RunConfig) -> dict[str, Any] | None:
    """The choice in run.json: a corpus is not annotated half under one setting and half under another."""
    output = open_output(config.output)
    record = read_run(output)
    if record is None or config.overwrite:
        # The run refuses this too, but only once the settings have been compared.
        refuse_comparison(output)
        return None
    chosen = record["config"].get("chosen")
    if chosen is None:
        raise UserError(
            f"{config.output} holds a run whose reduction was given ({record['config'].get('reduction')}): give that "
            "one instead of auto, choose another --output, or give --overwrite to remove the earlier run"
        )
    return dict(chosen)


def _compared(config: RunConfig, parts: JobParts, shutdown: Shutdown | None) -> CompareResult:
    _, shape = checked_shape(config.model, config.text_tower)
    shared = {one.name: getattr(config, one.name) for one in fields(RunConfig) if one.name in SHARED}
    comparing = CompareConfig(
        **{**shared, "output": f"{config.output.rstrip('/')}/{FOLDER}"},
        settings=grid(shape),
        samples=config.auto_samples,
        repeats=REPEATS,
    )
    if config.max_accuracy_drop is not None:
        _require_references(comparing)
    return compare(comparing, parts.cluster, shutdown)


def grid(shape: ModelShape) -> tuple[str, ...]:
    """The settings that are tried: those of `METHODS` that this model can do."""
    found = []
    for setting in (f"{method}:{share}" for method in METHODS for share in SHARES):
        try:
            plan(Reduction.parse(setting), shape)
        except ReductionError:
            continue
        found.append(setting)
    return tuple(found)


def _require_references(config: CompareConfig) -> None:
    for ref in spread_samples(list_shards(config.input, {}), config.samples, config.read_limits):
        for item in read_shard(ref, config.prompt, config.read_limits):
            if isinstance(item, Sample) and any(question.references for question in item.questions):
                return
    raise UserError(
        "no sample brings an answer to hold a model's against, so --max-accuracy-drop cannot be known: "
        "give --min-fidelity, which asks how often the answer is the dense model's own"
    )


def _choose(config: RunConfig, result: CompareResult) -> Choice:
    comparison, folder = result.comparison, result.folder
    assert comparison is not None
    assert folder is not None
    answers = {setting: read_answers(run.output, result.refs) for setting, run in folder.runs.items()}
    scored = config.max_accuracy_drop is not None
    if scored and comparison.results[0].accuracy is None:
        raise UserError(
            f"no answer has a reference that --metric {config.metric} can use, so --max-accuracy-drop cannot be known: "
            "check --metric, or give --min-fidelity"
        )

    def bounds(level: float) -> dict[str, Interval | None]:
        found = answer_statistics(answers, DENSE, level)
        return {setting: one.difference if scored else one.fidelity for setting, one in found.items()}

    if config.max_accuracy_drop is not None:
        asked, least = {"max_accuracy_drop": config.max_accuracy_drop}, -config.max_accuracy_drop / 100
    else:
        asked, least = {"min_fidelity": config.min_fidelity or 0.0}, config.min_fidelity or 0.0
    trials = try_chains(comparison.results, bounds, least, CHANCE)
    taken, sentence = decide(trials, comparison.results[0], asked, comparison.samples)
    return Choice(
        taken, sentence, asked, comparison.samples, tuple(trials), folder.output.url, result.summary["mlflow_run_id"]
    )


def decide(trials: Sequence[Trial], dense: SettingResult, asked: Mapping[str, float], samples: int) -> tuple[str, str]:
    """The fastest setting that holds and is faster than dense, or dense; and the sentence that says so."""
    scored = "max_accuracy_drop" in asked
    bound = (
        f"at most {points(asked['max_accuracy_drop'] / 100)} below dense"
        if scored
        else f"dense's own answer in {asked['min_fidelity']:.1%} of cases at least"
    )
    speed = dense.images_per_second.value
    faster = [one for one in trials if one.faster]
    if not faster:
        return DENSE, f"--reduction auto takes dense: none of {len(trials)} settings is faster on this machine"
    holding = [one for one in faster if one.holds]
    if holding:
        taken = max(holding, key=lambda one: one.images_per_second)
        return taken.setting, (
            f"--reduction auto takes {taken.setting}: {bound} with {1 - CHANCE:.0%} confidence on {samples} samples "
            f"({_shown(taken, scored)}), {taken.images_per_second / speed:.2f} times dense's images per second, the "
            f"fastest of {len(holding)} settings that hold"
        )
    known = [one for one in faster if one.bound is not None]
    nearest = max(known, key=lambda one: one.bound or 0.0, default=None)
    seen = f"; the nearest is {nearest.setting} ({_shown(nearest, scored)})" if nearest else ""
    return DENSE, (
        f"--reduction auto takes dense: none of {len(faster)} faster settings is known to be {bound} with "
        f"{1 - CHANCE:.0%} confidence on {samples} samples{seen}; more --auto-samples may tell"
    )


def _shown(trial: Trial, scored: bool) -> str:
    value, bound = trial.value or 0.0, trial.bound or 0.0
    if scored:
        return f"difference {100 * value:+.2f} points, lower bound {100 * bound:+.2f}"
    return f"measured {value:.1%}, lower bound {bound:.1%}"
