"""How answers are generated, and what a generation is."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from reduction.tensors import Float, Int


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    max_new_tokens: int = 64
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    seed: int = 0
    """Of sampling: a question's answer depends on it and on the question's own name, not on its neighbours."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}: at least 1 token must be generated.")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}: it must be 0 (greedy) or a positive number.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: it must lie above 0 and be at most 1.")


@dataclass(frozen=True, slots=True)
class Generation:
    tokens: tuple[int, ...]
    """Without the stop token."""
    finish_reason: str
    """`stop` or `length`."""
    mean_logprob: float
    """Mean natural-log probability of the tokens generated, the stop token included."""
    generated_tokens: int
    """Tokens generated, the stop token included."""
    visual_tokens: int | None = None
    """What the image was left with, where that is decided for each image; None: as many as the plan says."""
    question_tokens: int | None = None
    """What the text tower read of the question, where the reduction chooses by it."""


class Sampler:
    """Chooses the next token of every row: the likeliest, or one drawn from the nucleus (Holtzman et al. 2020)."""

    def __init__(self, settings: GenerationSettings, names: list[str], device: torch.device) -> None:
        self.settings, self.device = settings, device
        # A generator per row, named after its question: it draws the same numbers in any batch and on any device.
        drawn = settings.temperature > 0
        self.generators = [random.Random(f"{settings.seed}/{name}") for name in names] if drawn else []

    def choose(self, logits: Float[Tensor, "q v"]) -> tuple[Int[Tensor, " q"], Float[Tensor, " q"]]:
        """Return the tokens chosen and their log probabilities under the model (before temperature and top-p)."""
        scores = logits.float()
        chosen = scores.argmax(-1) if not self.generators else self._draw(scores)
        logprob = scores.gather(1, chosen.unsqueeze(1)).squeeze(1) - scores.logsumexp(-1)
        return chosen, logprob

    def join(self, other: Sampler) -> None:
        """Take in the other's rows, behind one's own."""
        self.generators += other.generators

    def keep_rows(self, rows: list[int]) -> None:
        """Drop all other rows."""
        if self.generators:
            self.generators = [self.generators[row] for row in rows]

    def _draw(self, scores: Float[Tensor, "q v"]) -> Int[Tensor, " q"]:
        weights, tokens = (scores / self.settings.temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
        # The nucleus is the smallest head of the distribution that reaches top_p; the likeliest token always belongs.
        outside = weights.cumsum(-1) - weights >= self.settings.top_p
        mass = weights.masked_fill(outside, 0).cumsum(-1)
        uniform = torch.tensor([generator.random() for generator in self.generators], device=self.device)
        target = uniform.unsqueeze(1) * mass[:, -1:]
        place = torch.searchsorted(mass, target, right=True).clamp(max=mass.shape[1] - 1)
        return tokens.gather(1, place).squeeze(1)
