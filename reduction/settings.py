"""One reduction setting as a value: parsed from text such as `ficoco-v:64,epsilon=0.99`, validated, printed back.

Imports neither torch nor transformers, so that asking for a cost or parsing a command line stays quick.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from typing import Any, Literal, get_args, get_type_hints

from reduction.combination import check_adaptive, check_stages
from reduction.errors import ReductionError, unknown
from reduction.methods import BY_QUESTION, METHODS, Place, Schedule
from reduction.notation import ADAPTIVE, check_keep, check_method, parse_values, show

__all__ = ["Reduction", "ReductionError", "option_types"]

_SHARES = ("split", "lam", "beta", "gamma", "epsilon", "context_share", "important_share")
_COUNTS = {
    "vision_start": 0,
    "vision_layers": 1,
    "language_start": 0,
    "language_layers": 1,
    "window": 1,
    "seed": 0,
}


@dataclass(frozen=True)
class Reduction:
    """A token-reduction method with its hyper-parameters; symbols as in the FiCoCo paper (arXiv 2411.17686).

    Raises ReductionError where a value is unknown or out of range. Whether the counts fit a model is checked where they
    meet its shape, by `schedule.plan`.
    """

    method: str = "dense"
    keep: int | str | None = None
    """Visual tokens left after the last reducing layer: a count, a share such as "11%", None for all, or
    "adaptive" where the method decides it for each image."""
    vision_start: int | None = None
    """First reducing encoder layer, from 0; None: the method's (FiCoCo: half of the depth, 12 of 24)."""
    vision_layers: int | None = None
    """Number of reducing encoder layers; None: the method's (FiCoCo: all up to the layer whose states LLaVA reads)."""
    language_start: int | None = None
    """First reducing decoder layer, from 0; None: the method's (FiCoCo: an eighth of the depth, 4 of 32)."""
    language_layers: int | None = None
    """Number of reducing decoder layers; None: the method's (FiCoCo: 4, or as many as there are)."""
    split: float = 0.5
    """ficoco-vl: share of the drop done in the encoder."""
    lam: float = 0.35
    """λ of Eq. 1: weight of the patch term, the CLS term has the rest."""
    beta: float = 0.6
    """β of Eq. 3: weight of the visual term, the text term has the rest."""
    gamma: float = 0.6
    """γ of Eq. 4: weight of the direct correlation, the one through text has the rest."""
    epsilon: float = 0.998
    """ε of Eq. 2: a dropped token merges into the targets at or above this quantile of its correlations."""
    local_penalty: bool = True
    """Encoder only: spread the drops over the image."""
    window: int = 2
    """Side of the local penalty's windows, patches."""
    penalty: float = 2.0
    """Factor of the local penalty."""
    cls_scores: Literal["softmax", "raw", "keys"] = "softmax"
    """Attention of CLS: weights, scores before the softmax, or Eq. 9-13 (towers without CLS always use the last)."""
    patch_scores: Literal["raw", "softmax"] = "raw"
    """Attention among visual tokens; softmax needs all N x N weights."""
    text_scores: Literal["softmax", "raw"] = "softmax"
    """Attention between text and visual tokens."""
    text_direction: Literal["text_to_vision", "vision_to_text"] = "text_to_vision"
    """Which of the two asks: the query's side of the attention between text and visual tokens."""
    normalise: Literal["l2", "zscore", "none"] = "l2"
    """How the two terms of Eq. 1 and 3 are brought to one scale over the tokens."""
    positions: Literal["original", "packed"] = "original"
    """Position ids in the decoder: those of the unreduced prompt, or counted anew over what is left."""
    filter: str | None = None
    """Replaces the method's filter stage."""
    correlate: str | None = None
    """Replaces the method's correlate stage."""
    compress: str | None = None
    """Replaces the method's compress stage."""
    seed: int = 0
    """Seed of the random filter."""
    context_share: float = 0.15625
    """`dominant` filter: share of the tokens left that are contextual (10 of 64)."""
    important_share: float = 0.5
    """`important_and_diverse` filter: share of the tokens left that are chosen by importance."""
    relevance: Literal["negated", "plain"] = "negated"
    """Filters that compare tokens with the question: which end of CLIP's similarity counts as relevant."""

    def __post_init__(self) -> None:
        check_method(self.method)
        if self.method == "dense" and self.keep is not None:
            raise ReductionError(
                f"dense keeps every visual token, so it takes no number to keep (got {self.keep}): "
                "leave it out, or choose another reduction."
            )
        check_keep(self.keep)
        self._check_choices()
        self._check_numbers()
        check_stages(self.method, self.filter, self.correlate, self.compress)
        if self.adaptive:
            check_adaptive(self.method, [self.stages(place)[0] for place in self.places])

    def _check_choices(self) -> None:
        for name, hint in option_types().items():
            choices, value = get_args(hint), getattr(self, name)
            if choices and all(isinstance(choice, str) for choice in choices) and value not in choices:
                raise unknown(f"{name} value", str(value), choices)

    def _check_numbers(self) -> None:
        for name in _SHARES:
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ReductionError(f"{name} is {value}: it must lie between 0 and 1.")
        for name, least in _COUNTS.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ReductionError(f"{name} is {value}: it must be at least {least}.")
        if not 0 < self.penalty < float("inf"):
            raise ReductionError(f"penalty is {self.penalty}: it must be a positive number (1 changes nothing).")

    @property
    def adaptive(self) -> bool:
        """How many tokens stay is decided for each image."""
        return self.keep == ADAPTIVE

    @property
    def by_question(self) -> bool:
        """What stays depends on the question's text, by CLIP's text tower."""
        return any(self.stages(place)[0] in BY_QUESTION for place in self.places)

    @property
    def places(self) -> tuple[Place, ...]:
        """Where the method drops tokens."""
        return tuple(METHODS[self.method])

    def stages(self, place: Place) -> tuple[str, str, str]:
        """Names of the filter, correlate and compress stages at `place`."""
        row = METHODS[self.method][place]
        return self.filter or row.filter, self.correlate or row.correlate, self.compress or row.compress

    def schedule(self, place: Place) -> Schedule:
        """Which layers of `place` drop by the method's own schedule."""
        return METHODS[self.method][place].schedule

    @classmethod
    def parse(cls, text: str, *, sized: bool = True) -> Reduction:
        """`METHOD[:KEEP][,OPTION=VALUE]...`, the inverse of `str`.

        A method that drops tokens must say how many to keep (`ficoco-v:100%` keeps all), unless `sized` is False: then
        it must not, for a budget says it. `start` and `layers` stand for `vision_start` and so on where the method
        reduces in one place.
        """
        return cls(**parse_values(text, option_types(), sized=sized))

    def __str__(self) -> str:
        head = self.method if self.keep is None else f"{self.method}:{self.keep}"
        if self.keep is None and self.method != "dense":
            head += ":100%"
        changed = [
            f"{field.name}={show(getattr(self, field.name))}"
            for field in fields(self)
            if field.name not in ("method", "keep")
            and field.default is not MISSING
            and getattr(self, field.name) != field.default
        ]
        return ",".join([head, *changed])


@lru_cache
def option_types() -> dict[str, Any]:
    """Field name -> type of its value, `method` and `keep` included."""
    hints = get_type_hints(Reduction)
    return {field.name: hints[field.name] for field in fields(Reduction)}
