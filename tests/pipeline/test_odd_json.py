"""JSON and captions as they should not be: of every encoding, value and size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.records import QUARANTINE_SCHEMA
from tests.pipeline.shard_bytes import JPEG, Reading, read_bytes, tar_bytes

PROMPT = "Describe the image."


def ask(folder: Path, content: Any, prompt: str | None = None, text: bytes | None = None) -> Reading:
    members = [("k.jpg", JPEG), ("k.json", content)]
    if text is not None:
        members.append(("k.txt", text))
    return read_bytes(folder, tar_bytes(members), prompt)


@pytest.mark.parametrize(
    ("caption", "references"),
    [(b"", ()), (b"  \n", ()), (b"\xef\xbb\xbfa cat", ("a cat",)), ("été".encode(), ("été",))],
)
def test_captions(tmp_path: Path, caption: bytes, references: tuple[str, ...]) -> None:
    assert ask(tmp_path, {}, PROMPT, caption).samples[0].questions[0].references == references


def test_a_caption_that_is_not_text_rejects_only_who_needs_it(tmp_path: Path) -> None:
    assert ask(tmp_path, {}, PROMPT, b"\xff\xfe\xff").reasons == ["k.txt: it is not UTF-8 text (byte 0)"]
    assert ask(tmp_path, {"question": "a"}, PROMPT, b"\xff\xfe\xff").rejections == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_in_any_unicode_encoding_is_read(tmp_path: Path, encoding: str) -> None:
    content = json.dumps({"question": "Où?"}, ensure_ascii=False).encode(encoding)
    assert ask(tmp_path, content).samples[0].questions[0].text == "Où?"


def test_nan_and_infinity_become_null(tmp_path: Path) -> None:
    content = b'{"question": "a", "x": NaN, "y": -Infinity, "z": 1e999, "w": 1.5}'
    assert json.loads(ask(tmp_path, content).samples[0].meta) == {"x": None, "y": None, "z": None, "w": 1.5}


def test_control_characters_stay_and_lone_surrogates_are_replaced(tmp_path: Path) -> None:
    content = b'{"questions": ["a\\u0000b\\u001b", "\\ud800x", "\\ud83d\\ude00"], "note": "\\udfff"}'
    (sample,) = ask(tmp_path, content).samples
    assert [q.text for q in sample.questions] == ["a\0b\x1b", "\ufffdx", "😀"]
    pa.array([q.text for q in sample.questions] + [sample.meta], pa.string()).validate(full=True)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["question", "questions", "conversations", "from", "value", "id", "answers", "kind"])
            | st.text(max_size=3),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(
    value=st.dictionaries(
        st.sampled_from(["question", "questions", "conversations", "id", "x"]), json_values, max_size=4
    )
)
def test_any_json_is_answered_or_rejected_in_words_that_arrow_takes(tmp_path_factory, value: dict[str, Any]) -> None:
    reading = ask(tmp_path_factory.getbasetemp(), json.dumps(value).encode(), PROMPT)
    indices = [index for _, index in reading.identities] + [r.question_index for r in reading.rejections]
    assert len(indices) == len(set(indices)) >= 1
    for sample in reading.samples:
        assert isinstance(json.loads(sample.meta), dict)
        pa.array([q.text for q in sample.questions] + [q.id for q in sample.questions] + [sample.meta], pa.string())
    rows = [{name: getattr(r, name) for name in QUARANTINE_SCHEMA.names} for r in reading.rejections]
    pa.Table.from_pylist(rows, QUARANTINE_SCHEMA).validate(full=True)


@given(data=st.binary(max_size=200))
def test_any_bytes_as_json_and_caption_are_accounted_for(tmp_path_factory, data: bytes) -> None:
    reading = read_bytes(
        tmp_path_factory.getbasetemp(), tar_bytes([("k.jpg", JPEG), ("k.json", data), ("k.txt", data)]), PROMPT
    )
    assert len(reading.samples) + len(reading.rejections) == 1


@pytest.mark.timeout(60)
def test_hostile_json_is_read_in_linear_time(tmp_path: Path) -> None:
    names = ",".join(f'"{index}":0' for index in range(200_000))
    assert "has '199999' twice" in ask(tmp_path, f'{{{names},"199999":1}}'.encode()).reasons[0]
