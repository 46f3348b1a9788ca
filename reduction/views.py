"""What the stages may look at, whatever the place: the visual tokens' states, keys and importance.

Shapes: b batch, n visual tokens, w width, e width of the keys that tokens are compared by.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reduction.methods import Bound, Place
from reduction.tensors import Float, Int


class View:
    """The visual tokens at one place in one batch."""

    place: Place
    first: int
    """Tokens before the visual ones that are never dropped and alternate with them: 1 for CLS."""
    states: Float[Tensor, "b n w"]
    """What is reduced."""

    if TYPE_CHECKING:

        @property
        def metric(self) -> Float[Tensor, "b n e"]:
            """What tells whether tokens are alike: head-mean keys, or the states where there are no keys."""

        @property
        def importance(self) -> Float[Tensor, "b n"]:
            """How much a token matters: attention of CLS, or of the prompt's last token; none at the projector."""


@dataclass
class Features(View):
    """The visual tokens at the projector's output."""

    states: Float[Tensor, "b n w"]
    grid: int
    """Patches along a side of the image."""
    place: Place = "projector"
    first: int = 0

    @property
    def metric(self) -> Float[Tensor, "b n w"]:
        return self.states


@dataclass
class AskedFeatures(Features):
    """The visual tokens at the projector's output, once for every question: row b belongs to question b."""

    relevance: Float[Tensor, "b n"] = field(kw_only=True)
    """Cosine between the question and each token in CLIP's common space."""
    logit_scale: float = field(kw_only=True)
    """What CLIP multiplies cosines by before a softmax."""
    images: Float[Tensor, "i n w"] = field(kw_only=True)
    """The same tokens once for every image."""
    image: Int[Tensor, " b"] | None = field(kw_only=True)
    """The image that each question is about; None: the one of its own number."""

    def row(self, index: int) -> AskedFeatures:
        """One question of the batch."""
        one = slice(index, index + 1)
        states = self.states[one]
        return AskedFeatures(
            states, self.grid, relevance=self.relevance[one], logit_scale=self.logit_scale, images=states, image=None
        )


def head_mean(keys: Float[Tensor, "b n w"], heads: int) -> Float[Tensor, "b n e"]:
    """The mean over heads of keys whose heads stand side by side, at least float32."""
    precise = keys.to(torch.promote_types(keys.dtype, torch.float32))
    return precise.unflatten(-1, (heads, -1)).mean(2)


@lru_cache(maxsize=256)
def imported(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(import_module(f"reduction.{module}"), function)
    return found


def function_of(table: dict[str, Bound], name: str, place: Place) -> Callable[..., Any]:
    """The function that does a stage at a place."""
    bound = table[name][place]
    return imported(bound) if isinstance(bound, str) else bound


def behind(first: int, index: Int[Tensor, "b k"]) -> Int[Tensor, "b t"]:
    """Indices among all tokens, of which `first` come before those counted: these, then those indexed."""
    if not first:
        return index
    return torch.cat([torch.arange(first, device=index.device).expand(len(index), -1), index + first], dim=1)


def in_raster_order(kept: Int[Tensor, "b k"]) -> Int[Tensor, "b k"]:
    """The order that sorts the tokens by where they stood."""
    return kept.argsort(dim=1, stable=True)
