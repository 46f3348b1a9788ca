"""The answer normalisation of the VQA challenge, as its evaluation server and LLaVA's evaluation apply it.

Rules from the VQA evaluation page (visualqa.org/evaluation.html): lower case, periods except in decimal numbers,
number words to digits, articles removed, apostrophes put into contractions, punctuation removed or replaced with a
blank. Where the page is vague the server's behaviour is followed, its oddities included: a punctuation mark is
deleted everywhere when a blank stands beside it anywhere in the answer, and becomes a blank otherwise; commas and
question marks always go.
"""

from __future__ import annotations

import re

NUMBERS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
ARTICLES = frozenset({"a", "an", "the"})
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'

_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd somebody'd've somebody'll
somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _with_one_apostrophe_lost(words: str) -> dict[str, str]:
    """Each way of leaving out one apostrophe -> the contraction. Words with another meaning without it (we'll, she'd,
    I'll) are not in the list."""
    return {
        word[:place] + word[place + 1 :]: word
        for word in words.split()
        for place, letter in enumerate(word)
        if letter == "'"
    }


CONTRACTIONS = _with_one_apostrophe_lost(_CONTRACTED)
_PERIOD = re.compile(r"\.(?!\d)")


def normalise(answer: str) -> str:
    """`answer` in the form in which the VQA challenge compares answers."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.replace("\n", " ").replace("\t", " ").strip()
    return _plain_words(_without_punctuation(text))


def _without_punctuation(text: str) -> str:
    bare = text
    for mark in PUNCTUATION:
        beside_blank = f"{mark} " in text or f" {mark}" in text
        bare = bare.replace(mark, "" if beside_blank else " ")
    return _PERIOD.sub("", bare)


def _plain_words(text: str) -> str:
    words = (NUMBERS.get(word, word) for word in text.split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
