"""What FiCoCo-V looks at in one encoder layer, and its stages as functions of it.

Shapes: b batch, n patches left, t tokens (CLS and patches), w width, e width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from reduction.attention import (
    attention_weights,
    chosen_scores,
    masked_mean,
    mean_score,
    one_query_weights,
    score_scale,
    take,
)
from reduction.correlate import from_scores, from_weights
from reduction.filter import Partition, drop_highest, key_distinctness, redundancy
from reduction.grid import local_penalty
from reduction.methods import Place
from reduction.settings import Reduction
from reduction.tensors import Float, Int
from reduction.views import View, head_mean


@dataclass
class Patches(View):
    """What the stages may look at in one layer: its queries and keys, heads side by side, and where patches lie."""

    queries: Float[Tensor, "b t w"]
    keys: Float[Tensor, "b t w"]
    first: int
    """Index of the first patch: 1 behind a CLS token, else 0."""
    heads: int
    cells: Int[Tensor, "b n"]
    grid: int
    place: Place = "vision"
    states: Float[Tensor, "b n w"] = field(init=False)
    """The states that are reduced, once that is under way."""

    @cached_property
    def metric(self) -> Float[Tensor, "b n e"]:
        """Head-mean keys of the patches."""
        return head_mean(self.keys[:, self.first :], self.heads)

    @cached_property
    def importance(self) -> Float[Tensor, "b n"]:
        """Head-mean attention weights of CLS, or Eq. 9-13 where there is none."""
        return _importance(self, "softmax")

    @property
    def scale(self) -> float:
        return score_scale(self.heads, self.queries.shape[-1] // self.heads)

    def row(self, index: int) -> Patches:
        """One image of the batch."""
        one = slice(index, index + 1)
        patches = Patches(
            self.queries[one], self.keys[one], self.first, self.heads, self.cells[one], self.grid, self.place
        )
        patches.states = self.states[one]
        return patches

    def by_head(self, tokens: Float[Tensor, "b t w"]) -> Float[Tensor, "b h t d"]:
        return tokens.view(*tokens.shape[:2], self.heads, -1).transpose(1, 2)


def _importance(patches: Patches, cls_scores: str) -> Float[Tensor, "b n"]:
    """The second term of Eq. 1: the attention that CLS pays each patch, or Eq. 9-13 where that is chosen or needed."""
    keys = patches.keys[:, patches.first :]
    if cls_scores == "keys" or patches.first == 0:
        return key_distinctness(keys, patches.heads)
    if cls_scores == "raw":
        return mean_score(keys, patches.queries[:, 0], patches.scale)
    return one_query_weights(patches.queries[:, 0], patches.keys, patches.heads)[:, 1:]


def _patch_weights(patches: Patches) -> Float[Tensor, "b n n"]:
    """Attention weights among all patches: quadratic, for `patch_scores=softmax` only."""
    queries = patches.queries[:, patches.first :]
    return attention_weights(patches.by_head(queries), patches.by_head(patches.keys))[..., patches.first :]


def patch_redundancy(patches: Patches, reduction: Reduction) -> Float[Tensor, "b n"]:
    """Eq. 1 with the local penalty: s_i = λ mean_j A[i, j] - (1 - λ) A[CLS, i] over the patches j."""
    if reduction.patch_scores == "softmax":
        visual = _patch_weights(patches).mean(-1)
    else:
        mean_key = masked_mean(patches.keys[:, patches.first :])
        visual = mean_score(patches.queries[:, patches.first :], mean_key, patches.scale)
    scores = redundancy(visual, _importance(patches, reduction.cls_scores), reduction.lam, reduction.normalise)
    if not reduction.local_penalty:
        return scores
    return local_penalty(scores, patches.cells, patches.grid, reduction.window, reduction.penalty)


def ficoco_patches(patches: Patches, n_drop: int, reduction: Reduction) -> Partition:
    """FiCoCo's filter: the most redundant patches by Eq. 1 go."""
    return drop_highest(patch_redundancy(patches, reduction), n_drop)


def attention_patches(patches: Patches, split: Partition, reduction: Reduction) -> Float[Tensor, "b s k"]:
    """FiCoCo's correlate stage: C[i, j] = A[i, j], dropped patches by kept ones."""
    queries = take(patches.queries, split.dropped + patches.first)
    if reduction.patch_scores == "softmax":
        weights = attention_weights(patches.by_head(queries), patches.by_head(patches.keys))
        columns = (split.kept + patches.first).unsqueeze(1).expand(-1, weights.shape[1], -1)
        return from_weights(weights.gather(2, columns))
    return from_scores(chosen_scores(queries, patches.keys, split.kept + patches.first, patches.scale))
