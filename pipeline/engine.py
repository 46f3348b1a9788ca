"""The engine: pictures and questions in, answers out, in batches, with one LLaVA and one reduction.

Plain torch over Hugging Face's modules. Pictures come as uint8 and are normalised on the device; each is encoded
once however many questions it has; answers are decoded together, and rows that are done leave the batch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.decoder import Decoder, Prompts, pad_suffixes
from pipeline.generation import Generation, GenerationSettings, Sampler
from pipeline.step_graphs import StepGraphs
from pipeline.steps import EagerSteps
from reduction.schedule import Plan, plan
from reduction.settings import Reduction
from reduction.shapes import ModelShape, from_config
from reduction.tensors import Float, Int
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


class Stopwatch:
    """Seconds spent per stage; on an accelerator each stage ends with a synchronisation."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


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
    ) -> None:
        """`graphs`: decode with CUDA graphs; None: on a GPU."""
        self.model, self.reduction = model.eval(), reduction
        self.settings = settings or GenerationSettings()
        self.shape: ModelShape = from_config(model.config)
        self.plan: Plan = plan(reduction, self.shape)
        self.device: torch.device = next(model.parameters()).device
        self.dtype: torch.dtype = next(model.parameters()).dtype
        self.stop = torch.tensor(sorted(stop_tokens), device=self.device)
        self.mean = torch.tensor(mean, device=self.device).view(1, 3, 1, 1)
        self.std = torch.tensor(std, device=self.device).view(1, 3, 1, 1)
        self.decoder = Decoder(model, self.plan, reduction, self.shape.vision.visual_tokens)
        self.stopwatch = Stopwatch(self.device)
        self.graphs = self.device.type == "cuda" if graphs is None else graphs
        self._recorded: StepGraphs | None = None
        self.rows_limit: int | None = None
        """Most questions that fit at once, known after running out of memory."""

    @torch.inference_mode()
    def encode(self, images: Tensor) -> tuple[Float[Tensor, "i n d"], Int[Tensor, "i n"]]:
        """Return projected features and where they stood, for uint8 pictures (i, side, side, 3)."""
        with self.stopwatch.stage("vision"):
            pixels = images.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)
            pixels = pixels.sub_(self.mean).div_(self.std).to(self.dtype)
            return encode_images(self.model, pixels, self.plan, self.reduction)

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
            self._recorded = None
        torch.cuda.empty_cache()
        return self._halves(images, prefix, requests)

    def _halves(self, images: Tensor, prefix: Sequence[int], requests: Sequence[Request]) -> list[Generation]:
        middle = len(requests) // 2
        answers: list[Generation] = []
        for half in (requests[:middle], requests[middle:]):
            used = sorted({request.image for request in half})
            place = {image: index for index, image in enumerate(used)}
            moved = [Request(place[r.image], r.suffix, r.name) for r in half]
            answers += self.answer(images[used], prefix, moved)
        return answers

    @torch.inference_mode()
    def _answer(self, images: Tensor, prefix: Sequence[int], requests: Sequence[Request]) -> list[Generation]:
        visual, kept = self.encode(images)
        with self.stopwatch.stage("prefill"):
            suffix, lengths = pad_suffixes([request.suffix for request in requests], self.device)
            image = torch.tensor([request.image for request in requests], device=self.device)
            ids = torch.tensor(list(prefix), device=self.device, dtype=torch.long)
            prompts = Prompts(ids, visual, kept, suffix, lengths, image)
            steps = self._steps(*self.decoder.cache_shape(prompts, self.settings.max_new_tokens))
            logits = self.decoder.prefill(prompts, steps.cache)
            sampler = Sampler(self.settings, [request.name for request in requests], self.device)
            first = sampler.choose(logits)
        with self.stopwatch.stage("decode"):
            even = len({len(request.suffix) for request in requests}) == 1
            return self._decode(first, lengths, suffix.shape[1], steps, sampler, even)

    def _steps(self, rows: int, base: tuple[int, ...], room: int) -> EagerSteps | StepGraphs:
        if not self.graphs:
            return EagerSteps(self.decoder, rows, base, room)
        if self._recorded is None or not self._recorded.take(rows, base, room):
            self._recorded = None  # first, so that both caches are never held at once
            self._recorded = StepGraphs(self.decoder, rows, base, room)
        return self._recorded

    def _decode(
        self,
        first: tuple[Tensor, Tensor],
        lengths: Int[Tensor, " q"],
        longest: int,
        steps: EagerSteps | StepGraphs,
        sampler: Sampler,
        even: bool,
    ) -> list[Generation]:
        """Decode until every row has stopped; rows that have are taken out once they are half of the batch."""
        rows, most = len(lengths), self.settings.max_new_tokens
        tokens = torch.full((rows, most), -1, device=self.device)
        logprobs = torch.zeros(rows, most, device=self.device)
        alive = torch.arange(rows, device=self.device)
        chosen, logprob = first
        done = torch.zeros(rows, dtype=torch.bool, device=self.device)
        for count in range(most):
            tokens[alive, count] = torch.where(done, -1, chosen)
            logprobs[alive, count] = torch.where(done, 0.0, logprob)
            done = done | torch.isin(chosen, self.stop)
            if count + 1 == most:
                break
            if self._looks(count):
                left = torch.nonzero(~done).flatten()
                if len(left) == 0:
                    break
                if len(left) <= len(done) // 2:
                    steps.keep_rows(left)
                    sampler.keep_rows(left.tolist())
                    alive, lengths, chosen, done = alive[left], lengths[left], chosen[left], done[left]
            logits = steps.step(chosen, lengths + count, longest + count + 1, even)
            chosen, logprob = sampler.choose(logits)
        return self._collect(tokens, logprobs)

    def _looks(self, count: int) -> bool:
        """Whether to look which rows are done: on an accelerator that waits for it, so only now and then."""
        return self.device.type == "cpu" or count % 8 == 7

    def _collect(self, tokens: Tensor, logprobs: Tensor) -> list[Generation]:
        stop = set(self.stop.tolist())
        generations = []
        for row, scores in zip(tokens.tolist(), logprobs.tolist(), strict=True):
            count = row.index(-1) if -1 in row else len(row)
            stopped = row[count - 1] in stop
            answer = tuple(row[: count - 1] if stopped else row[:count])
            mean = sum(scores[:count]) / count
            generations.append(Generation(answer, "stop" if stopped else "length", mean, count))
        return generations
