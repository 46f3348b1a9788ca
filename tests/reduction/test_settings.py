"""A reduction is parsed, validated and printed back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reduction.settings import Reduction, ReductionError

UNIT = st.floats(0, 1)
REDUCTIONS = st.builds(
    Reduction,
    method=st.sampled_from(["ficoco-v", "ficoco-l", "ficoco-vl"]),
    keep=st.one_of(st.none(), st.integers(1, 10**6), st.floats(0.01, 100).map(lambda share: f"{share}%")),
    vision_start=st.none() | st.integers(0, 99),
    language_layers=st.none() | st.integers(1, 99),
    split=UNIT,
    lam=UNIT,
    epsilon=UNIT,
    local_penalty=st.booleans(),
    window=st.integers(1, 9),
    penalty=st.floats(0.1, 10),
    cls_scores=st.sampled_from(["softmax", "raw", "keys"]),
    positions=st.sampled_from(["original", "packed"]),
    filter=st.none() | st.sampled_from(["random", "stride"]),
    compress=st.none() | st.sampled_from(["merge", "mean", "prune"]),
)


@given(REDUCTIONS)
def test_text_form_is_read_back(reduction: Reduction) -> None:
    again = Reduction.parse(str(reduction))
    assert again == (reduction if reduction.keep is not None else Reduction(**{**vars(reduction), "keep": "100%"}))


def test_text_form_names_only_what_differs() -> None:
    assert str(Reduction()) == "dense"
    text = "ficoco-v:64,epsilon=0.99,local_penalty=false"
    assert str(Reduction.parse(text)) == text


def test_short_names_mean_the_methods_own_place() -> None:
    assert Reduction.parse("ficoco-v:64, start=3, layers=2") == Reduction(
        "ficoco-v", 64, vision_start=3, vision_layers=2
    )
    assert Reduction.parse("ficoco-l:11%,start=3,lambda=0.5") == Reduction("ficoco-l", "11%", language_start=3, lam=0.5)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("ficoko-v:64", "unknown reduction 'ficoko-v': did you mean 'ficoco-v'?"),
        ("zzz", "unknown reduction 'zzz': known: dense, ficoco-v, ficoco-l, ficoco-vl, random, "),
        ("ficoco-v:64,epsilom=1", "unknown reduction option 'epsilom': did you mean 'epsilon'?"),
        ("ficoco-v:64,method=dense", "unknown reduction option 'method'"),
        ("ficoco-v", "does not say how many visual tokens to keep"),
        ("dense:64", "dense keeps every visual token"),
        ("ficoco-v:0", "cannot keep 0 visual tokens"),
        ("ficoco-v:0%", "cannot keep '0%' visual tokens"),
        ("ficoco-v:101%", "cannot keep '101%' visual tokens"),
        ("ficoco-v:many", "cannot keep 'many' visual tokens"),
        ("ficoco-v:64,epsilon", "has no value: write NAME=VALUE"),
        ("ficoco-v:64,epsilon=1.5", "epsilon is 1.5: it must lie between 0 and 1"),
        ("ficoco-v:64,epsilon=nan", "epsilon is nan: it must lie between 0 and 1"),
        ("ficoco-v:64,window=0", "window is 0: it must be at least 1"),
        ("ficoco-v:64,window=x", "window='x' is not a whole number"),
        ("ficoco-v:64,penalty=0", "penalty is 0.0: it must be a positive number"),
        ("ficoco-v:64,local_penalty=perhaps", "is not true or false"),
        ("ficoco-v:64,epsilon=0.9,epsilon=0.8", "stands twice"),
        ("ficoco-vl:64,start=3", "write vision_start or language_start"),
        ("ficoco-v:64,positions=orginal", "unknown positions value 'orginal': did you mean 'original'?"),
        ("ficoco-v:64,filter=randon", "unknown filter stage 'randon': did you mean 'random'?"),
        ("ficoco-v:64,correlate=attention_and_text", "is made for the language model only"),
    ],
)
def test_errors_are_one_clear_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ReductionError) as error:
        Reduction.parse(text)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
