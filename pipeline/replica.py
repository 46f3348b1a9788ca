"""One loaded LLaVA with its reduction, tokenizer and image transform: batches of pictures in, answers out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from pipeline.batching import Asked, Picture, fitting_batch
from pipeline.checkpoint import Checkpoint, load_checkpoint
from pipeline.engine import Batch, Engine, OutOfDeviceMemoryError, Request
from pipeline.generation import Generation, GenerationSettings
from pipeline.images import Aspect, ImageTransform
from pipeline.kept_steps import KeptSteps
from pipeline.prompts import PromptFormat
from pipeline.records import Answer, Rejection
from pipeline.scoring import score
from pipeline.text_towers import text_tower_for
from reduction.flops import Flops, count_image, count_shared_text, count_text, kv_bytes
from reduction.settings import Reduction
from reduction.text_tower import TextTower

MOST_ROWS = {"cpu": 16, "cuda": 64}
SHARE_FOR_CACHE = 0.4
"""Of the memory that is free after loading; the rest is for activations."""
NOT_A_NUMBER = "NaN: the model's output is not a number, as float16 can cause; try --dtype bfloat16 or float32"


@dataclass(frozen=True)
class ReplicaSettings:
    """What a replica needs to know; must pickle. Options as in `RunConfig`."""

    model: str
    reduction: str = "dense"
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int | None = None
    image_aspect: Aspect = "pad"
    draft_jpegs: bool = False
    system_prompt: str | None = None
    metric: str = "none"
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    text_tower: str | None = None
    """Loaded only where the reduction chooses by the question."""


Row = tuple[tuple[int, int], Answer | Rejection, Flops]
"""A question's place in its shard, what became of it, and what that cost."""


class Replica:
    """Loads the model, and the text tower that its reduction may need, on construction, unless it is given a model
    that is loaded, which replicas may share; those that take turns may share what they keep, too.

    Raises UserError or ReductionError where that cannot work.
    """

    def __init__(
        self,
        settings: ReplicaSettings,
        checkpoint: Checkpoint | None = None,
        text_tower: TextTower | None = None,
        kept: KeptSteps | None = None,
    ) -> None:
        self.settings, reduction = settings, Reduction.parse(settings.reduction)
        self.transform = ImageTransform.from_folder(settings.model, settings.image_aspect, settings.draft_jpegs)
        checkpoint = checkpoint or load_checkpoint(settings.model, settings.device, settings.dtype)
        self.tokenizer = checkpoint.tokenizer
        self.engine = Engine(
            checkpoint.model,
            reduction,
            mean=self.transform.mean,
            std=self.transform.std,
            stop_tokens=checkpoint.stop_tokens,
            settings=settings.generation,
            text_tower=text_tower or text_tower_for([reduction], settings.text_tower, checkpoint.model),
            kept=kept,
        )
        config = checkpoint.model.config
        room = config.text_config.max_position_embeddings - settings.generation.max_new_tokens
        self.prompts = PromptFormat(
            self.tokenizer,
            config.image_token_id,
            settings.system_prompt,
            max_text_tokens=room - self.engine.shape.vision.visual_tokens,
        )
        self.prefix = self.prompts.encode("").prefix_ids
        self.batch_size = settings.batch_size or self._fitting_rows()

    def describe(self) -> dict[str, Any]:
        """What is worth knowing of a running replica."""
        engine = self.engine
        device = torch.cuda.get_device_name(engine.device) if engine.device.type == "cuda" else "cpu"
        return {
            "device": device,
            "dtype": str(engine.dtype).removeprefix("torch."),
            "batch_size": self.batch_size,
            "visual_tokens": engine.plan.visual_tokens_left,
            "parameters": sum(p.numel() for p in engine.model.parameters()),
        }

    def answer(self, batch: Sequence[Picture]) -> list[Row]:
        """Answer a batch; a question that does not fit the device's memory even alone is rejected, and so is one to
        which the model gives no numbers.
        """
        asked, requests = _asked(batch)
        try:
            return self._rows(batch, self.engine.answer(_pixels(batch), self.prefix, requests))
        except OutOfDeviceMemoryError as error:
            if len(asked) == 1:
                return [(asked[0][1].order, rejection(asked[0][1], "model", str(error)), Flops())]
        # Behind the exception, which holds what it came from.
        return [row for index, one in asked for row in self.answer([Picture(batch[index].pixels, [one])])]

    def answer_together(self, batches: Sequence[Sequence[Picture]]) -> Iterator[tuple[int, list[Row]]]:
        """Answer batches, each begun where answers of those before it have ended; yields a batch's index and rows.

        Whatever the engine raises comes through; the batches that have not been yielded are then to be answered alone.
        """
        if not self.engine.streams:
            return
        planned = [Batch(partial(_pixels, batch), _asked(batch)[1]) for batch in batches]
        for index, generations in self.engine.stream(self.prefix, planned):
            yield index, self._rows(batches[index], generations)

    def _rows(self, batch: Sequence[Picture], generations: Sequence[Generation]) -> list[Row]:
        shared = any(len(picture.asked) > 1 for picture in batch)
        rows: list[Row] = []
        for (index, one), generation in zip(_asked(batch)[0], generations, strict=True):
            if not math.isfinite(generation.mean_logprob):
                rows.append((one.order, rejection(one, "model", NOT_A_NUMBER), Flops()))
                continue
            flops = self._flops(one, generation, len(batch[index].asked), shared)
            rows.append((one.order, self._row(one, generation, flops), flops))
        return rows

    def _row(self, one: Asked, generation: Generation, flops: Flops) -> Answer:
        text = self.tokenizer.decode(generation.tokens, skip_special_tokens=True).strip()
        question = one.question
        return Answer(
            shard=one.sample.shard,
            key=one.sample.key,
            question_index=question.index,
            question_id=question.id,
            question=question.text,
            answer=text,
            references=question.references,
            correct=score(self.settings.metric, text, question.references, question.text),
            kind=question.kind,
            finish_reason=generation.finish_reason,
            prompt_tokens=one.prompt.text_tokens,
            visual_tokens=self.engine.plan_of(generation).visual_tokens_left,
            generated_tokens=generation.generated_tokens,
            mean_logprob=generation.mean_logprob,
            flops=flops.total,
            meta=one.sample.meta,
        )

    def _flops(self, one: Asked, generation: Generation, questions: int, shared: bool) -> Flops:
        """What an answer cost: its share of the image's, and its own.

        Where questions share their image's keys, its share of the layers in which they do, too. Rows whose images keep
        unequal numbers of tokens share none.
        """
        shape, plan, reduction = self.engine.shape, self.engine.plan_of(generation), self.engine.reduction
        words = len(self.prefix), one.prompt.text_tokens, generation.generated_tokens
        read = generation.question_tokens
        image = count_image(shape, plan, reduction).shared_by(questions)
        if not shared or self.engine.plan.adaptive:
            return image + count_text(shape, plan, *words, reduction, question_tokens=read)
        return image + count_shared_text(shape, plan, *words, reduction, questions, question_tokens=read)

    def _fitting_rows(self) -> int:
        """Choose a batch size whose keys and values fit; running out of memory still halves it."""
        device = self.engine.device
        most = MOST_ROWS.get(device.type, 16)
        if device.type != "cuda":
            return most
        free, _ = torch.cuda.mem_get_info(device)
        new = self.settings.generation.max_new_tokens
        row = kv_bytes(self.engine.shape, self.engine.plan, 256, new, self.engine.dtype.itemsize)
        return fitting_batch(int(SHARE_FOR_CACHE * free / row), most, self.engine.rows_held)


def _asked(batch: Sequence[Picture]) -> tuple[list[tuple[int, Asked]], list[Request]]:
    """A batch's questions, each with its picture's index, and what the engine is asked."""
    asked = [(index, one) for index, picture in enumerate(batch) for one in picture.asked]
    return asked, [Request(index, one.prompt.suffix_ids, _name(one), one.question.text) for index, one in asked]


def _pixels(batch: Sequence[Picture]) -> torch.Tensor:
    return torch.from_numpy(np.stack([picture.pixels for picture in batch]))


def rejection(one: Asked, stage: str, reason: str) -> Rejection:
    """The quarantine row of a question."""
    question = one.question
    return Rejection(one.sample.shard, one.sample.key, stage, reason, question.index, question.id, question.text)


def _name(one: Asked) -> str:
    return f"{one.sample.shard}/{one.sample.key}/{one.question.index}"
