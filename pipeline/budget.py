"""A run whose tokens to keep follow from a budget given as cost, once the model's shape is known."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from pipeline.config import RunConfig
from reduction.budget import Request, solve

TEXT_TOKENS = 60
"""Of the prompt that a budget is solved for, as the published labels are; a corpus' own prompts may be longer."""


def within_budget(config: RunConfig) -> tuple[RunConfig, dict[str, Any]]:
    """The run as if the tokens to keep had been given, and a remark on what was asked for and reached.

    Without a budget: the run as it is. A share counts `max_new_tokens` generated tokens.
    Raises as `check_model` does, and ReductionError for a budget that the method cannot meet.
    """
    budget = config.budget
    if budget is None:
        return config, {}
    from pipeline.model_check import checked_shape  # brings torch, which other commands can be refused without

    _, shape = checked_shape(config.model, config.text_tower)
    request = Request(text_tokens=TEXT_TOKENS, new_tokens=config.max_new_tokens)
    solved = solve(config.parsed_reduction, shape, *budget, request)
    settled = replace(config, reduction=str(solved.reduction), split=None, budget_tflops=None, budget_share=None)
    return settled, {"budget": {**asdict(solved), **asdict(request), "reduction": str(solved.reduction)}}
