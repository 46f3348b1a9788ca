"""Scores by the benchmarks' own rules, with worked examples for each rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.scoring import METRICS, chosen_letter, score, yesno_metrics
from pipeline.vqa_normalise import CONTRACTIONS, normalise


@pytest.mark.parametrize("metric", METRICS)
def test_without_a_reference_there_is_no_score(metric: str) -> None:
    assert score(metric, "yes", []) is None
    assert score(metric, "yes", ["", "  "]) is None


def test_the_metric_none_scores_nothing() -> None:
    assert score("none", "yes", ["yes"]) is None


def test_an_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown metric 'yes-no': did you mean 'yesno'"):
        score("yes-no", "yes", ["yes"])


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("A red  Ball.", ["a red ball"], 1.0),
        ("red", ["blue", "RED"], 1.0),
        ("dark red", ["red"], 0.0),
        ("red ball", ["redball"], 0.0),
        ("", ["red"], 0.0),
    ],
)
def test_exact(answer: str, references: list[str], expected: float) -> None:
    assert score("exact", answer, references) == expected


@pytest.mark.parametrize(
    ("agreeing", "expected"),
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_vqa_gives_the_accuracy_of_the_evaluation_page(agreeing: int, expected: float) -> None:
    """The page's leave-one-out mean over ten annotators, of whom so many gave this answer."""
    references = ["red"] * agreeing + ["blue"] * (10 - agreeing)
    assert score("vqa", "red", references) == pytest.approx(expected)


@given(st.lists(st.sampled_from(["red", "blue", "green"]), min_size=10, max_size=12), st.sampled_from(["red", "blue"]))
def test_vqa_equals_the_loop_over_panels(references: list[str], answer: str) -> None:
    panels = [references[:left_out] + references[left_out + 1 :] for left_out in range(len(references))]
    expected = sum(min(1.0, panel.count(answer) / 3) for panel in panels) / len(panels)
    assert score("vqa", answer, references) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("red", ["red"], 1.0),
        ("red", ["red", "blue"], 0.5),
        ("red", ["red", "blue", "green"], 1 / 3),
        ("red", ["red", "red", "red", "blue", "blue"], 1.0),
        ("red", ["blue"], 0.0),
    ],
)
def test_vqa_with_a_small_panel(answer: str, references: list[str], expected: float) -> None:
    assert score("vqa", answer, references) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes", "yes"),
        ("The dog", "dog"),
        ("a cat and an owl", "cat and owl"),
        ("two", "2"),
        ("none", "0"),
        ("Ten  people", "10 people"),
        ("twelve", "twelve"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("yall'd've", "y'all'd've"),
        ("im", "im"),
        ("well", "well"),
        ("3.5", "3.5"),
        ("yes.", "yes"),
        ("U.S.A.", "usa"),
        ("1,000", "1000"),
        ("red, white and blue", "red white and blue"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("black/white / red", "blackwhite red"),
        ("two-story", "2 story"),
        ("left - right", "left right"),
        ("(left)", "left"),
        ("what?", "what"),
        ("dog's", "dog 's"),
        ("line\nbreak\ttab", "line break tab"),
        ("", ""),
    ],
)
def test_vqa_normalisation(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_contractions_that_are_other_words_are_left_alone() -> None:
    assert CONTRACTIONS.keys().isdisjoint({"were", "well", "shell", "hell", "ill", "id", "its", "lets", "shed", "wed"})
    assert all(word.replace("'", "") == full.replace("'", "") for word, full in CONTRACTIONS.items())


@given(st.text(max_size=30))
def test_a_lone_reference_is_met_by_itself(text: str) -> None:
    if text.strip():
        assert score("vqa", text, [text]) == 1.0
        assert score("exact", text, [text]) == 1.0


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Yes", "yes"),
        ("no", "no"),
        ("No, there is no dog in the image.", "no"),
        ("Yes, there is no doubt about the dog.", "yes"),
        ("There is not a dog. Yes.", "no"),
        ("The image shows a dog. There is no cat.", "yes"),
        ("NO!", "no"),
        ("There is a notable dog", "yes"),
        ("Nothing", "yes"),
    ],
)
def test_yesno_follows_the_first_sentence(answer: str, said: str) -> None:
    assert score("yesno", answer, [said]) == 1.0
    assert score("yesno", answer, ["no" if said == "yes" else "yes"]) == 0.0


def test_yesno_has_no_score_for_other_references() -> None:
    assert score("yesno", "yes", ["a dog"]) is None


QUESTION = "Which is it?\nA. a cat\nB. a dog\n(C) neither of them\nAnswer with the option's letter."


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("A", "A"),
        ("b", "B"),
        ("(A)", "A"),
        ("A.", "A"),
        ("B. a dog", "B"),
        ("(C) neither of them", "C"),
        ("B) because it barks", "B"),
        ("The answer is B.", "B"),
        ("I think the answer is (C), neither.", "C"),
        ("Option B", "B"),
        ("Answer: A", "A"),
        ("A dog", "B"),
        ("neither of them", "C"),
        ("A bird", None),
        ("The answer is a dog", None),
        ("The answer is A. No, the answer is B.", None),
        ("", None),
    ],
)
def test_choice_finds_the_letter(answer: str, letter: str | None) -> None:
    assert score("choice", answer, ["A"], QUESTION) == float(letter == "A")
    assert score("choice", answer, ["B"], QUESTION) == float(letter == "B")
    assert score("choice", answer, ["neither of them"], QUESTION) == float(letter == "C")


def test_choice_without_options_still_reads_letters() -> None:
    assert chosen_letter("The answer is D", {}) == "D"
    assert chosen_letter("A dog", {}) is None
    assert score("choice", "a dog", ["a dog"], "What is it?") == 1.0


@given(
    st.sampled_from(list(METRICS)),
    st.text(max_size=40),
    st.lists(st.text(max_size=20), max_size=11),
    st.text(max_size=60),
)
def test_every_score_is_none_or_between_0_and_1(metric: str, answer: str, references: list[str], question: str) -> None:
    result = score(metric, answer, references, question)
    assert result is None or 0.0 <= result <= 1.0


def test_corpus_figures_of_yes_and_no() -> None:
    """Three true yes, one false yes, two false no, four true no."""
    pairs = [("yes", "yes")] * 3 + [("yes", "no")] + [("no", "yes")] * 2 + [("no", "no")] * 4 + [("yes", "a dog")]
    assert yesno_metrics(pairs) == {
        "total": 10,
        "accuracy": pytest.approx(0.7),
        "precision": pytest.approx(0.75),
        "recall": pytest.approx(0.6),
        "f1": pytest.approx(2 * 0.75 * 0.6 / 1.35),
        "yes_ratio": pytest.approx(0.4),
    }
    assert yesno_metrics([])["f1"] == 0.0
