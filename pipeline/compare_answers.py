"""The answers of several settings to the same questions, and how they compare with dense's."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipeline.comparison import Interval
from pipeline.ledger import Ledger
from pipeline.mcnemar import mcnemar
from pipeline.records import ShardRef
from pipeline.resampling import Ratio, intervals
from pipeline.rouge import rouge_l
from pipeline.storage import Output

COLUMNS = [
    *("shard", "key", "question_index", "answer", "correct", "kind"),
    *("prompt_tokens", "visual_tokens", "generated_tokens"),
]
RIGHT = 0.5
"""From this score on an answer counts as right in McNemar's test; VQA's scores lie between 0 and 1."""

Identity = tuple[str, str, int]
Rows = dict[Identity, dict[str, Any]]


@dataclass(frozen=True)
class AnswerStatistics:
    """Of one setting, with 95 % intervals over images. None where nothing could be scored, or for dense itself."""

    accuracy: Interval | None = None
    difference: Interval | None = None
    """Of the score to dense's, over the questions that both answered."""
    mcnemar_p: float | None = None
    fidelity: Interval | None = None
    """Share of answers that are dense's, letter by letter: under greedy decoding nothing but the setting differs."""
    rouge_l: Interval | None = None


def read_answers(output: Output, refs: Sequence[ShardRef]) -> Rows:
    """The committed answers to the questions of some shards."""
    rows: Rows = {}
    ledger = Ledger(output)
    for ref in refs:
        report = ledger.report(ref.name, ref.url)
        for part in report.parts if report else ():
            if str(part["path"]).startswith("data/"):
                table = pq.read_table(io.BytesIO(output.read(str(part["path"]))), columns=COLUMNS)
                rows.update({(row["shard"], row["key"], row["question_index"]): row for row in table.to_pylist()})
    return rows


def accuracy_by_kind(rows: Rows) -> dict[str, float]:
    scores: dict[str, list[float]] = {}
    for row in rows.values():
        if row["correct"] is not None and row["kind"] is not None:
            scores.setdefault(row["kind"], []).append(row["correct"])
    return {kind: sum(values) / len(values) for kind, values in sorted(scores.items())}


def answer_statistics(answers: Mapping[str, Rows], dense: str, level: float = 0.95) -> dict[str, AnswerStatistics]:
    """Compare every setting with dense; `answers` are each setting's.

    Resamples are of images and the same for all, so differences are paired. For a one-sided bound at 95 % take an
    interval's end at level 0.9.
    """
    images = {
        image: index for index, image in enumerate(dict.fromkeys(key[:2] for rows in answers.values() for key in rows))
    }
    wanted: dict[tuple[str, str], Ratio] = {}
    for setting, rows in answers.items():
        for name, ratio in _ratios(rows, answers[dense], images).items():
            if ratio.counts.any():
                wanted[setting, name] = ratio
    found = dict(zip(wanted, intervals(list(wanted.values()), level), strict=True))
    return {setting: _statistics(setting, dense, answers, found) for setting in answers}


def _statistics(
    setting: str, dense: str, answers: Mapping[str, Rows], found: Mapping[tuple[str, str], Interval]
) -> AnswerStatistics:
    accuracy = found.get((setting, "accuracy"))
    if setting == dense:
        return AnswerStatistics(accuracy, fidelity=Interval(1.0, 1.0, 1.0), rouge_l=Interval(1.0, 1.0, 1.0))
    difference = found.get((setting, "difference"))
    return AnswerStatistics(
        accuracy,
        difference,
        None if difference is None else mcnemar(*_changed(answers[setting], answers[dense])),
        found.get((setting, "fidelity")),
        found.get((setting, "rouge_l")),
    )


def _ratios(rows: Rows, dense: Rows, images: Mapping[tuple[str, str], int]) -> dict[str, Ratio]:
    """The statistics as sums and counts per image."""
    values: dict[str, list[tuple[int, float]]] = {"accuracy": [], "difference": [], "fidelity": [], "rouge_l": []}
    for key, row in rows.items():
        image, other = images[key[:2]], dense.get(key)
        if row["correct"] is not None:
            values["accuracy"].append((image, row["correct"]))
            if other is not None and other["correct"] is not None:
                values["difference"].append((image, row["correct"] - other["correct"]))
        if other is not None:
            values["fidelity"].append((image, float(row["answer"] == other["answer"])))
            values["rouge_l"].append((image, rouge_l(row["answer"], other["answer"])))
    return {name: _ratio(pairs, len(images), -1.0 if name == "difference" else 0.0) for name, pairs in values.items()}


def _ratio(pairs: Sequence[tuple[int, float]], images: int, worst: float) -> Ratio:
    where = np.array([image for image, _ in pairs], dtype=np.intp)
    what = np.array([value for _, value in pairs], dtype=np.float64)
    return Ratio(
        np.bincount(where, what, minlength=images).astype(np.float64),
        np.bincount(where, minlength=images).astype(np.float64),
        worst,
    )


def _changed(rows: Rows, dense: Rows) -> tuple[int, int]:
    """Questions that are right under the setting alone, and under dense alone."""
    gained = lost = 0
    for key, row in rows.items():
        other = dense.get(key)
        if other is None or row["correct"] is None or other["correct"] is None:
            continue
        right, was_right = row["correct"] >= RIGHT, other["correct"] >= RIGHT
        gained, lost = gained + (right and not was_right), lost + (was_right and not right)
    return gained, lost
