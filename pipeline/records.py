"""The values that travel through the pipeline, and the Arrow schemas of what it writes.

A question is identified by (shard, key, question_index): keys repeat across shards in real corpora. Every question
ends as exactly one `Answer` or one `Rejection`, so `questions = answers + rejections` holds for every shard.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.tasks import Retry, Task


@dataclass(frozen=True, slots=True)
class ShardRef:
    """One input shard: where it is and how it is called in every row about it."""

    name: str
    url: str
    size: int | None = None
    """Bytes, or None where the storage does not tell."""
    fingerprint: str = ""
    """Changes when the file's content may have changed (size with ETag or mtime); empty when the shard is missing."""
    missing: bool = False
    take: int | None = None
    """Read only this many samples, the first ones; None for all."""
    task: Task | None = None
    """What is to be done with it; None: answer and commit all of it."""
    again: Retry | None = None
    """Where given, its slices ask only what its quarantine holds."""


@dataclass(frozen=True, slots=True)
class Question:
    index: int
    """Position among the sample's questions."""
    id: str
    text: str
    references: tuple[str, ...] = ()
    kind: str | None = None
    """The question's own `kind` or `type` field, where it has one: accuracy is also reported by kind."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One image and everything asked about it. `image` is still encoded (JPEG, PNG or WebP bytes)."""

    shard: str
    key: str
    image: bytes
    questions: tuple[Question, ...]
    meta: str = "{}"
    """The sample's other JSON fields, as a JSON object string."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """A question, a sample without a readable question, or a damaged shard's remainder that got no answer.

    Each counts as one question. `question_index` is None where no single question is meant.
    """

    shard: str
    key: str
    stage: str
    """Where it failed: open, read, sample, image, prompt, model."""
    reason: str
    question_index: int | None = None
    question_id: str | None = None
    question: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    shard: str
    key: str
    question_index: int
    question_id: str
    question: str
    answer: str
    references: tuple[str, ...]
    correct: float | None
    """Score in [0, 1] by the run's metric; None where there is no reference or no metric."""
    kind: str | None
    finish_reason: str
    """`stop` (the model ended its answer) or `length` (max_new_tokens reached)."""
    prompt_tokens: int
    """Text tokens of the prompt, without the image's."""
    visual_tokens: int
    """Visual tokens left after the last reducing layer."""
    generated_tokens: int
    mean_logprob: float | None
    flops: float
    """Analytic FLOPs of this answer, all parts together (2 per multiply-add)."""
    meta: str = "{}"


STAGES = ("read", "decode_images", "vision", "prefill", "decode", "write")
FLOP_PARTS = ("vision", "projector", "prefill", "decode", "reduction")


@dataclass
class ShardReport:
    """What one finished shard cost and gave; written last, as the shard's done marker."""

    shard: str
    url: str
    fingerprint: str
    samples: int = 0
    questions: int = 0
    answers: int = 0
    quarantined: int = 0
    scored: int = 0
    correct: float = 0.0
    scores_by_kind: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Question kind -> (number scored, sum of scores)."""
    prompt_tokens: int = 0
    generated_tokens: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    wall_seconds: float = 0.0
    first_answer_seconds: float = 0.0
    """From taking the shard to its first answer; 0 where that is not known, as for one done in slices."""
    flops: dict[str, float] = field(default_factory=lambda: dict.fromkeys(FLOP_PARTS, 0.0))
    incomplete: str | None = None
    """Why the shard is known not to have been whole, or None."""
    parts: list[dict[str, object]] = field(default_factory=list)
    """The files written: path relative to the output, rows, bytes, sha256."""
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class SliceReport:
    """What came of one slice of a shard; its rows are staged."""

    answers: int
    numbered: int
    """Samples before the slice's end; for the slice that reaches to the shard's end, all that slices count."""
    window: int
    """Slices that begin at multiples of it give the same batches as the whole shard."""


ANSWER_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("question_index", pa.int32(), nullable=False),
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("references", pa.list_(pa.string()), nullable=False),
        pa.field("correct", pa.float32()),
        pa.field("kind", pa.string()),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("visual_tokens", pa.int32(), nullable=False),
        pa.field("generated_tokens", pa.int32(), nullable=False),
        pa.field("mean_logprob", pa.float32()),
        pa.field("flops", pa.float64(), nullable=False),
        pa.field("meta", pa.string(), nullable=False),
    ]
)

QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("question_index", pa.int32()),
        pa.field("question_id", pa.string()),
        pa.field("question", pa.string()),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)
