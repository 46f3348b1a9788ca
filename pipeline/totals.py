"""Sums over shard reports: what a whole output holds and what it cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.records import FLOP_PARTS, STAGES, ShardReport

SUMMED = (
    "samples",
    "questions",
    "answers",
    "quarantined",
    "scored",
    "correct",
    "prompt_tokens",
    "generated_tokens",
    "wall_seconds",
)
"""Fields of a `ShardReport` that add up as they are."""


@dataclass
class Totals:
    shards: int = 0
    incomplete_shards: int = 0
    """Shards known to have been missing, damaged or cut short."""
    samples: int = 0
    questions: int = 0
    answers: int = 0
    quarantined: int = 0
    scored: int = 0
    correct: float = 0.0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    wall_seconds: float = 0.0
    """Seconds spent inside shards, all replicas together."""
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    flops: dict[str, float] = field(default_factory=lambda: dict.fromkeys(FLOP_PARTS, 0.0))
    scores_by_kind: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Question kind -> (number scored, sum of scores)."""

    def add(self, report: ShardReport, times: int = 1) -> None:
        """Add a report; with `times=-1` take it out again."""
        self.shards += times
        self.incomplete_shards += times * (report.incomplete is not None)
        for name in SUMMED:
            setattr(self, name, getattr(self, name) + times * getattr(report, name))
        for stage, seconds in report.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + times * seconds
        for part, flops in report.flops.items():
            self.flops[part] = self.flops.get(part, 0.0) + times * flops
        for kind, (scored, correct) in report.scores_by_kind.items():
            before = self.scores_by_kind.get(kind, (0, 0.0))
            self.scores_by_kind[kind] = (before[0] + times * scored, before[1] + times * correct)

    @property
    def reconciled(self) -> bool:
        """Whether every question ended as an answer or in quarantine."""
        return self.questions == self.answers + self.quarantined

    @property
    def accuracy(self) -> float | None:
        """Mean score in [0, 1] over the answers that could be scored; None where there were none."""
        return self.correct / self.scored if self.scored else None

    @property
    def accuracy_by_kind(self) -> dict[str, float]:
        return {kind: correct / scored for kind, (scored, correct) in sorted(self.scores_by_kind.items()) if scored}

    @property
    def flops_per_answer(self) -> dict[str, float]:
        """Mean analytic FLOPs of an answer by part; zeros where there are no answers."""
        return {part: flops / self.answers if self.answers else 0.0 for part, flops in self.flops.items()}

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with the accuracy beside its two sums."""
        return {**asdict(self), "accuracy": self.accuracy, "accuracy_by_kind": self.accuracy_by_kind}
