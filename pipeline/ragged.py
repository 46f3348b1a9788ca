"""Rows whose images were left with unequal numbers of visual tokens, as methods that decide for each image leave them.

Text before the image is what all rows have. Behind it a row's own tokens stand without a gap, its visual ones and its
text, padded on the right like any text: so no real token sees padding, and prefill needs no mask.
Shapes as in `pipeline.decoder`; n is the most visual tokens of a row.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pipeline.decoder import Decoder, Prompts
from pipeline.kv_cache import KVCache
from reduction.attention import take
from reduction.norms import normalise
from reduction.schedule import Plan
from reduction.settings import Reduction
from reduction.tensors import Float, Int
from reduction.vision import real_tokens


class RaggedDecoder(Decoder):
    """A decoder under a plan that is adaptive; rows share nothing but the text before the image."""

    def __init__(self, model: Any, plan: Plan, reduction: Reduction, visual_tokens: int) -> None:
        # Visual tokens are each row's own: to the cache and to decoding they are text.
        own = replace(plan, decoder_visual_lengths=(0,) * len(plan.decoder_visual_lengths))
        super().__init__(model, own, reduction, 0)
        self.full = visual_tokens

    def counts(self, prompts: Prompts) -> Int[Tensor, " q"]:
        """The visual tokens that each question's image was left with."""
        return real_tokens(prompts.kept, self.full).sum(1)[prompts.image]

    def room(self, text: int) -> int:
        return self.plan.visual_tokens_left + text

    def own_visual(self, prompts: Prompts) -> list[int]:
        return self.counts(prompts).tolist()

    def prefill(self, prompts: Prompts, cache: KVCache) -> Float[Tensor, "q v"]:
        """Fill the cache and return the logits behind each question's last token."""
        start, count = len(prompts.prefix), self.counts(prompts).unsqueeze(1)
        n, m = prompts.kept.shape[1], prompts.suffix.shape[1]
        place = torch.arange(n + m, device=count.device)
        # A row's own tokens, from its visual tokens (padded to n) with its text behind them.
        index = torch.where(place < count, place, place - count + n).clamp_max(n + m - 1)
        text = self.llama.embed_tokens(prompts.suffix)
        own = take(torch.cat([prompts.visual[prompts.image], text], 1), index)
        prefix = self.llama.embed_tokens(prompts.prefix).expand(len(own), -1, -1)
        hidden = torch.cat([prefix, own], 1)
        positions = self._positions(prompts, index, place) + start
        positions = torch.cat([torch.arange(start, device=count.device).expand(len(own), -1), positions], 1)
        if not self.packed:
            cache.gap.copy_(self.full - count.squeeze(1))
        for number, layer in enumerate(self.llama.layers):
            hidden, positions = self._joint_layer(number, layer, hidden, positions, prompts, cache)
        last = (start - 1 + prompts.lengths + count.squeeze(1)).view(-1, 1, 1).expand(-1, 1, hidden.shape[-1])
        return self.head(normalise(self.llama.norm, hidden.gather(1, last)))[:, 0]

    def _positions(self, prompts: Prompts, index: Int[Tensor, "q u"], place: Int[Tensor, " u"]) -> Int[Tensor, "q u"]:
        """Position ids of the rows' own tokens, counted from the image on."""
        if self.packed:
            return place.expand(len(index), -1)
        words = torch.arange(self.full, self.full + prompts.suffix.shape[1], device=place.device)
        source = torch.cat([prompts.kept[prompts.image], words.expand(len(index), -1)], 1)
        return source.gather(1, index)
