"""The commands on a real local Ray: a comparison with its report, and a run that chooses its reduction."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs.compare_reductions import main
from tests.checkpoint import save_checkpoint
from tests.pipeline.compare_runs import write_corpus

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    save_checkpoint(folder / "model")
    write_corpus(folder / "corpus")
    return folder


def command(folder: Path, job: str, *more: str) -> dict[str, Any]:
    words = [sys.executable, str(ROOT / "jobs" / job), "--input", "corpus", "--model", "model"]
    words += ["--max-new-tokens", "3", "--metric", "exact", "--cpus-per-replica", "1", "--replicas", "1", *more]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(words, cwd=folder, text=True, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_settings_are_compared_on_a_local_ray(folder: Path) -> None:
    more = ["--settings", "ficoco-v:4,fastv:4", "--repeats", "2", "--samples", "6", "--output", "compared"]
    summary = command(folder, "compare_reductions.py", *more)
    assert summary["complete"] is True
    assert summary["samples"] == 6
    assert [row["setting"] for row in summary["settings"]] == ["dense", "ficoco-v:4", "fastv:4"]
    assert all(row["images_per_second"] > 0 and row["answers"] == 8 for row in summary["settings"])
    assert summary["recommended"] in ("dense", "ficoco-v:4", "fastv:4")
    assert summary["recommendation"] in (folder / "compared/report.md").read_text()
    assert pq.read_metadata(folder / "compared/comparison.parquet").num_rows == 3


def test_a_run_chooses_its_reduction_on_a_local_ray(folder: Path) -> None:
    more = ["--reduction", "auto", "--min-fidelity", "0.5", "--auto-samples", "4", "--output", "annotated"]
    summary = command(folder, "caption_corpus.py", *more)
    assert summary["complete"] is True
    assert (summary["samples"], summary["answers"]) == (8, 12)
    config = json.loads((folder / "annotated/run.json").read_text())["config"]
    assert config["reduction"] == config["chosen"]["reduction"]
    assert config["chosen"]["samples"] == 4


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ([], "nothing to compare: give --settings"),
        (["--settings", "ficoco-w:4"], "unknown reduction 'ficoco-w'"),
        (["--settings", "ficocov", "--model", "nowhere"], "unknown reduction 'ficocov': did you mean 'ficoco-v'?"),
        (["--settings", "auto"], "auto is no setting to compare: --reduction auto is an option of caption_corpus.py"),
        (["--settings", "dense,auto:64"], "auto:64 is no setting to compare"),
        (["--setting", "fastv:4"], "unknown option --setting: did you mean '--settings'?"),
        (["--settings", "fastv:4", "--model", "nowhere"], "no model at nowhere"),
        (["--settings", "fastv:4", "--input", "nowhere/*.tar"], "nowhere"),
        (["--settings", "fastv:4", "--budget-tflops", "much"], "--budget-tflops is 'much'"),
    ],
)
def test_what_cannot_work_is_one_sentence_before_any_work(
    folder: Path,
    more: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["--input", "corpus", "--output", "none", "--model", "model", *more]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("compare_reductions: ")
    assert sentence in last
    assert not (folder / "none" / "settings").exists()
