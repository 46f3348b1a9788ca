"""What a sample's members ask: every question is read, or rejected with its reason."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext

from pipeline.limits import ReadLimits
from pipeline.samples import split_name
from tests.pipeline.shard_bytes import JPEG, QUICK, Reading, read_bytes, tar_bytes

PROMPT = "Describe the image."


def ask(folder: Path, content: Any, prompt: str | None = None, text: bytes | None = None) -> Reading:
    members = [("k.jpg", JPEG), ("k.json", content)]
    if text is not None:
        members.append(("k.txt", text))
    return read_bytes(folder, tar_bytes(members), prompt)


def test_one_question_brings_its_id_references_and_kind(tmp_path: Path) -> None:
    content = {"question": "How many?", "id": 7, "answers": ["2", "two"], "type": "count", "width": 640}
    (sample,) = ask(tmp_path, content).samples
    (question,) = sample.questions
    assert (question.index, question.id, question.text) == (0, "7", "How many?")
    assert (question.references, question.kind) == (("2", "two"), "count")
    assert json.loads(sample.meta) == {"width": 640}


def test_a_list_of_questions_keeps_what_it_does_not_use(tmp_path: Path) -> None:
    content = {
        "questions": ["What?", {"question": "Which?", "question_id": "q2", "answer": 3, "kind": "k", "choices": ["a"]}],
        "url": "http://x",
    }
    (sample,) = ask(tmp_path, content).samples
    assert [(q.index, q.id, q.references) for q in sample.questions] == [(0, "k#0", ()), (1, "q2", ("3",))]
    assert json.loads(sample.meta) == {"url": "http://x", "questions": [{}, {"choices": ["a"]}]}


def test_conversations_ask_their_human_turns(tmp_path: Path) -> None:
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A cat."},
        {"from": "human", "value": "Its colour?\n<image>"},
        {"from": "human", "value": "Its name?"},
        {"from": "gpt", "value": "Tom."},
    ]
    (sample,) = ask(tmp_path, {"id": "c1", "conversations": turns}).samples
    assert [(q.text, q.references) for q in sample.questions] == [
        ("What is it?", ("A cat.",)),
        ("Its colour?", ()),
        ("Its name?", ("Tom.",)),
    ]
    assert [q.id for q in sample.questions] == ["k#0", "k#1", "k#2"]
    assert json.loads(sample.meta) == {"id": "c1"}


def test_vqa_answers_are_references(tmp_path: Path) -> None:
    content = {"question": "Q?", "answers": [{"answer": "yes", "answer_confidence": "maybe"}, {"answer": "no"}]}
    assert ask(tmp_path, content).samples[0].questions[0].references == ("yes", "no")


def test_img2dataset_samples_are_asked_the_prompt(tmp_path: Path) -> None:
    content = {"caption": "A dog", "url": "https://x/y.jpg", "key": "000000", "status": "success", "similarity": 0.3}
    (sample,) = ask(tmp_path, content, PROMPT, b"A dog\n").samples
    (question,) = sample.questions
    assert (question.id, question.text, question.references) == ("k#0", PROMPT, ("A dog",))
    assert json.loads(sample.meta) == content


def test_a_caption_is_no_reference_for_a_question_of_the_json(tmp_path: Path) -> None:
    (sample,) = ask(tmp_path, {"question": "How many?"}, PROMPT, b"A dog").samples
    assert (sample.questions[0].text, sample.questions[0].references) == ("How many?", ())


@pytest.mark.parametrize("content", [{}, {"questions": []}, {"question": None}, {"conversations": []}])
def test_without_a_question_the_prompt_is_asked_or_the_sample_rejected(tmp_path: Path, content: dict) -> None:
    assert ask(tmp_path, content, PROMPT).samples[0].questions[0].text == PROMPT
    reading = ask(tmp_path, content)
    assert reading.samples == []
    assert reading.reasons == ["no question: neither its JSON nor --prompt asks one"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not json", "it is not JSON (Expecting value, line 1)"),
        (b"", "it is not JSON"),
        (b'{"question": "a"', "it is not JSON"),
        (b'["a"]', "it is a JSON list, not an object"),
        (b'"a"', "it is a JSON string"),
        (b'{"question": "\xff"}', "it is not utf-8 text (byte 14)"),
        (b'{"question": "a", "question": "b"}', "it has 'question' twice"),
        (b'{"question": "a", "x": {"y": 1, "y": 2}}', "it has 'y' twice"),
        (b'{"question": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "it is nested too deeply"),
        (b'{"question": "a", "x": ' + b"1" * 5000 + b"}", "it has a number of too many digits"),
        (b'{"question": "a", "questions": ["b"]}', "it has both 'question' and 'questions'"),
        (b'{"questions": {"a": 1}}', "'questions' is a JSON object, not a list"),
        (b'{"conversations": "hi"}', "'conversations' is a JSON string, not a list"),
    ],
)
@pytest.mark.parametrize("prompt", [None, PROMPT])
def test_json_that_cannot_be_understood_rejects_the_sample(
    tmp_path: Path, content: bytes, reason: str, prompt: str | None
) -> None:
    reading = ask(tmp_path, content, prompt)
    assert reading.samples == []
    (rejection,) = reading.rejections
    assert (rejection.key, rejection.stage, rejection.question_index) == ("k", "sample", None)
    assert rejection.reason.startswith(f"k.json: {reason}")
    assert reading.end.samples == 1
    assert reading.end.complete


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (3, "the question is a JSON number, not text or an object"),
        (None, "the question is a JSON null"),
        (["a"], "the question is a JSON list"),
        ("", "the question is empty"),
        (" \n", "the question is empty"),
        ({}, "the question is a JSON null, not text"),
        ({"question": {"a": 1}}, "the question is a JSON object, not text"),
        ({"question": "a", "answer": True}, "its answer is a JSON boolean"),
        ({"question": "a", "answers": [["x"]]}, "its answer is a JSON list"),
        ({"question": "a", "id": {"x": 1}}, "its id is a JSON object"),
        ({"question": "a", "kind": []}, "its kind is a JSON list"),
    ],
)
def test_one_bad_question_does_not_cost_the_others(tmp_path: Path, item: Any, reason: str) -> None:
    reading = ask(tmp_path, {"questions": ["first", item, "last"]}, PROMPT)
    assert [(q.index, q.text) for q in reading.samples[0].questions] == [(0, "first"), (2, "last")]
    (rejection,) = reading.rejections
    assert rejection.question_index == 1
    assert rejection.reason.startswith(reason)


def test_bad_turns_are_rejected_one_by_one(tmp_path: Path) -> None:
    turns = [
        "hi",
        {"from": "human", "value": 3},
        {"from": "robot", "value": "x"},
        {"from": "human", "value": "<image>"},
    ]
    reading = ask(tmp_path, {"conversations": [*turns, {"from": "user", "value": "ok"}]})
    assert reading.identities == [("k", 4)]
    assert [r.question_index for r in reading.rejections] == [0, 1, 2, 3]
    assert reading.reasons[2:] == ["the turn is neither from human nor from gpt", "the question is empty"]


def test_a_missing_image_rejects_each_question(tmp_path: Path) -> None:
    reading = read_bytes(tmp_path, tar_bytes([("k.json", {"questions": ["a", 1, "b"]}), ("k.v2.jpg", JPEG)]))
    assert reading.samples == []
    assert [(r.question_index, r.question) for r in reading.rejections] == [(0, "a"), (1, None), (2, "b")]
    assert reading.reasons[0] == (
        "no image (.jpg, .jpeg, .png, .webp) under this key, but .v2.jpg (a name is split at its first dot)"
    )
    assert reading.end.members_skipped == {"other extension": 1}


@pytest.mark.parametrize(
    ("names", "chosen"),
    [(["k.JPG"], 0), (["k.jpeg", "k.jpg"], 1), (["k.jpg", "k.png"], 0), (["k.WebP", "k.png"], 1), (["k.webp"], 0)],
)
def test_of_several_images_the_preferred_is_taken(tmp_path: Path, names: list[str], chosen: int) -> None:
    members = [(name, JPEG + bytes([index])) for index, name in enumerate(names)]
    reading = read_bytes(tmp_path, tar_bytes(members), PROMPT)
    assert reading.samples[0].image[-1] == chosen
    assert reading.end.members_skipped == ({"second image": 1} if len(names) > 1 else {})


def test_an_unreadable_preferred_image_is_replaced_by_the_other(tmp_path: Path) -> None:
    data = tar_bytes([("a.jpg", bytes(2000)), ("a.png", JPEG), ("b.jpg", JPEG), ("b.png", bytes(2000))])
    reading = read_bytes(tmp_path, data, PROMPT, ReadLimits(max_image_bytes=1000))
    assert [key for key, _ in reading.identities] == ["a", "b"]


@pytest.mark.parametrize("extra", ["k.jpg", "k.JPG", "k.json"])
def test_a_repeated_member_makes_the_sample_ambiguous(tmp_path: Path, extra: str) -> None:
    members: list[tuple[str, Any]] = [("k.jpg", JPEG), ("k.json", {"question": "a"}), (extra, JPEG), ("l.jpg", JPEG)]
    reading = read_bytes(tmp_path, tar_bytes(members), PROMPT)
    assert reading.identities == [("l", 0)]
    assert "which is meant is not known" in reading.reasons[0]


@given(st.from_regex(re.compile(r"[a-c./_]{0,12}"), fullmatch=True))
def test_names_are_split_as_webdataset_splits_them(name: str) -> None:
    key, extension = base_plus_ext(name)
    if key is not None and key.endswith("/"):
        key = extension = None  # webdataset takes a hidden file in a folder for a sample named after the folder
    assert split_name(name) == (None if key is None else (key, extension))


def test_the_limits_are_validated() -> None:
    with pytest.raises(ValueError, match="max_pixels"):
        ReadLimits(max_pixels=10**9)
    with pytest.raises(ValueError, match="attempts"):
        ReadLimits(attempts=0)
    assert QUICK.max_image_bytes == 64 * 2**20
