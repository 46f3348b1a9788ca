"""Runs and comparisons that choose by the question: a text tower beside the model, from the option to the last row."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs.caption_corpus import main
from pipeline import text_towers
from pipeline.auto_reduction import grid
from pipeline.command_line import parse_command
from pipeline.errors import UserError
from pipeline.generation import GenerationSettings
from pipeline.job import JobResult, real_parts, run
from pipeline.places import located
from pipeline.records import ShardRef
from pipeline.replica import ReplicaSettings
from pipeline.shard_work import ShardWorker
from reduction.errors import ReductionError
from reduction.flops import count_image, count_text
from reduction.schedule import plan
from reduction.settings import Reduction
from reduction.shapes import from_folder
from reduction.text_checkpoint import load_text_tower
from reduction.text_shape import text_shape
from reduction.text_tower import TextTower
from tests.checkpoint import save_checkpoint
from tests.clip_checkpoint import save_clip
from tests.pipeline.compare_runs import run_compare, thread_cluster, words, write_corpus

SETTINGS = "cdpruner:4,trim:4,trim:adaptive,random:4"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_checkpoint(folder / "llava")
    save_clip(folder / "clip")
    save_clip(folder / "other", seed=1)
    return folder


@pytest.fixture
def folder(tmp_path: Path, store_in: Callable[[Path], str]) -> Path:
    write_corpus(tmp_path / "corpus")
    store_in(tmp_path)
    return tmp_path


def rows(output: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((output / "data").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def annotate(folder: Path, models: Path, *more: str) -> JobResult:
    given = ["--input", f"{folder}/corpus", "--output", f"{folder}/out", "--model", f"{models}/llava"]
    given += ["--tracking-uri", f"sqlite:///{folder}/mlflow.db", "--max-new-tokens", "3", "--batch-size", "4", *more]
    return run(located(parse_command(given), inside_job=False), replace(real_parts(), cluster=thread_cluster))


def flops(models: Path, row: dict[str, Any]) -> float:
    """What an answer about one of two questions about its picture costs."""
    shape = replace(from_folder(models / "llava"), text=text_shape(f"{models}/clip"))
    setting = Reduction("trim", row["visual_tokens"])
    schedule, read = plan(setting, shape), min(24, len(row["question"]) + 2)
    prefix = row["prompt_tokens"] - len(row["question"]) - len("\n ASSISTANT:")
    words = prefix, row["prompt_tokens"], row["generated_tokens"]
    own = count_text(shape, schedule, *words, setting, question_tokens=read)
    return (count_image(shape, schedule, setting).shared_by(2) + own).total


@pytest.mark.parametrize("reduction", ["trim:4", "trim:adaptive"])
def test_a_corpus_is_annotated_by_its_questions(folder: Path, models: Path, reduction: str) -> None:
    result = annotate(folder, models, "--reduction", reduction, "--text-tower", f"{models}/clip")
    assert (result.exit_code, result.summary["answers"]) == (0, 12)
    assert result.summary["flops_per_answer"]["reduction"] > 0
    for row in rows(folder / "out"):
        assert row["flops"] == pytest.approx(flops(models, row))
    about = pq.read_table(next((folder / "out/data").glob("*.parquet"))).schema.metadata
    assert about[b"ficoco.text_tower_digest"].startswith(b"sha256:")
    with pytest.raises(UserError, match="text tower was 'sha256:"):
        annotate(folder, models, "--reduction", reduction, "--text-tower", f"{models}/other")


def test_a_text_tower_that_no_answer_depends_on_changes_no_run(
    folder: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotate(folder, models, "--reduction", "random:4")
    monkeypatch.setattr(text_towers, "load_text_tower", lambda *_: pytest.fail("it was loaded"))
    again = annotate(folder, models, "--reduction", "random:4", "--text-tower", f"{models}/clip")
    assert again.exit_code == 0
    assert "text_tower_digest" not in json.loads((folder / "out/run.json").read_text())["rows_depend_on"]


def test_a_comparison_takes_them_among_its_settings_and_loads_the_tower_once(
    folder: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def load(name: str, *more: Any) -> TextTower:
        loaded.append(name)
        return load_text_tower(name, *more)

    monkeypatch.setattr(text_towers, "load_text_tower", load)
    tower = ["--text-tower", f"{models}/clip"]
    result = run_compare(words(folder, models / "llava", "--settings", SETTINGS, *tower))
    assert result.exit_code == 0
    assert loaded == [f"{models}/clip"]
    monkeypatch.undo()
    found = {row["setting"]: row for row in result.summary["settings"]}
    assert list(found) == ["dense", *SETTINGS.split(",")]
    generation = GenerationSettings(max_new_tokens=3)
    for setting in list(found)[1:]:
        name = setting.replace(":", "_")
        alone = ReplicaSettings(
            f"{models}/llava",
            setting,
            batch_size=4,
            metric="exact",
            generation=generation,
            text_tower=f"{models}/clip",
        )
        worker = ShardWorker(alone, str(folder / name))
        for path in sorted((folder / "corpus").glob("*.tar")):
            worker.work(ShardRef(path.name, str(path), fingerprint="v1"))
        assert rows(folder / "out/settings" / name) == rows(folder / name)
        assert found[setting]["flops_reduction"] > 0 or setting.startswith("random")
    assert result.comparison is not None
    assert [flow.setting for flow in result.comparison.examples[0].flows] == list(found)
    with pytest.raises(UserError, match="text tower was"):
        run_compare(words(folder, models / "llava", "--settings", SETTINGS, "--text-tower", f"{models}/other"))


@pytest.mark.parametrize("settings", ["random:4,trim:4", "random:4,cdpruner --budget-tflops 0.001"])
def test_a_comparison_without_a_text_tower_is_refused_at_once(folder: Path, models: Path, settings: str) -> None:
    named, *more = settings.split()
    with pytest.raises(ReductionError, match="give one with --text-tower"):
        run_compare(words(folder, models / "llava", "--settings", named, *more))
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("tower", "said"),
    [
        ([], "which a LLaVA checkpoint does not carry: give one with --text-tower"),
        (["--text-tower", "{}/llava"], "is a 'llava', not a clip"),
        (["--text-tower", "{}/nowhere"], "no text tower at"),
    ],
)
def test_a_run_that_cannot_choose_is_refused_at_once(
    folder: Path, models: Path, tower: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--input", f"{folder}/corpus", "--output", f"{folder}/out", "--model", f"{models}/llava"]
    given += ["--reduction", "cdpruner:4", *(word.format(models) for word in tower)]
    assert main(given) == 2
    assert said in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_an_automatic_choice_tries_them_where_there_is_a_text_tower(models: Path) -> None:
    shape = from_folder(models / "llava")
    tried = grid(replace(shape, text=text_shape(f"{models}/clip")))
    assert {setting for setting in tried if setting not in grid(shape)} == {
        f"cdpruner:{share}" for share in ("67%", "50%", "33%", "22%", "11%")
    }
