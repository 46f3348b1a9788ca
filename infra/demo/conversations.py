"""Conversations for the second training stage: one image, several independent question-answer pairs in one sequence.

Every pair sees the text before the image, the image and itself, never another pair, and its positions start right
behind the image: each is trained exactly as it will be asked, at a fraction of the cost of a sequence per question.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from infra.demo.questions import CAPTION_PROMPT, Asked, ask
from infra.demo.scenes import TRAINING, sample_scene
from pipeline.prompts import VICUNA_SYSTEM_PROMPT

BEFORE = (
    "USER: ",
    "USER: ",
    f"{VICUNA_SYSTEM_PROMPT} USER: ",
    f"{VICUNA_SYSTEM_PROMPT} USER: ",
    "Look at the picture. USER: ",
    "Hello. USER: ",
)
BRIEFLY = "Answer the question using a single word or phrase."
AFTER = ("", "", f"\n{BRIEFLY}", " Be brief.")
IGNORED = -100
LENGTH_STEP = 32
EXTRA = {"presence": 1, "digit": 1}
"""What is slowest to learn is asked more often in training."""


def texts_for_tokenizer() -> list[str]:
    """Return every text that the tokenizer should know well."""
    rng = np.random.default_rng(0)
    texts = [*BEFORE * 3, *AFTER * 3]
    for index in range(3000):
        for one in ask(sample_scene(TRAINING, index), rng):
            texts += [f"\n{one.question} ASSISTANT: {one.answer}"]
    return texts


@dataclass(frozen=True, slots=True)
class Batch:
    prefix: Tensor
    """Token ids before the image: (prefix)."""
    suffix: Tensor
    """Token ids of all pairs, padded: (b, suffix)."""
    pair: Tensor
    """Which pair each suffix token belongs to: (b, suffix); -1 is padding."""
    offset: Tensor
    """Position of each suffix token behind the image: (b, suffix)."""
    labels: Tensor
    """The next token where it is part of an answer, else -100: (b, suffix)."""
    kinds: list[list[str]]
    """The kind of each pair."""


class Conversations:
    """Turns scenes into batches of tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self._cache: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        if text not in self._cache:
            self._cache[text] = self.tokenizer(text, add_special_tokens=False).input_ids
        return self._cache[text]

    def batch(self, rows: np.ndarray, stream: int, rng: np.random.Generator, per_kind: int, vary: bool = True) -> Batch:
        """Return the questions of scenes `rows` of a stream; with `vary`, the text around the image varies."""
        before = BEFORE[int(rng.integers(len(BEFORE)))] if vary else BEFORE[0]
        prefix = [self.tokenizer.bos_token_id, *self.ids(before)]
        asked = [ask(sample_scene(stream, int(row)), rng, per_kind, EXTRA if vary else None) for row in rows]
        after = [[AFTER[int(rng.integers(len(AFTER)))] if vary else "" for _ in pairs] for pairs in asked]
        rows_of = [self._row(pairs, tails) for pairs, tails in zip(asked, after, strict=True)]
        # Few lengths, so that kernels made for one shape serve many steps.
        longest = -(-max(len(row[0]) for row in rows_of) // LENGTH_STEP) * LENGTH_STEP

        def padded(column: int, fill: int) -> Tensor:
            return torch.tensor([row[column] + [fill] * (longest - len(row[column])) for row in rows_of])

        kinds = [[one.kind for one in pairs] for pairs in asked]
        return Batch(torch.tensor(prefix), padded(0, 0), padded(1, -1), padded(2, 0), padded(3, IGNORED), kinds)

    def _row(self, asked: list[Asked], after: list[str]) -> tuple[list[int], list[int], list[int], list[int]]:
        tokens: list[int] = []
        pair: list[int] = []
        offset: list[int] = []
        labels: list[int] = []
        for number, (one, tail) in enumerate(zip(asked, after, strict=True)):
            tail = "" if one.question == CAPTION_PROMPT else tail
            question = self.ids(f"\n{one.question}{tail} ASSISTANT:")
            answer = [*self.ids(f" {one.answer}"), self.tokenizer.eos_token_id]
            text = [*question, *answer[:-1]]
            tokens += text
            pair += [number] * len(text)
            offset += range(len(text))
            labels += [IGNORED] * (len(question) - 1) + answer
        return tokens, pair, offset, labels
