"""ROUGE-L (Lin 2004): how much of one answer stands in another, word by word in order."""

from __future__ import annotations

import re
from collections.abc import Sequence

_WORD = re.compile(r"\w+")


def rouge_l(answer: str, other: str) -> float:
    """F1 in [0, 1] from the longest common subsequence of the words, case and punctuation aside.

    Two answers without a word are equal; one without a word shares nothing with one that has some.
    """
    ours, theirs = _WORD.findall(answer.lower()), _WORD.findall(other.lower())
    if ours == theirs:
        return 1.0
    common = longest_common(ours, theirs)
    # Of precision c/n and recall c/m the harmonic mean is 2c / (n + m).
    return 2 * common / (len(ours) + len(theirs))


def longest_common(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """Length of the longest common subsequence; one step on whole-row bit sets per word (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for index, word in enumerate(ours):
        places[word] = places.get(word, 0) | 1 << index
    full = (1 << len(ours)) - 1
    row = full
    for word in theirs:
        matching = row & places.get(word, 0)
        row = (row + matching | row - matching) & full
    return len(ours) - row.bit_count()
