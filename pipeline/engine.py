"""The engine: pictures and questions in, answers out, in batches, with one LLaVA and one reduction.

Plain torch over Hugging Face's modules. Pictures come as uint8 and are normalised on the device; each is encoded
once however many questions it has; answers are decoded together, and rows that are done leave the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.decoder import Decoder, Prompts, pad_suffixes
from pipeline.decoding import Decoding
from pipeline.generation import Generation, GenerationSettings
from pipeline.kept_steps import KeptSteps
from pipeline.ragged import RaggedDecoder
from pipeline.step_graphs import StepGraphs, recorded_rows
from pipeline.steps import EagerSteps
from pipeline.stopwatch import Stopwatch
from reduction.schedule import Plan, plan
from reduction.settings import Reduction, ReductionError
from reduction.shapes import ModelShape, from_config
from reduction.tensors import Float, Int
from reduction.text_tower import Asked, TextTower
from reduction.vision import encode_images


class OutOfDeviceMemoryError(RuntimeError):
    """A single question does not fit the device's memory."""


@dataclass(frozen=True, slots=True)
class Request:
    """One question."""

    image: int
    """Index of its picture in the call."""
    suffix: tuple[int, ...]
    """Token ids after the image."""
    name: str = ""
    """Tells this question from others: what it samples depends on it, not on its batch."""
    question: str | None = None
    """Its text alone, for reductions that choose by it; others do without."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Questions that are prefilled together."""

    images: Callable[[], Tensor]
    """Gives the uint8 pictures (i, side, side, 3) once they are needed."""
    requests: Sequence[Request]


class Engine:
    """One model with one reduction on one device."""

    def __init__(
        self,
        model: Any,
        reduction: Reduction,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        stop_tokens: frozenset[int],
        settings: GenerationSettings | None = None,
        graphs: bool | None = None,
        text_tower: TextTower | None = None,
        kept: KeptSteps | None = None,
    ) -> None:
        """`graphs`: decode with CUDA graphs; None: on a GPU. `text_tower`: for reductions that choose by the question.
        `kept`: where the graphs are, for engines that take turns on one device; else they are the engine's own.

        Raises ReductionError where the reduction does not fit the model, or lacks a text tower.
        """
        self.model, self.reduction = model.eval(), reduction
        self.settings = settings or GenerationSettings()
        self.text_tower = text_tower
        self.shape: ModelShape = from_config(model.config, text_tower=text_tower.shape if text_tower else None)
        self.plan: Plan = plan(reduction, self.shape)
        self.device: torch.device = next(model.parameters()).device
        self.dtype: torch.dtype = next(model.parameters()).dtype
        self.stop = torch.tensor(sorted(stop_tokens), dtype=torch.long, device=self.device)
        self.mean = torch.tensor(mean, device=self.device).view(1, 3, 1, 1)
        self.std = torch.tensor(std, device=self.device).view(1, 3, 1, 1)
        kind: type[Decoder] = RaggedDecoder if self.plan.adaptive else Decoder
        self.decoder = kind(model, self.plan, reduction, self.shape.vision.visual_tokens)
        self.stopwatch = Stopwatch(self.device)
        self.graphs = self.device.type == "cuda" if graphs is None else graphs
        if self.device.type == "cuda":
            # cuDNN's attention makes a plan for each shape it meets, and here nearly every layer has its own length.
            torch.backends.cuda.enable_cudnn_sdp(False)
        self.kept = kept or KeptSteps()
        self.streams = True
        """Whether `stream` has fitted so far."""
        self.rows_limit: int | None = None
        """Most questions that fit at once, known after running out of memory."""

    @torch.inference_mode()
    def encode(self, images: Tensor, asked: Asked | None = None) -> tuple[Float[Tensor, "r n d"], Int[Tensor, "r n"]]:
        """Return projected features and where they stood, for uint8 pictures (i, side, side, 3).

        A row for each picture, or where the reduction chooses by the question for each question `asked`.
        """
        with self.stopwatch.stage("vision"):
            pixels = images.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)
            pixels = pixels.sub_(self.mean).div_(self.std).to(self.dtype)
            return encode_images(self.model, pixels, self.plan, self.reduction, asked)

    def _ask(self, requests: Sequence[Request]) -> tuple[Asked, list[int]]:
        """The questions as the reduction takes them, and how many tokens of the text tower each has."""
        assert self.text_tower is not None  # the plan says so
        texts = [request.question for request in requests]
        if None in texts:
            raise ReductionError(f"{self.reduction} chooses by the question: give every Request its question's text.")
        with self.stopwatch.stage("vision"):
            ids = self.text_tower.tokenise([text for text in texts if text is not None])
            image = torch.tensor([request.image for request in requests], device=self.device)
            return Asked(self.text_tower, self.text_tower.embed_ids(ids), image), [len(row) for row in ids]

    def answer(self, images: Tensor, prefix: Sequence[int], requests: Sequence[Request]) -> list[Generation]:
        """Answer questions about uint8 pictures (i, side, side, 3); `prefix` is the text before every image.

        When the device's memory does not suffice the batch is halved, and the size that fitted is remembered.
        Raises OutOfDeviceMemoryError when one question alone does not fit.
        """
        if not requests:
            return []
        if self.rows_limit is not None and len(requests) > self.rows_limit:
            return self._halves(images, prefix, requests)
        try:
            return self._answer(images, prefix, requests)
        except torch.OutOfMemoryError as error:
            if len(requests) == 1:
                raise OutOfDeviceMemoryError(f"one question does not fit the device's memory: {error}") from None
            self.rows_limit = len(requests) // 2
        torch.cuda.empty_cache()
        return self._halves(images, prefix, requests)

    def _halves(self, images: Tensor, prefix: Sequence[int], requests: Sequence[Request]) -> list[Generation]:
        middle = len(requests) // 2
        answers: list[Generation] = []
        for half in (requests[:middle], requests[middle:]):
            used = sorted({request.image for request in half})
            place = {image: index for index, image in enumerate(used)}
            moved = [replace(r, image=place[r.image]) for r in half]
            answers += self.answer(images[used], prefix, moved)
        return answers

    def _answer(self, images: Tensor, prefix: Sequence[int], requests: Sequence[Request]) -> list[Generation]:
        return next(generations for _, generations in self._stream(prefix, [Batch(lambda: images, requests)]))

    def stream(self, prefix: Sequence[int], batches: Sequence[Batch]) -> Iterator[tuple[int, list[Generation]]]:
        """Answer batches; yields the index of one and its answers as they are complete.

        A batch is begun as soon as half a batch is left of those before it, so that decoding seldom runs for a few
        long answers alone. It needs half as much memory again for keys and values as `answer` does.
        Raises torch.OutOfMemoryError, and is not to be tried again (`streams`), where that is too much.
        """
        try:
            yield from self._stream(prefix, batches)
        except torch.OutOfMemoryError:
            self.streams = False
            raise

    def rows_held(self, batch: int) -> int:
        """Rows that the cache of keys and values has where batches of `batch` questions are streamed."""
        rows = _streamed_rows(batch)
        return recorded_rows(rows) if self.graphs else rows

    def _stream(self, prefix: Sequence[int], batches: Sequence[Batch]) -> Iterator[tuple[int, list[Generation]]]:
        try:
            yield from self._batches(prefix, batches)
        except Exception:
            self.kept.clear()  # it takes memory, and what broke off while it was recorded cannot be recorded into
            raise

    def _batches(self, prefix: Sequence[int], batches: Sequence[Batch]) -> Iterator[tuple[int, list[Generation]]]:
        sizes = [len(batch.requests) for batch in batches]
        rows, half = min(sum(sizes), _streamed_rows(max(sizes))), max(sizes) // 2
        room = max(len(r.suffix) for batch in batches for r in batch.requests) + self.settings.max_new_tokens
        steps = self._steps(rows, self.decoder.base(len(prefix)), self.decoder.room(room))
        decoding = Decoding(steps, self.settings, self.stop)
        places = [(number, row) for number, size in enumerate(sizes) for row in range(size)]
        answers: dict[int, dict[int, Generation]] = {number: {} for number in range(len(batches))}
        facts: list[dict[str, Any]] = []
        entered = 0
        while entered < len(batches) or len(decoding):
            while entered < len(batches) and len(decoding) <= half and len(decoding) + sizes[entered] <= rows:
                facts += self._enter(decoding, prefix, batches[entered], sum(sizes[:entered]))
                entered += 1
            for tag, generation in self._advance(decoding, half if entered < len(batches) else len(decoding) // 2):
                number, row = places[tag]
                answers[number][row] = replace(generation, **facts[tag])
                if len(answers[number]) == sizes[number]:
                    yield number, [answers[number][row] for row in range(sizes[number])]

    @torch.inference_mode()
    def _enter(self, decoding: Decoding, prefix: Sequence[int], batch: Batch, first_tag: int) -> list[dict[str, Any]]:
        """Prefill a batch, and return what its generations must say of each row besides the answer."""
        requests, asks = batch.requests, [request.image for request in batch.requests]
        facts: list[dict[str, Any]] = [{} for _ in requests]
        if self.plan.by_question:
            asked, read = self._ask(requests)
            visual, kept = self.encode(batch.images(), asked)
            asks, facts = list(range(len(requests))), [{"question_tokens": count} for count in read]
        else:
            visual, kept = self.encode(batch.images())
        with self.stopwatch.stage("prefill"):
            suffix, lengths = pad_suffixes([request.suffix for request in requests], self.device)
            image = torch.tensor(asks, device=self.device)
            ids = torch.tensor(list(prefix), device=self.device, dtype=torch.long)
            prompts = Prompts(ids, visual, kept, suffix, lengths, image)
            logits = self.decoder.prefill(prompts, decoding.places(len(requests)))
            own = self.decoder.own_visual(prompts)
            entries = [n + len(request.suffix) for n, request in zip(own, requests, strict=True)]
            tags = range(first_tag, first_tag + len(requests))
            decoding.join(tags, entries, [r.name for r in requests], logits)
            if self.plan.adaptive:
                facts = [{**fact, "visual_tokens": count} for fact, count in zip(facts, own, strict=True)]
            return facts

    @torch.inference_mode()
    def _advance(self, decoding: Decoding, most_left: int) -> list[tuple[int, Generation]]:
        """One step for the rows that are not done, and the answers of those that leave."""
        with self.stopwatch.stage("decode"):
            finished = decoding.finished(most_left)
            if len(decoding):
                decoding.advance()
            return finished

    def plan_of(self, generation: Generation) -> Plan:
        """The plan by which an answer was generated: its image's own where that is decided for each image."""
        if generation.visual_tokens is None:
            return self.plan
        return plan(replace(self.reduction, keep=generation.visual_tokens), self.shape)

    def _steps(self, rows: int, base: tuple[int, ...], room: int) -> EagerSteps | StepGraphs:
        if not self.graphs:
            return EagerSteps(self.decoder, rows, base, room)
        return self.kept.begin(self.decoder, rows, base, room, self.stopwatch)


def _streamed_rows(batch: int) -> int:
    """Rows under way at most: the next batch begins where half of one is left."""
    return batch + batch // 2
