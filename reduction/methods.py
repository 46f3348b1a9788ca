"""The table: a method is the places it drops tokens at, and at each place three stages and a schedule.

Stages stand here by name, each with the function that does it at each place it works at, as "module:function" of
`reduction` (nothing is imported before it is used). A filter may score tokens and take the top or choose a set in any
other way: it returns the indices that stay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

Place = Literal["vision", "projector", "language"]
"""In the encoder or at the projector's output (both know the image only), or in the decoder (knows the question)."""

PLACES: dict[Place, str] = {
    "vision": "vision model",
    "projector": "projector's output",
    "language": "language model",
}

Bound = dict[Place, str | Callable[..., Any]]
"""Where a stage works -> what does it there."""


def _everywhere(function: str) -> Bound:
    return {"vision": function, "projector": function, "language": function}


FILTERS: dict[str, Bound] = {
    "ficoco": {"vision": "patches:ficoco_patches", "language": "language:ficoco_visual"},
    "random": _everywhere("selection:random_tokens"),
    "stride": _everywhere("selection:stride_tokens"),
    "windows": {"projector": "selection:one_per_window"},
    "cls": {"vision": "selection:most_important"},
    "cls_one_head": {"vision": "prumerge:most_attended"},
    "last_token": {"language": "selection:most_important"},
    "unlike_pivots": {"language": "pivots:unlike_pivots"},
    "raters": {"language": "clusters:best_rated"},
    "bipartite": _everywhere("matching:bipartite"),
    "dominant": {"vision": "matching:dominant", "language": "matching:dominant"},
    "max_min": _everywhere("diversity:max_min"),
    "conditional_dpp": {"projector": "diversity:conditional_dpp"},
    "text_relevance": {"projector": "relevance:most_relevant"},
    "important_and_diverse": {
        "vision": "diversity:important_and_diverse",
        "language": "diversity:important_and_diverse",
    },
}

CORRELATIONS: dict[str, Bound] = {
    "none": _everywhere(""),
    "attention": {"vision": "patches:attention_patches", "language": "language:attention_visual"},
    "attention_and_text": {"language": "language:attention_and_text"},
    "cosine": _everywhere("matching:cosine"),
    "window": {"projector": "selection:same_window"},
    "nearest": {"vision": "prumerge:nearest_and_all"},
    "importance": {"vision": "matching:importance", "language": "matching:importance"},
    "clusters": {"language": "clusters:clusters"},
    "equal": _everywhere("matching:equal"),
}

COMPRESSIONS: dict[str, Bound] = {
    "merge": _everywhere("compress:merge_stage"),
    "mean": _everywhere("compress:average_stage"),
    "size_mean": _everywhere("compress:join_best"),
    "fuse": _everywhere("compress:fuse"),
    "add": {"vision": "prumerge:add"},
    "recycle": {"language": "compress:fuse"},
    "prune": _everywhere(""),
}

LEADS_TO: dict[str, str] = {"importance": "fuse", "equal": "fuse", "nearest": "add", "clusters": "recycle"}
"""Correlations that lead to tokens made anew -> the one compress stage that takes them; others lead to kept tokens."""
NEEDS_WINDOWS = ("windows", "window")
"""This filter alone keeps a token in each window, which this correlation leads to."""


def recycled(dropped: int) -> int:
    """How many of the tokens that a filter drops are recycled: 30 % and one."""
    return min(dropped, dropped * 3 // 10 + 1)


def clusters_made(dropped: int) -> int:
    """How many tokens are made of them: one for every 10, and one."""
    return recycled(dropped) // 10 + 1


FRESH: dict[str, Callable[[int], int]] = {"fuse": lambda dropped: 1, "add": lambda dropped: 1, "recycle": clusters_made}
"""Compress stages that make tokens anew -> how many, given how many the filter drops; they count among those left."""


def tokens_fewer(compress: str, dropped: int) -> int:
    """How many fewer tokens are left where the filter drops `dropped`."""
    made = FRESH[compress](dropped) if compress in FRESH and dropped else 0
    return max(0, dropped - made)


@lru_cache(maxsize=4096)
def tokens_dropped(compress: str, fewer: int) -> int:
    """How many the filter drops so that `fewer` fewer are left: the least number that does it."""
    dropped = fewer
    while tokens_fewer(compress, dropped) < fewer:
        dropped += 1
    return dropped


HALVING = ("bipartite",)
"""Filters that drop at most half of the tokens in a layer."""
BY_QUESTION = {"conditional_dpp", "text_relevance"}
"""Filters that compare the tokens with the question, by CLIP's text tower: each question keeps its own."""
BY_CLS = ("importance", "nearest")
"""Correlations that in the encoder weigh patches by the attention of the CLS token."""
ADAPTIVE: dict[str, str] = {"cls_one_head": "prumerge:outliers", "text_relevance": "relevance:outliers"}
"""Filters that can decide for each image how many tokens stay -> what counts them."""
REORDERS = (*HALVING, "fuse", "add")
"""Stages whose tokens are put back in raster order where the place is left. Recycled ones stand behind the kept."""


Counts = tuple[tuple[int, tuple[int, ...]], ...]
"""Published budgets in rising order -> the tokens that the filter keeps at each step; last the budget of all tokens."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Which layers of a place drop, where the setting does not say it."""

    start: int | float = 0
    """First layer, from 0; a negative one counts from behind the last that runs, a float is a share of the depth."""
    layers: int | None = None
    """Number of layers the drop is spread evenly over; None: all from the first on."""
    at: tuple[float, ...] = ()
    """Instead of both: shares of the depth, each layer there keeping the same share of its tokens."""
    counts: Counts = ()
    """With `at`: what the budget means, where it is a label and not the tokens left."""
    after_mlp: bool = False
    """The drop comes after the layer's MLP, not between its attention and its MLP."""
    by_next: bool = False
    """Decoder, after the MLP: stages look at the queries and keys that the next layer makes of the states."""


@dataclass(frozen=True, slots=True)
class Stages:
    """What happens to the tokens at one place."""

    filter: str
    correlate: str = "none"
    compress: str = "prune"
    schedule: Schedule = Schedule()


_FICOCO_V = Stages("ficoco", "attention", "merge", Schedule(0.5))
_FICOCO_L = Stages("ficoco", "attention_and_text", "merge", Schedule(0.125, 4))
_LAST = Schedule(-1, 1, after_mlp=True)
_SPARSEVLM = Schedule(
    at=(3 / 32, 7 / 32, 16 / 32),
    counts=((64, (66, 30, 17)), (128, (303, 110, 36)), (192, (300, 200, 110)), (576, (576, 576, 576))),
    after_mlp=True,
)

METHODS: dict[str, dict[Place, Stages]] = {
    "dense": {},
    "ficoco-v": {"vision": _FICOCO_V},
    "ficoco-l": {"language": _FICOCO_L},
    "ficoco-vl": {"vision": _FICOCO_V, "language": _FICOCO_L},
    "random": {"projector": Stages("random")},
    "stride": {"projector": Stages("stride")},
    "average-pool": {"projector": Stages("windows", "window", "size_mean")},
    "fastv": {"language": Stages("last_token", schedule=Schedule(1, 1))},
    "pyramiddrop": {
        "language": Stages("last_token", schedule=Schedule(at=(0.25, 0.5, 0.75), after_mlp=True, by_next=True))
    },
    "sparsevlm": {"language": Stages("raters", "clusters", "recycle", _SPARSEVLM)},
    "dart": {"language": Stages("unlike_pivots", schedule=Schedule(1, 1, after_mlp=True))},
    "tome": {"vision": Stages("bipartite", "cosine", "size_mean", Schedule(0))},
    "evit": {"vision": Stages("cls", "importance", "fuse", Schedule(at=(0.25, 0.5, 0.75)))},
    "visionzip": {"vision": Stages("dominant", "cosine", "size_mean", _LAST)},
    "prumerge": {"vision": Stages("cls_one_head", "nearest", "add", _LAST)},
    "hired": {"vision": Stages("cls", schedule=Schedule(-1, 1))},
    "vispruner": {"vision": Stages("important_and_diverse", schedule=_LAST)},
    "divprune": {"projector": Stages("max_min")},
    "cdpruner": {"projector": Stages("conditional_dpp")},
    "trim": {"projector": Stages("text_relevance", "equal", "fuse")},
}
