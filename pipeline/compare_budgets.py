"""The settings of a comparison: as they were written, or brought to a cost by their method's own number of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from transformers import AutoTokenizer

from pipeline.checkpoint import load_config
from pipeline.compare_config import DENSE, Budget, CompareConfig, duplicates_dropped
from pipeline.errors import UserError
from pipeline.prompts import PromptError, PromptFormat
from pipeline.records import Sample, ShardRef
from pipeline.shards import read_shard
from reduction.budget import Request, Solution, solve
from reduction.errors import ReductionError
from reduction.schedule import plan
from reduction.settings import Reduction
from reduction.shapes import ModelShape

PROMPTS_COUNTED = 256


@dataclass
class Settings:
    names: list[str]
    """In full notation, each once, dense first."""
    budgets: dict[str, Solution] = field(default_factory=dict)
    """Setting -> what was asked for and reached, where it came from a budget."""
    out_of_reach: list[str] = field(default_factory=list)
    """One sentence for each method that cannot meet some budgets."""


def needs_budget(written: Sequence[str]) -> bool:
    return any(_without_tokens(text) for text in written)


def check_settings(written: Sequence[str], budgets: Sequence[Budget], shape: ModelShape) -> None:
    """What can be known to be wrong before the corpus is looked at.

    Raises:
        UserError: a setting names no tokens and there is no budget.
        ReductionError: a setting is unknown or does not fit the model.
    """
    for text in written:
        if not _without_tokens(text):
            plan(Reduction.parse(text), shape)
        elif budgets:
            plan(_keeping_all(text), shape)
        else:
            method, comma, options = text.partition(",")
            raise UserError(
                f"{text} does not say how many tokens to keep: write {method.rstrip()}:64{comma}{options}, or give a "
                "budget with --budget-tflops or --budget-share"
            )


def choose_settings(written: Sequence[str], budgets: Sequence[Budget], shape: ModelShape, request: Request) -> Settings:
    """Settings that name their tokens as they are, the others at each budget.

    Args:
        request: what budgets are solved for.

    Raises:
        UserError: no budget can be met by any method.
    """
    found = Settings([])
    names: list[str] = []
    unmet: list[ReductionError] = []
    for text in written:
        if not _without_tokens(text):
            names.append(str(Reduction.parse(text)))
            continue
        missed: dict[str, ReductionError] = {}
        for budget in budgets:
            try:
                solved = solve(_keeping_all(text), shape, *budget, request)
            except ReductionError as error:
                missed[_shown(budget)] = error
                continue
            names.append(str(solved.reduction))
            found.budgets[str(solved.reduction)] = solved
        if missed:
            unmet += missed.values()
            first = str(next(iter(missed.values())))
            reason = first.partition(": ")[2] or first
            found.out_of_reach.append(f"{text} cannot meet {' and '.join(missed)}: {reason}")
    found.names = duplicates_dropped(names)
    if unmet and not found.budgets:
        raise UserError(str(unmet[0]))
    return found


def mean_prompt_tokens(config: CompareConfig, refs: Iterable[ShardRef]) -> int:
    """Text tokens of a prompt, the mean of the sample's first ones; a budget is solved for such a prompt.

    Raises:
        UserError: the tokenizer cannot be used, or no sample asks anything.
    """
    image = load_config(config.model).image_token_id
    prompts = PromptFormat(
        AutoTokenizer.from_pretrained(config.model, trust_remote_code=False), image, config.system_text
    )
    counts: list[int] = []
    for ref in refs:
        for item in read_shard(ref, config.prompt, config.read_limits):
            for question in item.questions if isinstance(item, Sample) else ():
                try:
                    counts.append(prompts.encode(question.text).text_tokens)
                except PromptError:
                    continue
            if len(counts) >= PROMPTS_COUNTED:
                return round(sum(counts) / len(counts))
    if not counts:
        raise UserError("no sample asks a question, so no cost of one can be known: give --prompt")
    return round(sum(counts) / len(counts))


def _shown(budget: Budget) -> str:
    amount, unit = budget
    return f"{amount:.3g} TFLOPs" if unit == "tflops" else f"{100 * amount:.3g}% of dense"


def _without_tokens(text: str) -> bool:
    head, *options = (part.strip() for part in text.split(","))
    return head != DENSE and ":" not in head and not any(option.startswith("keep=") for option in options)


def _keeping_all(text: str) -> Reduction:
    head, comma, options = text.partition(",")
    return Reduction.parse(f"{head.strip()}:100%{comma}{options}")
