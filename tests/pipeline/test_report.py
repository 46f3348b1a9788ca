"""The report: what stands on the page, that nothing else can, and that it stays small."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pipeline.comparison import Comparison, Flow
from pipeline.report import page, write_report
from pipeline.report_markdown import markdown
from pipeline.storage import open_output
from tests.pipeline.comparisons import comparison, example, many, result

ATTACK = "<script>alert('x')</script>\"'><img src=x onerror=alert(1)> | `code` | [a](javascript:alert(1)) {{ 7*7 }}"


class Page(HTMLParser):
    """Elements, attributes and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def hostile() -> Comparison:
    """Every text that comes from a corpus, a model or a command line is an attack."""
    shown = example(["dense", ATTACK], key=ATTACK, question=ATTACK, references=(ATTACK,))
    flows = tuple(replace(flow, answer=ATTACK) for flow in shown.flows)
    kinds = {ATTACK: 0.5}
    return comparison(
        result("dense", 0.9, 1.0, accuracy_by_kind=kinds),
        result(ATTACK, 0.8, 0.5, method=ATTACK, accuracy_by_kind=kinds),
        examples=(replace(shown, flows=flows),),
        recommendation=ATTACK,
        recommended=ATTACK,
        model=ATTACK,
        metric=ATTACK,
        hardware={ATTACK: ATTACK},
        versions={"torch": ATTACK},
        notes=(ATTACK,),
    )


def test_hostile_texts_stay_text() -> None:
    calm, attacked = Page(page(comparison(*comparison().results[:2]))), Page(page(hostile()))
    assert attacked.count("script") == calm.count("script") == 1
    assert attacked.count("img") == 0
    assert {tag for tag, _ in attacked.elements} <= {tag for tag, _ in calm.elements}
    assert not [name for _, attributes in attacked.elements for name in attributes if name.startswith("on")]
    assert attacked.text.count("<script>alert('x')</script>") >= 10
    assert "{{ 7*7 }}" in attacked.text


def test_hostile_texts_stay_text_in_markdown() -> None:
    text = markdown(hostile())
    assert not re.search(r"(?<!\\)<", text)
    assert not re.search(r"(?<!\\)\[a", text)
    rows = [re.sub(r"\\.", "", line) for line in text.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows[:4]}) == 1


def test_the_page_needs_nothing_beside_it_and_allows_its_own_script_alone() -> None:
    text = page(comparison())
    for tag, attributes in Page(text).elements:
        for name in ("src", "href", "data", "action", "xlink:href"):
            value = attributes.get(name) or ""
            assert value == "" or value.startswith(("data:image/jpeg;base64,", "#")), (tag, value)
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    assert "unsafe-inline" not in text.split("script-src")[1].split('"')[0]


def test_fifty_settings_over_five_pictures_stay_below_two_megabytes() -> None:
    text = page(many(50, 5))
    assert len(text.encode()) < 2_000_000
    assert text.count("data:image/jpeg") == 5
    assert Page(text).count("use") == 250


def test_the_tables_hold_what_was_measured(tmp_path: Path) -> None:
    measured = comparison()
    write_report(open_output(str(tmp_path)), measured)
    for text in (Page((tmp_path / "report.html").read_text()).text, (tmp_path / "report.md").read_text()):
        for expected in (
            measured.recommendation,
            "91.0 to 95.0",  # accuracy of ficoco-v:64
            "−2.0",  # its difference to dense
            "−3.5 to −0.5",
            "0.040",
            "3.33×",
            "60 %",
            "NVIDIA H100",
            "2.5 USD an hour",
        ):
            assert expected in text.replace("\\", ""), expected


def test_long_and_broken_texts_do_no_harm(tmp_path: Path) -> None:
    long, broken = "word " * 100_000, "half a pair \ud800 \x00 \u202e"
    shown = example(["dense", "ficoco-v:64"], question=long, references=(long, "red", "red"), key=broken)
    flows = (replace(shown.flows[0], answer=long), replace(shown.flows[1], answer=broken))
    found = comparison(examples=(replace(shown, flows=flows),), notes=(broken,))
    write_report(open_output(str(tmp_path)), found)
    assert len((tmp_path / "report.html").read_bytes()) < 200_000
    text = page(comparison(examples=(replace(shown, references=("red", "red", "dark red")),)))
    assert "right is <bdi>red; dark red</bdi>" in text


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-7b-hf"),
        ("/home/someone/checkpoints/llava", "checkpoints/llava"),
        ("/llava", "/llava"),
    ],
)
def test_a_models_folder_is_named_by_its_end(model: str, shown: str) -> None:
    for text in (Page(page(comparison(model=model))).text, markdown(comparison(model=model))):
        assert shown in text
        assert "someone" not in text


def test_without_references_fidelity_takes_accuracys_place() -> None:
    bare: dict[str, Any] = {"accuracy": None, "accuracy_by_kind": {}, "accuracy_difference": None, "mcnemar_p": None}
    text = Page(page(comparison(result("dense", share=1.0, **bare), result("fastv:64", **bare)))).text
    assert "Fidelity to dense against cost" in text
    assert "Accuracy" not in text
    assert "By kind of question" not in text


@pytest.mark.parametrize("alone", [True, False])
def test_little_is_enough_for_a_page(alone: bool) -> None:
    none = {"usd_per_million_images": None, "realised_share": None, "mcnemar_p": None}
    results = [result("dense", 0.0, 1.0, **none), *([] if alone else [result("random:1", 0.0, 1.0, **none)])]
    found = comparison(*results, examples=(), notes=(), usd_per_hour=None, recommended=None, versions={}, hardware={})
    text = Page(page(found))
    assert "Money" not in text.text
    assert "What is left of the picture" not in text.text
    assert text.count("figure") == 2


def test_the_setting_that_is_recommended_stands_out() -> None:
    marked = page(comparison())
    assert '<strong class="choice"><span>ficoco-v:64</span></strong>' in marked
    assert marked.count('class="ring"') == 3 + 1  # the charts and their key
    for recommended in (None, "random:64"):
        text = page(comparison(recommended=recommended))
        assert '<strong class="choice">' not in text
        assert "The cheapest setting within 2 points of dense is ficoco-v:64." in Page(text).text


def test_an_answer_that_is_not_denses_is_marked() -> None:
    shown = example(["dense", "ficoco-v:64", "random:64"])
    flows = (*shown.flows[:2], Flow("random:64", "blue", shown.flows[2].kept))
    text = page(comparison(examples=(replace(shown, flows=flows),)))
    assert re.findall(r'<span dir="auto" class="other">([^<]*)<', text) == ["blue"]
    # Pruned content went nowhere, so there is nothing to draw an arrow to.
    assert text.count('class="arrow"') == 2
