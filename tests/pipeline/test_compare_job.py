"""A comparison with a tiny real model: answers, times, what is written, continuing, and what is refused."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from pipeline.errors import UserError
from pipeline.generation import GenerationSettings
from pipeline.records import ShardRef
from pipeline.replica import ReplicaSettings
from pipeline.shard_work import ShardWorker
from pipeline.storage import open_output
from pipeline.verification import verify
from reduction.errors import ReductionError
from tests.checkpoint import save_checkpoint
from tests.pipeline.compare_runs import run_compare, words, write_corpus

ROOT = Path(__file__).parents[2]
SLUGS = {"dense": "dense", "ficoco-v:4": "ficoco-v_4", "random:4": "random_4", "fastv:4": "fastv_4"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def folder(tmp_path: Path, store_in: Callable[[Path], str]) -> Path:
    write_corpus(tmp_path / "corpus")
    store_in(tmp_path)
    return tmp_path


def rows(output: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((output / "data").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def written(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in (folder / "out" / "settings").glob("*/data/*")}


def test_every_setting_gives_the_answers_of_a_run_of_its_own(folder: Path, model: Path) -> None:
    result = run_compare(words(folder, model))
    assert result.exit_code == 0
    assert [row["setting"] for row in result.summary["settings"]] == list(SLUGS)
    generation = GenerationSettings(max_new_tokens=3)
    for setting, name in SLUGS.items():
        alone = ReplicaSettings(str(model), setting, batch_size=4, metric="exact", generation=generation)
        worker = ShardWorker(alone, str(folder / name))
        for path in sorted((folder / "corpus").glob("*.tar")):
            worker.work(ShardRef(path.name, str(path), fingerprint="v1"))
        ours = rows(folder / "out" / "settings" / name)
        assert len(ours) == 12
        assert ours == rows(folder / name)
        assert verify(open_output(str(folder / "out" / "settings" / name))).ok


def test_the_figures_are_those_of_the_rows(folder: Path, model: Path) -> None:
    result = run_compare(words(folder, model, "--gpu-hour-usd", "3.6"))
    comparison = result.comparison
    assert comparison is not None
    assert (comparison.samples, comparison.repeats) == (8, 2)
    dense = {(row["shard"], row["key"], row["question_index"]): row for row in rows(folder / "out/settings/dense")}
    for one in comparison.results:
        own = rows(folder / "out/settings" / SLUGS[one.setting])
        same = [row["answer"] == dense[row["shard"], row["key"], row["question_index"]]["answer"] for row in own]
        assert one.fidelity is not None
        assert one.fidelity.value == pytest.approx(sum(same) / len(same))
        assert sum(one.flops.values()) == pytest.approx(sum(row["flops"] for row in own) / len(own))
        assert one.accuracy is not None
        assert one.accuracy.value == pytest.approx(sum(row["correct"] for row in own) / len(own))
        assert set(one.accuracy_by_kind) == {"kind 0", "kind 1"}
        assert (one.questions, one.answers) == (16, 12)
        assert one.images_per_second.low <= one.images_per_second.value <= one.images_per_second.high
        assert one.answers_per_second.value == pytest.approx(2 * one.images_per_second.value)
        assert one.usd_per_million_images == pytest.approx(1000 / one.images_per_second.value)
        assert all(one.seconds[part] > 0 for part in ("vision", "prefill", "decode"))
        assert one.peak_megabytes > 0
        assert len(one.decoder_lengths) == 5
    first, *others = comparison.results
    assert first.realised_share is None
    for one in others:
        speed = one.images_per_second.value / first.images_per_second.value
        saved = sum(first.flops.values()) / sum(one.flops.values())
        assert one.realised_share == pytest.approx(speed / saved)
        assert one.visual_tokens == 4


def test_it_is_written_as_parquet_csv_and_nested_runs(folder: Path, model: Path) -> None:
    result = run_compare(words(folder, model))
    rows_written = pq.read_table(folder / "out" / "comparison.parquet")
    with (folder / "out" / "comparison.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert rows_written.column("setting").to_pylist() == [line["setting"] for line in lines] == list(SLUGS)
    assert float(lines[1]["fidelity_low"]) == rows_written.column("fidelity_low")[1].as_py()
    assert rows_written.schema.metadata[b"ficoco.samples"] == b"8"
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    parent = client.get_run(result.summary["mlflow_run_id"])
    assert parent.info.status == "FINISHED"
    assert parent.data.params["settings"] == " ".join(SLUGS)
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert {child.info.run_name for child in children} == set(SLUGS)
    fidelity = {child.info.run_name: child.data.metrics["fidelity"] for child in children}
    assert fidelity == {row["setting"]: row["fidelity"] for row in result.summary["settings"]}
    artifacts = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert artifacts == {
        *("comparison.json", "comparison.csv", "comparison.parquet", "config.yaml", "report.html", "report.md")
    }
    # A rerun brings the same runs up to date.
    run_compare(words(folder, model))
    again = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert len(again) == len(children)
    table = json.loads(Path(client.download_artifacts(parent.info.run_id, "comparison.json")).read_text())
    assert [line[table["columns"].index("setting")] for line in table["data"]] == list(SLUGS)


def test_its_report_shows_what_each_setting_kept_of_pictures_from_all_over_the_corpus(
    folder: Path, model: Path
) -> None:
    first = run_compare(words(folder, model, "--settings", "random:4")).comparison
    result = run_compare(words(folder, model, "--settings", "random:4,ficoco-vl:4")).comparison
    assert first is not None
    assert result is not None
    assert len(result.examples) == 4
    assert [one.jpeg for one in result.examples] == [one.jpeg for one in first.examples]
    for example in result.examples:
        assert [flow.setting for flow in example.flows] == ["dense", "random:4", "ficoco-vl:4"]
        dense, random, ficoco = example.flows
        assert (len(dense.kept), len(random.kept), len(ficoco.kept)) == (16, 4, 4)
        assert random.moved == ()
        assert {target for _, target, _ in ficoco.moved} <= set(ficoco.kept)
        assert ficoco.moved
    assert result.recommendation in (folder / "out/report.md").read_text()
    assert (folder / "out/report.html").read_text().count("data:image/jpeg") == 4


def test_more_settings_later_leave_the_others_alone(folder: Path, model: Path) -> None:
    run_compare(words(folder, model, "--settings", "random:4"))
    before = written(folder)
    result = run_compare(words(folder, model, "--settings", "random:4,stride:4"))
    assert result.exit_code == 0
    assert [row["setting"] for row in result.summary["settings"]] == ["dense", "random:4", "stride:4"]
    after = written(folder)
    assert {path: after[path] for path in before} == before
    assert len(after) == len(before) * 3 // 2
    assert any("2 starts" in note for note in result.summary["notes"])


def test_what_a_killed_comparison_committed_stands(folder: Path, model: Path) -> None:
    environment = {**os.environ, "FICOCO_FAULT": "before-setting:6"}
    command = [sys.executable, "-m", "tests.pipeline.compare_runs", *words(folder, model)]
    killed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    before = written(folder)
    assert len(before) == 5
    result = run_compare(words(folder, model))
    assert result.exit_code == 0
    assert {path: written(folder)[path] for path in before} == before
    assert all((row["questions"], row["answers"]) == (16, 12) for row in result.summary["settings"])
    assert (folder / "out/settings/fastv_4/_SUCCESS").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--prompt", "Why?"], r"prompt was not set, is now 'Why\?'"),
        (["--max-new-tokens", "4"], "max_new_tokens was 3, is now 4"),
        (["--samples", "4"], "limit was 2000, is now 4"),
    ],
)
def test_another_comparison_on_the_same_output_is_refused(
    folder: Path, model: Path, change: list[str], sentence: str
) -> None:
    run_compare(words(folder, model, "--settings", "random:4"))
    with pytest.raises(UserError, match=sentence):
        run_compare(words(folder, model, "--settings", "random:4", *change))
    assert run_compare(words(folder, model, "--settings", "random:4", *change, "--overwrite")).exit_code == 0


def test_a_changed_corpus_is_refused(folder: Path, model: Path) -> None:
    run_compare(words(folder, model, "--settings", "random:4"))
    write_corpus(folder / "corpus", shards=3)
    with pytest.raises(UserError, match=r"the samples are others: .*is new among the shards|has changed"):
        run_compare(words(folder, model, "--settings", "random:4"))


def test_budgets_bring_each_method_to_its_own_number_of_tokens(folder: Path, model: Path) -> None:
    known = run_compare(words(folder, model, "--settings", "ficoco-v:8", "--repeats", "1")).summary["settings"][1]
    budget = 1.0001 * known["llm_viewer_tflops"]
    (folder / "grid.yaml").write_text(
        f"settings: ['ficoco-v', 'fastv,filter=random', 'pyramiddrop', 'stride:4']\nbudget_tflops: [{budget}]\n"
    )
    more = ["--settings-file", f"{folder}/grid.yaml", "--repeats", "1"]
    result = run_compare(words(folder, model, *more))
    dense, ficoco, fastv, *_, stride = result.summary["settings"]
    assert ficoco["setting"] == "ficoco-v:8"
    assert fastv["setting"].startswith("fastv:")
    assert fastv["setting"].endswith(",filter=random")
    assert 0.9 * budget < fastv["llm_viewer_tflops"] <= budget
    assert [row["budget_tflops"] for row in (dense, ficoco, fastv, stride)] == [None, budget, budget, None]
    assert fastv["budget_reached"] == pytest.approx(fastv["llm_viewer_tflops"])


def test_a_budget_can_be_a_share_of_dense(folder: Path, model: Path) -> None:
    (folder / "grid.yaml").write_text("settings: [ficoco-v, 'random', 'stride:4']\nbudget_share: ['93%']\n")
    more = ["--settings-file", f"{folder}/grid.yaml", "--repeats", "1"]
    first = run_compare(words(folder, model, *more)).summary["settings"]
    dense, ficoco, random, stride = first
    assert [row["budget_share"] for row in (dense, ficoco, random, stride)] == [None, 0.93, 0.93, None]
    for row in (ficoco, random):
        assert 0.85 < row["budget_reached"] <= 0.93
        # What is reached is solved for the mean prompt and a full answer with its own image.
        assert row["flops_total"] / dense["flops_total"] == pytest.approx(row["budget_reached"], abs=0.05)
    more = ["--settings", "ficoco-v,random,stride:4", "--budget-share", "93%", "--repeats", "1"]
    again = run_compare(words(folder, model, *more)).summary["settings"]
    assert [row["setting"] for row in again] == [row["setting"] for row in first]


def test_where_images_decide_figures_are_of_what_they_kept(folder: Path, model: Path) -> None:
    dense, adaptive = run_compare(words(folder, model, "--settings", "prumerge:adaptive")).summary["settings"]
    own = rows(folder / "out/settings/prumerge_adaptive")
    kept = sum(row["visual_tokens"] for row in own) / len(own)
    assert adaptive["visual_tokens"] == pytest.approx(kept)
    assert dense["decoder_lengths"][0] - adaptive["decoder_lengths"][0] == 16 - round(kept)
    assert adaptive["kv_megabytes_fp16"] < dense["kv_megabytes_fp16"]


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        (["--settings", "ficoco-w:4"], ReductionError, "unknown reduction 'ficoco-w'"),
        (["--settings", "ficoco-v:17"], ReductionError, "cannot keep 17 visual tokens"),
        (["--settings", "ficoco-v"], UserError, "does not say how many tokens to keep"),
        (["--settings", "ficoco-v", "--budget-tflops", "9"], UserError, "cannot meet a budget of 9 TFLOPs"),
        (["--settings", "ficoco-v", "--budget-share", "1%"], UserError, "cannot meet a budget of 1.0%"),
        (["--settings", "ficoco-v", "--budget-share", "0.5"], UserError, "give one of the whole dense cost"),
        (["--settings-file", "nowhere.yaml"], UserError, "cannot read --settings-file nowhere.yaml"),
        (["--repeat", "3"], UserError, "unknown option --repeat: did you mean '--repeats'"),
        (["--temperature", "1"], UserError, "unknown option --temperature"),
    ],
)
def test_what_cannot_work_is_one_sentence_before_any_work(
    folder: Path, model: Path, change: list[str], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        run_compare(words(folder, model, *change))
    assert not (folder / "out" / "settings").exists()


def test_a_tracking_store_that_is_down_costs_nothing_but_a_warning(
    folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.tracking.RETRY_SECONDS", 0.05)
    result = run_compare(words(folder, model, "--settings", "random:4", "--tracking-uri", "http://127.0.0.1:9"))
    assert result.exit_code == 0
    assert json.loads((folder / "out/comparison.json").read_text())["sample"]["shards"]
