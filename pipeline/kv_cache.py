"""Keys and values of one batch: a buffer per decoder layer, allocated once at the length that layer will need."""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from reduction.tensors import Float, Int

ALIGNED = 16
"""Values that rows of a mask start at multiples of."""


class KVCache:
    """Per layer l: `base[l]` entries that every row has (text before the image, visual tokens), then each row's own
    text, written over its padding by what it generates, so that a row's entries are always its first ones.
    """

    def __init__(
        self,
        rows: int,
        kv_heads: int,
        head_dim: int,
        base: tuple[int, ...],
        room: int,
        memory: Float[Tensor, " v"],
    ) -> None:
        """`memory` holds the numbers of all layers."""
        self.base, self.room = base, room
        sizes = [rows * kv_heads * (n + room) * head_dim for n in base]
        parts = memory.split([size for size in sizes for _ in range(2)])
        shaped = [part.view(rows, kv_heads, -1, head_dim) for part in parts]
        self.keys, self.values = shaped[::2], shaped[1::2]
        self.gap = torch.zeros(rows, device=memory.device, dtype=torch.long)
        """How many positions each row's text jumps over beyond what its entries and the plan say."""

    @property
    def rows(self) -> int:
        return self.keys[0].shape[0]

    @property
    def bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in [*self.keys, *self.values])

    def put(self, layer: int, start: int, keys: Float[Tensor, "b g n d"], values: Float[Tensor, "b g n d"]) -> None:
        """Write keys and values of all rows from entry `start` on."""
        end = start + keys.shape[2]
        self.keys[layer][:, :, start:end] = keys
        self.values[layer][:, :, start:end] = values

    def clear(self) -> None:
        """Put zeros into all entries of the rows' own.

        A masked entry has weight 0, but 0 times a NaN that an earlier answer left there would still be NaN.
        """
        for base, keys, values in zip(self.base, self.keys, self.values, strict=True):
            keys[:, :, base:] = 0
            values[:, :, base:] = 0

    def append(
        self, layer: int, own: Int[Tensor, " b"], keys: Float[Tensor, "b g 1 d"], values: Float[Tensor, "b g 1 d"]
    ) -> None:
        """Write one token per row behind its `own` text tokens."""
        # Not scatter_: on CPUs it copies the whole buffer for these few entries.
        rows, entry = torch.arange(len(own), device=own.device), own + self.base[layer]
        self.keys[layer][rows, :, entry] = keys[:, :, 0]
        self.values[layer][rows, :, entry] = values[:, :, 0]

    def view(self, layer: int, longest: int) -> tuple[Float[Tensor, "b g n d"], Float[Tensor, "b g n d"]]:
        """Keys and values of a layer, cut behind the row with the most text."""
        end = self.base[layer] + longest
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def visible(self, own: Int[Tensor, " b"], longest: int) -> dict[int, Float[Tensor, "b 1 1 n"]]:
        """What is added to the scores, per distinct `base` (layers of equal length share a mask): 0 for a row's own
        entries, else minus infinity.

        Attention makes this of a bool mask, layer by layer, and a GPU's copies it where rows are not aligned.
        """
        column = torch.arange(_aligned(max(self.base) + longest), device=own.device)
        masks = {}
        for n in set(self.base):
            hidden = column[: _aligned(n + longest)] >= (own + n).unsqueeze(1)
            mask = torch.zeros(hidden.shape, dtype=self.keys[0].dtype, device=own.device)
            masks[n] = mask.masked_fill_(hidden, float("-inf"))[:, None, None, : n + longest]
        return masks

    def part(self, start: int, rows: int) -> KVCache:
        """Some of the rows, on the same memory."""
        part = copy(self)
        part.keys = [keys[start : start + rows] for keys in self.keys]
        part.values = [values[start : start + rows] for values in self.values]
        part.gap = self.gap[start : start + rows]
        return part

    def move_up(self, rows: Int[Tensor, " r"]) -> None:
        """Make these the first rows, in the same memory."""
        for entries in (*self.keys, *self.values, self.gap):
            entries[: len(rows)] = entries.index_select(0, rows)


def _aligned(length: int) -> int:
    return -(-length // ALIGNED) * ALIGNED
