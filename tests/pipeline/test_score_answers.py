"""Scoring a finished output again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.score_answers import main
from pipeline.commit import commit_shard
from pipeline.storage import open_output
from tests.pipeline.output_rows import PROVENANCE, answer, report


def test_an_output_is_scored_by_another_metric(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        answer(0, answer="Yes, a dog.", references=("yes",), kind="presence"),
        answer(1, answer="Yes", references=("no",), kind="presence"),
        answer(2, answer="no", references=("no",), kind="other"),
        answer(3, answer="no", references=()),
    ]
    commit_shard(open_output(str(tmp_path)), report(), rows[:2], [], PROVENANCE)
    commit_shard(open_output(str(tmp_path)), report("00001.tar"), rows[2:], [], PROVENANCE)
    assert main(["--output", str(tmp_path), "--metric", "yesno"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["answers"], result["scored"], result["accuracy"]) == (4, 3, pytest.approx(2 / 3))
    assert result["accuracy_by_kind"] == {"other": 1.0, "presence": 0.5}
    assert (result["yesno"]["precision"], result["yesno"]["recall"]) == (0.5, 1.0)


def test_an_output_without_answers_or_references_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--output", str(tmp_path), "--metric", "exact"]
    assert main(arguments) == 2
    assert "has no committed answers" in capsys.readouterr().err
    commit_shard(open_output(str(tmp_path)), report(), [answer(1, references=())], [], PROVENANCE)
    assert main(arguments) == 2
    assert "has a reference that exact can use" in capsys.readouterr().err
