"""A comparison of reduction settings as values: what was measured of each on the same questions, and what follows."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class SettingResult:
    """One setting on the comparison's samples. Differences, fidelity and realised share are against dense."""

    setting: str
    """In full notation, as `--reduction` takes it."""
    method: str
    """Its row in the table of methods."""
    visual_tokens: float
    """Left after the last reducing layer; a mean where the method decides how many per image."""
    vision_lengths: tuple[int, ...]
    decoder_lengths: tuple[int, ...]
    """Tokens that enter each layer, for a prompt of the mean number of text tokens, and where each image keeps as many
    visual tokens as it needs, for their mean number."""
    flops: dict[str, float]
    """Per answer, by part (`records.FLOP_PARTS`)."""
    llm_viewer_tflops: float
    """Of the decoder's prefill, in LLM-Viewer's convention."""
    kv_megabytes: float
    """Per question, 10^6 bytes: of the run's own type, at the end of the answer."""
    kv_megabytes_fp16: float
    """The same as papers state it: 16 bits, behind the prefill."""
    questions: int
    answers: int
    images_per_second: Interval
    """Median, least and most of the repeats: a spread, not a confidence interval."""
    answers_per_second: Interval
    seconds: dict[str, float]
    """Median over the repeats, of all samples, by part: vision, prefill, decode."""
    peak_megabytes: float
    usd_per_million_images: float | None = None
    budget_tflops: float | None = None
    budget_share: float | None = None
    """What was asked for, where tokens follow from a budget: the prefill as LLM-Viewer counts, or a share of dense."""
    budget_reached: float | None = None
    """In the same unit, for the request that the budget was solved for."""
    realised_share: float | None = None
    """(time ratio to dense) / (FLOPs ratio to dense)."""
    accuracy: Interval | None = None
    accuracy_by_kind: dict[str, float] = field(default_factory=dict)
    accuracy_difference: Interval | None = None
    """Less dense's, on the same questions."""
    mcnemar_p: float | None = None
    fidelity: Interval | None = None
    """Share of answers that are dense's own."""
    rouge_l: Interval | None = None
    """F1 against dense's answer."""

    @property
    def mean_decoder_tokens(self) -> float:
        return sum(self.decoder_lengths) / len(self.decoder_lengths)


@dataclass(frozen=True, slots=True)
class Flow:
    """What a setting did to one picture. Cells are raster indices of the patches."""

    setting: str
    answer: str
    kept: tuple[int, ...]
    moved: tuple[tuple[int, int, float], ...] = ()
    """Dropped cell, the kept cell that most of it went to, and which share of it went there."""


@dataclass(frozen=True, slots=True)
class Example:
    """One picture with its question, and what each setting made of it."""

    jpeg: bytes
    """As the model saw it: square, padded or cropped."""
    grid: int
    """Patches along a side."""
    key: str
    question: str
    references: tuple[str, ...]
    flows: tuple[Flow, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """All settings, dense first."""

    results: tuple[SettingResult, ...]
    samples: int
    repeats: int
    metric: str
    model: str
    hardware: dict[str, str]
    versions: dict[str, str]
    recommendation: str
    """In words, with its evidence."""
    recommended: str | None = None
    """The setting that the recommendation names, in full notation, to be marked."""
    usd_per_hour: float | None = None
    """Price of one replica's machine or GPU."""
    examples: tuple[Example, ...] = ()
    notes: tuple[str, ...] = ()
    """What a reader must know to judge the figures."""
