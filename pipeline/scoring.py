"""Accuracy by the benchmarks' own rules: one answer and its references -> a score in [0, 1].

`exact`   captions, GQA-like answers: 1 when the answer equals a reference, case, white space and a final period aside.
`vqa`     VQAv2, TextVQA, VizWiz: consensus of ten annotators (visualqa.org/evaluation.html).
`yesno`   POPE: whether the first sentence says yes or no.
`choice`  ScienceQA, MMBench: the letter of the option chosen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from pipeline.errors import UserError, nearest
from pipeline.vqa_normalise import normalise

NONE = "none"
ANNOTATORS_NEEDED = 3
"""How many annotators must have given an answer for it to count in full (VQA)."""
FULL_PANEL = 10
"""Annotators per question in VQAv2, TextVQA and VizWiz."""

_WORD = re.compile(r"[a-z']+")
_LETTER_ALONE = re.compile(r"\(?([A-Za-z])[\s.):]*")
_LETTER_FIRST = re.compile(r"(?:\(([A-Z])\)|([A-Z])[.):])(?:\s|$)")
_LETTER_NAMED = re.compile(r"\b(?i:answer|option|choice)(?i:\s+is)?:?\s+\(?([A-Z])\b(?!')")
_OPTION = re.compile(r"(?:^|\s)\(?([A-Z])[.):]\s*(.+?)(?=\s+\(?[A-Z][.):]\s|\n|$)")


def score(metric: str, answer: str, references: Sequence[str], question: str = "") -> float | None:
    """The score of one answer in [0, 1]; None for the metric `none` or where there is no usable reference.

    Raises:
        UserError: an unknown metric.
    """
    if metric not in METRICS:
        near = nearest(metric, METRICS)
        hint = f"did you mean {near!r}?" if near else f"known are {', '.join(METRICS)}"
        raise UserError(f"unknown metric {metric!r}: {hint}")
    given = [reference for reference in references if reference.strip()]
    return METRICS[metric](answer, given, question) if given else None


def exact(answer: str, references: Sequence[str], question: str = "") -> float:
    """1 when the answer equals one of the references, else 0."""
    return float(_bare(answer) in {_bare(reference) for reference in references})


def vqa(answer: str, references: Sequence[str], question: str = "") -> float:
    """Mean over all leave-one-out panels of min(1, equal answers in the panel / 3).

    With fewer than ten references there is no such panel and the benchmarks say nothing: then it is min(1, equal
    references / min(3, references)), so a single reference must simply be met. Answers and references are normalised
    alike, also where all references agree (the evaluation server's way; the older script left those as they were).
    """
    given = normalise(answer)
    agreeing = sum(normalise(reference) == given for reference in references)
    panel = len(references)
    if panel < FULL_PANEL:
        return min(1.0, agreeing / min(ANNOTATORS_NEEDED, panel))
    left_out_agrees = agreeing * min(1.0, (agreeing - 1) / ANNOTATORS_NEEDED)
    left_out_differs = (panel - agreeing) * min(1.0, agreeing / ANNOTATORS_NEEDED)
    return (left_out_agrees + left_out_differs) / panel


def yesno(answer: str, references: Sequence[str], question: str = "") -> float | None:
    """1 when the answer says what the reference says; None when no reference is a yes or a no."""
    wanted = {word for reference in references if (word := _first_yes_or_no(reference))}
    return float(says(answer) in wanted) if wanted else None


def choice(answer: str, references: Sequence[str], question: str = "") -> float:
    """1 when the option chosen is the reference's; either may be a letter or the text of an option in the question."""
    options = dict(_OPTION.findall(question))
    chosen = chosen_letter(answer, options)
    wanted = {chosen_letter(reference, options) for reference in references} - {None}
    return float(chosen in wanted) if wanted else exact(answer, references)


METRICS: dict[str, Callable[[str, Sequence[str], str], float | None]] = {
    NONE: lambda answer, references, question: None,
    "exact": exact,
    "vqa": vqa,
    "yesno": yesno,
    "choice": choice,
}


def says(answer: str) -> str:
    """`yes` or `no`, by POPE's rule: in the first sentence a `no` or `not` makes it no, anything else is yes.

    Where the sentence holds a plain yes or no, the first of them decides ("Yes, there is no doubt").
    """
    sentence = answer.split(".")[0]
    plain = _first_yes_or_no(sentence)
    if plain:
        return plain
    return "no" if "not" in _WORD.findall(sentence.lower()) else "yes"


def chosen_letter(answer: str, options: dict[str, str]) -> str | None:
    """The option's letter in "A", "(a)", "A. cat", "The answer is A." or an option's text; None if there is none.

    A capital A before other words is an article, not a choice.
    """
    text = answer.strip()
    if alone := _LETTER_ALONE.fullmatch(text):
        return alone[1].upper()
    if first := _LETTER_FIRST.match(text):
        return first[1] or first[2]
    named = set(_LETTER_NAMED.findall(text))
    if len(named) == 1:
        return named.pop()
    matching = [letter for letter, option in options.items() if _bare(option) == _bare(text)]
    return matching[0] if len(matching) == 1 else None


def yesno_metrics(answers: Iterable[tuple[str, str]]) -> dict[str, float]:
    """POPE's figures over (answer, reference) pairs; yes is the positive class. A ratio over nothing is 0."""
    counts = {(said, meant): 0 for said in ("yes", "no") for meant in ("yes", "no")}
    for answer, reference in answers:
        meant = _first_yes_or_no(reference)
        if meant:
            counts[says(answer), meant] += 1
    true_yes, false_yes = counts["yes", "yes"], counts["yes", "no"]
    total = sum(counts.values())
    precision = _ratio(true_yes, true_yes + false_yes)
    recall = _ratio(true_yes, true_yes + counts["no", "yes"])
    return {
        "total": total,
        "accuracy": _ratio(true_yes + counts["no", "no"], total),
        "precision": precision,
        "recall": recall,
        "f1": _ratio(2 * precision * recall, precision + recall),
        "yes_ratio": _ratio(true_yes + false_yes, total),
    }


def _first_yes_or_no(text: str) -> str | None:
    return next((word for word in _WORD.findall(text.lower()) if word in ("yes", "no")), None)


def _bare(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".").rstrip()


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
