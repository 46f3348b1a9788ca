"""How much each visual token has to do with the question, by CLIP, and TRIM's filter, which keeps those that have most.

Shapes: b batch (one row per question), n visual tokens.
"""

from __future__ import annotations

from torch import Tensor

from reduction.filter import Partition, count_outliers, drop_highest
from reduction.settings import Reduction
from reduction.tensors import Float, Int
from reduction.views import AskedFeatures

_SMALLEST = 1e-6
"""Quality of the least relevant token: 0 would leave the kernel nothing to tell by."""


def wanted(view: AskedFeatures, reduction: Reduction) -> Float[Tensor, "b n"]:
    """High for tokens that the question is about: the cosine negated, as both papers have it, or as it is."""
    return view.relevance if reduction.relevance == "plain" else -view.relevance


def min_max(values: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """Each row brought to between 0 and 1; 1 where all are equal."""
    low, high = values.aminmax(dim=1, keepdim=True)
    return (values - low + _SMALLEST) / (high - low + _SMALLEST)


def most_relevant(view: AskedFeatures, n_drop: int, reduction: Reduction) -> Partition:
    """The tokens most relevant to the question stay."""
    return drop_highest(-wanted(view, reduction), n_drop)


def outliers(view: AskedFeatures, reduction: Reduction) -> Int[Tensor, " b"]:
    """How many tokens stand out (`count_outliers`) by the softmax of CLIP's similarity over an image's tokens."""
    return count_outliers((view.logit_scale * wanted(view, reduction)).softmax(1))
