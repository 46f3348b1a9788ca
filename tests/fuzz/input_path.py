"""The whole way of a shard's bytes to rows, with an echo in the place of the model, and what must hold of it always."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import torch

from pipeline.batching import Asked, Picture
from pipeline.images import ImageTransform
from pipeline.limits import ReadLimits
from pipeline.parquet import encode_rows
from pipeline.preparation import Preparation
from pipeline.prompts import PromptFormat
from pipeline.records import ANSWER_SCHEMA, QUARANTINE_SCHEMA, Answer, Rejection, ShardRef
from pipeline.shards import ShardEnd
from pipeline.stopwatch import Stopwatch
from pipeline.tasks import Slice
from reduction.flops import Flops
from tests.pipeline.tokenizers_of_kinds import llama_tokenizer

LIMITS = ReadLimits(max_pixels=10**6, max_questions=50, max_row_bytes=2**22, max_text_bytes=2**18)
"""Low enough to be met often; the memory tests use the defaults."""
STAGES = {"open", "read", "sample", "image", "prompt", "model"}
SIZE = 16


Echoed = tuple[tuple[int, int], Answer, Flops]


class EchoReplica:
    """Answers every question with itself."""

    def __init__(self, settings: object = None) -> None:
        tokenizer = llama_tokenizer()
        self.transform = ImageTransform(SIZE, "pad", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        self.prompts = PromptFormat(tokenizer, tokenizer.get_vocab()["<image>"], max_text_tokens=400)
        self.batch_size = 4
        self.engine = SimpleNamespace(stopwatch=Stopwatch(torch.device("cpu")))

    def answer_together(self, batches: Sequence[Sequence[Picture]]) -> Iterator[tuple[int, list[Echoed]]]:
        yield from ((index, self.answer(batch)) for index, batch in enumerate(batches))

    def answer(self, batch: Sequence[Picture]) -> list[Echoed]:
        return [(one.order, answered(one, picture), Flops()) for picture in batch for one in picture.asked]


def answered(one: Asked, picture: Picture) -> Answer:
    assert picture.pixels.shape == (SIZE, SIZE, 3)
    sample, question = one.sample, one.question
    return Answer(
        shard=sample.shard,
        key=sample.key,
        question_index=question.index,
        question_id=question.id,
        question=question.text,
        answer=question.text,
        references=question.references,
        correct=None,
        kind=question.kind,
        finish_reason="stop",
        prompt_tokens=one.prompt.text_tokens,
        visual_tokens=4,
        generated_tokens=1,
        mean_logprob=None,
        flops=0.0,
        meta=sample.meta,
    )


@dataclass
class Rows:
    answers: list[Answer] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    end: ShardEnd | None = None

    def keys(self) -> set[str]:
        return {row.key for row in self.answers}


class InputPath:
    """Reads shards as a replica does, without committing them."""

    def __init__(self, prompt: str | None = "Describe.", limits: ReadLimits = LIMITS) -> None:
        self.replica = EchoReplica()
        self.preparation = Preparation(
            self.replica.transform, self.replica.prompts, prompt=prompt, limits=limits, window=4, threads=1
        )

    def rows(self, ref: ShardRef) -> Rows:
        placed_answers, placed_rejections, end = [], [], None
        for window in self.preparation.windows(ref):
            placed_rejections += window.rejections
            placed_answers += self.replica.answer(window.pictures)
            end = window.end
        answers = [row for _, row, _ in sorted(placed_answers, key=lambda item: item[0])]
        return Rows(answers, [row for _, row in sorted(placed_rejections, key=lambda item: item[0])], end)

    def checked(self, path: Path) -> Rows:
        """The rows of a shard, once all that must hold of any shard has been seen to hold."""
        ref = ShardRef("fuzz.tar", str(path))
        rows = self.rows(ref)
        assert rows.end is not None
        check_rows(rows, rows.end)
        if rows.end.numbered > 1:
            self._check_slices(ref, rows, rows.end.numbered // 2)
        return rows

    def _check_slices(self, ref: ShardRef, whole: Rows, at: int) -> None:
        first, second = (self.rows(replace(ref, task=part)) for part in (Slice(0, at), Slice(at, None)))
        if sum(map(row_text, whole.answers)) < LIMITS.max_row_bytes // 4:  # a slice may hold what a shard may
            assert first.answers + second.answers == whole.answers
            assert first.rejections + second.rejections == whole.rejections
            assert second.end == whole.end


def row_text(row: Answer) -> int:
    return len(row.meta) + len(row.question) + len(row.key) + sum(map(len, row.references)) + 1000


def check_rows(rows: Rows, end: ShardEnd) -> None:
    """Rows are named once, in words that Parquet takes, and the end is said exactly where there is damage."""
    named = [(row.key, row.question_index) for row in rows.answers]
    named += [(row.key, row.question_index) for row in rows.rejections if row.question_index is not None]
    assert len(named) == len(set(named))
    assert {row.stage for row in rows.rejections} <= STAGES
    assert all(row.reason and "\n" not in row.reason.replace(row.key, "") for row in rows.rejections)
    assert end.complete == (end.incomplete_reason is None)
    assert sum(row.stage in ("read", "open") for row in rows.rejections) == (not end.complete)
    assert end.samples <= len({row.key for row in rows.answers} | {row.key for row in rows.rejections})
    assert all(len(row.reason) < 4000 + 3 * len(row.key) for row in rows.rejections)
    encode_rows(rows.answers, ANSWER_SCHEMA, {})
    encode_rows(rows.rejections, QUARANTINE_SCHEMA, {})
