"""DART (Wen et al. 2025): the tokens that stay are unlike a few pivots.

Shapes: b batch, n visual tokens, m text tokens, q pivots, w width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reduction.attention import take
from reduction.block import VisualBlock
from reduction.drops import spread
from reduction.filter import Partition, keep_set
from reduction.matching import unit
from reduction.settings import Reduction
from reduction.tensors import Float, Int

PIVOTS = 4
"""Visual pivots, and text pivots."""


def _largest(keys: Float[Tensor, "b n w"], count: int) -> Int[Tensor, "b c"]:
    return keys.abs().sum(-1).argsort(dim=1, descending=True, stable=True)[:, :count]


def _text_pivots(block: VisualBlock, visual: Float[Tensor, "b c w"]) -> Float[Tensor, "b q w"]:
    """States of the words with the largest keys, again where a row has few, and visual pivots where it has none."""
    if block.text_states is None or not block.words:
        return visual[:, :0]
    real = block.real[:, block.start + block.count :]
    order = _largest(block.words_keys.masked_fill(~real.unsqueeze(-1), 0), block.words)
    count = real.sum(1, keepdim=True)
    rank = torch.arange(PIVOTS, device=order.device)
    words = take(block.text_states, order.gather(1, rank % count.clamp_min(1)))
    return torch.where((count > 0).unsqueeze(-1), words, visual[:, rank % visual.shape[1]])


def unlike_pivots(block: VisualBlock, n_drop: int, reduction: Reduction) -> Partition:
    """Pivots are the 4 visual tokens and the 4 words with the largest keys (L1). The visual ones stay, and each pivot
    in turn adds the tokens least like it among those left, an equal share of what may stay."""
    n_keep = block.count - n_drop
    pivots = _largest(block.visual_keys, min(PIVOTS, n_keep))
    visual = take(block.states, pivots)
    all_pivots = torch.cat([visual, _text_pivots(block, visual)], dim=1)
    likeness = torch.bmm(unit(all_pivots), unit(block.states).transpose(1, 2))
    chosen = [pivots]
    for row, share in zip(likeness.unbind(1), spread(n_keep - pivots.shape[1], likeness.shape[1]), strict=True):
        free = row.scatter(1, torch.cat(chosen, dim=1), torch.inf)
        chosen.append(free.argsort(dim=1, stable=True)[:, :share])
    return keep_set(torch.cat(chosen, dim=1), block.count)
