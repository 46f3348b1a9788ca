"""What the stages may look at in one decoder layer.

Shapes: b batch, h query heads, g key heads, d width of a head, n visual, m suffix, p prefix, t all keys = p + n + m,
w width.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from reduction.attention import attention_weights, concatenate_heads, masked_mean, precise, score_scale, sum_groups
from reduction.tensors import Bool, Float
from reduction.views import View


class VisualBlock(View):
    """What the stages may look at in one layer: rotated queries and keys, and which keys are real."""

    def __init__(
        self,
        visual_queries: Float[Tensor, "b h n d"],
        text_queries: Float[Tensor, "b h m d"],
        keys: Float[Tensor, "b g t d"],
        text: Bool[Tensor, "b m"] | None = None,
        prefix: Bool[Tensor, "b p"] | None = None,
        text_states: Float[Tensor, "b m w"] | None = None,
    ) -> None:
        self.visual_queries, self.text_queries, self.keys = visual_queries, text_queries, keys
        self.text, self.prefix, self.text_states = text, prefix, text_states
        self.place, self.first = "language", 0
        self.count, self.words = visual_queries.shape[2], text_queries.shape[2]
        self.start = keys.shape[2] - self.count - self.words

    @property
    def scale(self) -> float:
        return score_scale(self.visual_queries.shape[1], self.visual_queries.shape[3])

    @cached_property
    def queries(self) -> Float[Tensor, "b n w"]:
        """Visual queries, summed over the heads that share a key head, heads side by side."""
        return concatenate_heads(sum_groups(self.visual_queries, self.keys.shape[1]))

    @cached_property
    def words_queries(self) -> Float[Tensor, "b m w"]:
        """Text queries in the same form."""
        return concatenate_heads(sum_groups(self.text_queries, self.keys.shape[1]))

    @cached_property
    def visual_keys(self) -> Float[Tensor, "b n w"]:
        return concatenate_heads(self.keys[:, :, self.start : self.start + self.count])

    @cached_property
    def words_keys(self) -> Float[Tensor, "b m w"]:
        return concatenate_heads(self.keys[:, :, self.start + self.count :])

    @cached_property
    def real(self) -> Bool[Tensor, "b t"]:
        """Which keys are no padding."""
        batch, device = len(self.keys), self.keys.device
        prefix = torch.ones(batch, self.start, dtype=torch.bool, device=device) if self.prefix is None else self.prefix
        text = torch.ones(batch, self.words, dtype=torch.bool, device=device) if self.text is None else self.text
        return torch.cat([prefix, torch.ones(batch, self.count, dtype=torch.bool, device=device), text], dim=1)

    def visible(self, first: int, count: int) -> Bool[Tensor, "#b q t"]:
        """Which keys the `count` queries from position `first` on see: real ones up to their own."""
        keys = torch.arange(self.keys.shape[2], device=self.keys.device)
        causal = (keys <= keys[first : first + count, None]).unsqueeze(0)
        return causal if self.text is None and self.prefix is None else causal & self.real.unsqueeze(1)

    @cached_property
    def metric(self) -> Float[Tensor, "b n e"]:
        """Head-mean keys of the visual tokens."""
        return precise(self.keys[:, :, self.start : self.start + self.count]).mean(1)

    @cached_property
    def importance(self) -> Float[Tensor, "b n"]:
        """Head-mean attention weights of the prompt's last token on the visual tokens (FastV)."""
        batch, heads, _, width = self.visual_queries.shape
        # A row without text ends with its last visual token.
        queries = torch.cat([self.visual_queries[:, :, -1:], self.text_queries], dim=2)
        words = self.real[:, self.start + self.count :].sum(1)
        last = queries.gather(2, words.view(-1, 1, 1, 1).expand(batch, heads, 1, width))
        # Text is padded on its right only, so what is real is what its last token sees.
        weights = attention_weights(last, self.keys, self.real.unsqueeze(1))
        return weights[:, 0, self.start : self.start + self.count]

    @cached_property
    def text_weights(self) -> Float[Tensor, "b m n"]:
        """Attention weights of the text on the visual tokens, over all keys that a word sees: linear in n."""
        weights = attention_weights(self.text_queries, self.keys, self.visible(self.start + self.count, self.words))
        return weights[..., self.start : self.start + self.count]

    @cached_property
    def rated(self) -> Float[Tensor, "b n"]:
        """Mean attention weight that the raters pay each visual token, over raters and heads (SparseVLM).

        Raters are the words that get at least the mean, over words, of what the visual tokens would pay the words
        without a causal mask. Zero in a row without words.
        """
        if not self.words:
            return self.text_weights.sum(1)
        words = self.keys[:, :, self.start + self.count :]
        real = self.real[:, self.start + self.count :]
        paid = attention_weights(self.visual_queries, words, real.unsqueeze(1)).mean(1)
        return masked_mean(self.text_weights, _at_least_mean(paid, real))

    @cached_property
    def visual_weights(self) -> Float[Tensor, "b n t"]:
        """Attention weights of the visual tokens on all real keys as if there were no causal mask: quadratic."""
        return attention_weights(self.visual_queries, self.keys, self.real.unsqueeze(1))

    @cached_property
    def causal_weights(self) -> Float[Tensor, "b n n"]:
        """Attention weights among the visual tokens, as the model computes them: quadratic."""
        weights = attention_weights(self.visual_queries, self.keys, self.visible(self.start, self.count))
        return weights[..., self.start : self.start + self.count]


def _at_least_mean(values: Float[Tensor, "b m"], real: Bool[Tensor, "b m"]) -> Bool[Tensor, "b m"]:
    """Which of the real values are at least their mean: one of them, whatever the rounding."""
    values = values.masked_fill(~real, 0)
    mean = values.sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp_min(1)
    return real & ((values >= mean) | (values == values.amax(1, keepdim=True)))
