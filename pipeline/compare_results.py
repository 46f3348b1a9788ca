"""What was committed and timed, put together as a `Comparison`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.compare_answers import AnswerStatistics, Rows, accuracy_by_kind, answer_statistics, read_answers
from pipeline.compare_config import CompareConfig
from pipeline.compare_examples import read_examples
from pipeline.compare_folder import CompareFolder
from pipeline.compare_timing import PARTS, TOTAL, SettingTime, read_timings, setting_time
from pipeline.comparison import Comparison, SettingResult
from pipeline.recommendation import recommend
from pipeline.records import ShardRef
from pipeline.totals import Totals
from reduction.budget import Solution
from reduction.flops import kv_bytes, llm_viewer_tflops
from reduction.schedule import plan
from reduction.settings import Reduction
from reduction.shapes import ModelShape

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SPEED_NOTE = (
    "Speeds and seconds are of the model's work in one replica; reading and decoding images, which a run does "
    "meanwhile in other threads, is left out."
)
DEPENDENT_NOTE = (
    "Several questions were asked about an image: the intervals are over images, not questions, and allow for one "
    "image more of which every answer goes wrong, so few images make them wide; McNemar's test takes questions as "
    "independent, so its p values are too small."
)
SELECTION_NOTE = (
    "Each interval holds by itself; among so many settings a few look better than they are, the best ones first."
)
MANY = 10
"""Settings from which on that is said."""


def gather(
    config: CompareConfig,
    folder: CompareFolder,
    refs: Sequence[ShardRef],
    shape: ModelShape,
    budgets: Mapping[str, Solution],
) -> Comparison:
    """Read all settings' answers and times. The first setting of `folder` is dense.

    Args:
        budgets: setting -> what was asked for and reached, where it came from a budget.
    """
    dense, *_ = folder.runs
    answers = {setting: read_answers(run.output, refs) for setting, run in folder.runs.items()}
    statistics = answer_statistics(answers, dense)
    timings = [read_timings(folder.output, ref) for ref in refs]
    times = _comparable({setting: setting_time(setting, dense, timings) for setting in folder.runs}, dense)
    hardware = next((one.hardware for shard in timings for one in reversed(shard)), {})
    totals = {setting: folder.totals(setting, refs) for setting in folder.runs}
    results: list[SettingResult] = []
    for setting, time in times.items():
        made = _result(setting, answers[setting], statistics[setting], time, totals[setting], shape, hardware)
        results.append(_priced(made, time, results[0] if results else None, config, budgets.get(setting)))
    record = folder.runs[dense].record
    advice = recommend(results)
    return Comparison(
        results=tuple(results),
        samples=totals[dense].samples,
        repeats=min((len(time.totals) for time in times.values()), default=config.repeats),
        metric=config.metric,
        model=str(record["config"]["model"]),
        hardware={name: str(value) for name, value in hardware.items()},
        versions=dict(record["versions"]),
        recommendation=advice.sentence,
        recommended=advice.setting,
        usd_per_hour=config.gpu_hour_usd,
        examples=tuple(read_examples(folder.output, refs, list(folder.runs))),
        notes=tuple(_notes(answers, dense, times)),
    )


def _comparable(times: Mapping[str, SettingTime | None], dense: str) -> dict[str, SettingTime]:
    """The times that are known, those of other measurements brought to dense's latest speed."""
    latest = times[dense]
    if latest is None:
        return {}
    seconds = latest.seconds[TOTAL]
    return {setting: time.brought_to(seconds) for setting, time in times.items() if time is not None}


def _result(
    setting: str,
    rows: Rows,
    found: AnswerStatistics,
    time: SettingTime,
    totals: Totals,
    shape: ModelShape,
    hardware: Mapping[str, Any],
) -> SettingResult:
    reduction = Reduction.parse(setting)
    text, new, left = (_mean(rows, name) for name in ("prompt_tokens", "generated_tokens", "visual_tokens"))
    # What each image keeps is known now; beforehand only the most that one could.
    settled = replace(reduction, keep=max(1, round(left))) if reduction.adaptive and rows else reduction
    schedule = plan(settled, shape)
    cached = kv_bytes(shape, schedule, round(text), round(new), DTYPE_BYTES.get(str(hardware.get("dtype")), 2))
    return SettingResult(
        setting=setting,
        method=reduction.method,
        visual_tokens=left,
        vision_lengths=schedule.vision_lengths,
        decoder_lengths=schedule.decoder_lengths(round(text)),
        flops=totals.flops_per_answer,
        llm_viewer_tflops=llm_viewer_tflops(shape, schedule, round(text)),
        kv_megabytes=cached / 1e6,
        kv_megabytes_fp16=kv_bytes(shape, schedule, round(text)) / 1e6,
        questions=totals.questions,
        answers=totals.answers,
        images_per_second=time.per_second(time.images),
        answers_per_second=time.per_second(time.questions),
        seconds={part: time.seconds[part] for part in PARTS},
        peak_megabytes=time.peak_bytes / 1e6,
        accuracy=found.accuracy,
        accuracy_by_kind=accuracy_by_kind(rows),
        accuracy_difference=found.difference,
        mcnemar_p=found.mcnemar_p,
        fidelity=found.fidelity,
        rouge_l=found.rouge_l,
    )


def _priced(
    result: SettingResult,
    time: SettingTime,
    dense: SettingResult | None,
    config: CompareConfig,
    budget: Solution | None,
) -> SettingResult:
    """With what follows from dense, the price and the budget. `dense` is None for dense itself."""
    usd = None
    if config.gpu_hour_usd is not None:
        usd = config.gpu_hour_usd / 3600 * 1e6 / result.images_per_second.value
    share = None
    if dense is not None:
        faster = time.dense / time.seconds[TOTAL]
        share = faster / (sum(dense.flops.values()) / sum(result.flops.values()))
    priced = replace(result, usd_per_million_images=usd, realised_share=share)
    if budget is None:
        return priced
    tflops, of_dense = (budget.asked if budget.unit == unit else None for unit in ("tflops", "share"))
    return replace(priced, budget_tflops=tflops, budget_share=of_dense, budget_reached=budget.reached)


def _notes(answers: Mapping[str, Rows], dense: str, times: Mapping[str, SettingTime]) -> list[str]:
    notes = [SPEED_NOTE]
    if len({key[:2] for key in answers[dense]}) < len(answers[dense]):
        notes.append(DEPENDENT_NOTE)
    if len(answers) > MANY:
        notes.append(SELECTION_NOTE)
    lacking = {setting: len(answers[dense].keys() - rows.keys()) for setting, rows in answers.items()}
    notes += [
        f"{setting} left {count} questions unanswered that dense answered; they are left out of its differences."
        for setting, count in lacking.items()
        if count
    ]
    starts = {start for time in times.values() for start in time.starts}
    if len(starts) > 1:
        notes.append(
            f"The times were taken in {len(starts)} starts of the job; those of earlier ones are brought to the "
            "latest by the time of the dense model, which was taken beside them each time."
        )
    return notes


def _mean(rows: Rows, name: str) -> float:
    return sum(row[name] for row in rows.values()) / len(rows) if rows else 0.0
