"""Questions that are decoded together: finished ones leave, and those of the next batch take their place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.generation import Generation, GenerationSettings, Sampler
from pipeline.kv_cache import KVCache
from pipeline.step_graphs import StepGraphs
from pipeline.steps import EagerSteps
from reduction.tensors import Float, Int

LOOK_EVERY = 8
"""Steps between looks at which rows are done, on an accelerator: each look waits for it."""


class Decoding:
    """The rows under way are the first ones of the cache, in the order in which they joined.

    Shapes: q rows under way. A row's `own` entries are those behind what all rows have: its text and its answer so far.
    """

    def __init__(self, steps: EagerSteps | StepGraphs, settings: GenerationSettings, stop: Int[Tensor, " s"]) -> None:
        self._steps, self._most, self._stop = steps, settings.max_new_tokens, stop
        self._sampler = Sampler(settings, [], stop.device)
        self._tags: list[int] = []
        self._text: list[int] = []
        self._count: list[int] = []
        """Text tokens of each row and tokens chosen, known without asking the device."""
        empty = torch.zeros(0, dtype=torch.long, device=stop.device)
        self._own, self._at = empty, empty
        """Text tokens and tokens chosen less one; the place of the next token to write down. Both on the device."""
        self._chosen, self._done = empty, empty.bool()
        self._tokens = empty.new_zeros(0, self._most)
        self._logprobs = torch.zeros(0, self._most, device=stop.device)
        self._steps_taken = 0

    def __len__(self) -> int:
        return len(self._tags)

    def places(self, rows: int) -> KVCache:
        """The part of the cache that the next `rows` rows are prefilled into, with nothing left of earlier ones."""
        places = self._steps.cache.part(len(self), rows)
        places.clear()
        return places

    def join(
        self, tags: Sequence[int], lengths: Sequence[int], names: Sequence[str], logits: Float[Tensor, "q v"]
    ) -> None:
        """Take in prefilled rows.

        Args:
            tags: what their answers are returned with.
            lengths: entries of each row's own, before its answer.
            logits: behind each prompt's last token.
        """
        sampler = Sampler(self._sampler.settings, list(names), self._stop.device)
        chosen, logprob = sampler.choose(logits)
        self._sampler.join(sampler)
        rows = len(tags)
        self._tags += tags
        self._text += lengths
        self._count += [0] * rows
        self._own = torch.cat([self._own, self._on_device([length - 1 for length in lengths])])
        self._at = torch.cat([self._at, self._at.new_zeros(rows)])
        self._chosen = torch.cat([self._chosen, chosen])
        self._done = torch.cat([self._done, torch.zeros(rows, dtype=torch.bool, device=chosen.device)])
        self._tokens = torch.cat([self._tokens, self._tokens.new_full((rows, self._most), -1)])
        self._logprobs = torch.cat([self._logprobs, self._logprobs.new_zeros(rows, self._most)])
        self._note(logprob, len(self) - rows)

    def advance(self) -> None:
        """Choose one more token for every row."""
        lengths = [text + count for text, count in zip(self._text, self._count, strict=True)]
        logits = self._steps.step(self._chosen, self._own, max(lengths), min(lengths) == max(lengths))
        self._chosen, logprob = self._sampler.choose(logits)
        self._note(logprob, 0)
        self._steps_taken += 1

    def finished(self, most_left: int) -> list[tuple[int, Generation]]:
        """Tags and answers of the rows that are done; they leave, once no more than `most_left` are under way.

        On an accelerator it is looked only now and then, and when a row has reached its last token.
        """
        full = [index for index, count in enumerate(self._count) if count == self._most]
        look = self._stop.device.type == "cpu" or self._steps_taken % LOOK_EVERY == LOOK_EVERY - 1
        if not full and not look:
            return []
        done = self._done.tolist()
        for index in full:
            done[index] = True
        gone, left = ([i for i, d in enumerate(done) if d is wanted] for wanted in (True, False))
        if not gone or (len(left) > most_left and not full):
            return []
        answers = self._answers(gone)
        self._keep(left)
        return answers

    def _note(self, logprob: Float[Tensor, " n"], first: int) -> None:
        """Write down what was chosen for the rows from `first` on."""
        rows = torch.arange(first, len(self), device=self._stop.device)
        at, done, chosen = self._at[first:], self._done[first:], self._chosen[first:]
        self._tokens[rows, at] = torch.where(done, -1, chosen)
        self._logprobs[rows, at] = torch.where(done, 0.0, logprob)
        self._done[first:] = done | torch.isin(chosen, self._stop)
        self._count[first:] = [count + 1 for count in self._count[first:]]
        self._own[first:] += 1
        self._at[first:] += 1

    def _keep(self, rows: list[int]) -> None:
        index = self._on_device(rows)
        if rows:
            self._steps.keep_rows(index)
        self._sampler.keep_rows(rows)
        self._tags, self._text, self._count = ([of[i] for i in rows] for of in (self._tags, self._text, self._count))
        self._own, self._at = self._own[index], self._at[index]
        self._chosen, self._done = self._chosen[index], self._done[index]
        self._tokens, self._logprobs = self._tokens[index], self._logprobs[index]

    def _answers(self, rows: list[int]) -> list[tuple[int, Generation]]:
        index, stop = self._on_device(rows), set(self._stop.tolist())
        tokens, logprobs = self._tokens[index].tolist(), self._logprobs[index].tolist()
        answers = []
        for row, chosen, scores in zip(rows, tokens, logprobs, strict=True):
            count = chosen.index(-1) if -1 in chosen else len(chosen)
            stopped = chosen[count - 1] in stop
            answer = tuple(chosen[: count - 1] if stopped else chosen[:count])
            mean = sum(scores[:count]) / count
            answers.append((self._tags[row], Generation(answer, "stop" if stopped else "length", mean, count)))
        return answers

    def _on_device(self, values: list[int]) -> Int[Tensor, " n"]:
        return torch.tensor(values, dtype=torch.long).to(self._stop.device, non_blocking=True)
