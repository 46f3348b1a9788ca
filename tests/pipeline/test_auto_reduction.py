"""Choosing a reduction on a few samples: the rule, a whole run with a tiny real model, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from pipeline import auto_reduction
from pipeline.auto_reduction import decide, run_auto
from pipeline.auto_trials import Bounds, try_chains
from pipeline.command_line import parse_command
from pipeline.comparison import Interval
from pipeline.errors import UserError
from pipeline.job import JobParts, JobResult
from pipeline.model_check import check_model
from pipeline.places import located
from pipeline.storage import open_output
from pipeline.verification import verify
from pipeline.worker_spec import worker_spec
from tests.checkpoint import save_checkpoint
from tests.pipeline.compare_runs import thread_cluster, write_corpus
from tests.pipeline.shard_bytes import JPEG, tar_bytes
from tests.pipeline.test_recommendation import result

PARTS = JobParts(lambda config: check_model(config.model, config.parsed_reduction), worker_spec, thread_cluster)


Levels = dict[str, dict[int, float]]
"""Setting -> number of chains that share the chance -> the low end of its interval then."""


def tried(lows: Levels, slow: tuple[str, ...] = ()) -> dict[str, bool]:
    """Which settings hold a drop of one point; more tokens come first."""
    results = [result("dense", 1.0)]
    for setting in lows:
        one = result(setting, 0.9 if setting in slow else 2.0)
        object.__setattr__(one, "visual_tokens", float(setting.partition(":")[2]))
        results.append(one)

    def bounds(level: float) -> dict[str, Interval | None]:
        sharing = round(2 * 0.05 / (1 - level))
        return {setting: Interval(0.0, low[sharing], 0.1) for setting, low in lows.items()}

    return {trial.setting: trial.holds for trial in try_chains(results, bounds, -0.01, 0.05)}


def test_a_chain_ends_at_its_first_setting_that_does_not_hold() -> None:
    lows = {"a:4": -0.001, "a:16": -0.005, "a:8": -0.02, "b:4": -0.002, "b:16": -0.009}
    found = tried({setting: dict.fromkeys((1, 2), low) for setting, low in lows.items()})
    assert found == {"a:16": True, "a:8": False, "a:4": False, "b:16": True, "b:4": True}


def test_a_chain_that_holds_to_its_end_leaves_its_chance_to_the_others() -> None:
    lows: Levels = {"a:8": {2: -0.02, 1: -0.009}, "a:4": {2: -0.03, 1: -0.02}, "b:8": {2: -0.005, 1: -0.004}}
    assert tried(lows) == {"a:8": True, "b:8": True, "a:4": False}
    lows["b:8"] = {2: -0.011, 1: -0.009}
    assert tried(lows) == {"a:8": False, "b:8": False, "a:4": False}


def test_settings_that_are_no_faster_share_no_chance_and_break_no_chain() -> None:
    lows: Levels = {"a:16": {1: -0.02}, "a:8": {1: -0.009}, "b:8": {1: 0.0}}
    assert tried(lows, slow=("a:16", "b:8")) == {"a:16": False, "a:8": True, "b:8": False}


def with_low(setting: str, low: float) -> Bounds:
    return lambda level: {setting: Interval(low + 0.1, low, 1.0)}


def test_the_fastest_that_holds_is_taken_and_dense_where_none_does() -> None:
    dense = result("dense", 1.0)
    results = [dense, result("a:4", 1.5), result("b:4", 1.8), result("c:4", 0.9), result("d:4", 2.5)]
    holding: dict[str, Interval | None] = {name: Interval(0.0, -0.004, 0.1) for name in ("a:4", "b:4", "c:4")}
    found = {**holding, "d:4": Interval(0.0, -0.03, 0.1)}
    trials = try_chains(results, lambda level: found, -0.01, 0.05)
    taken, sentence = decide(trials, dense, {"max_accuracy_drop": 1}, 300)
    assert taken == "b:4"
    assert "at most 1 point below dense with 95% confidence on 300 samples" in sentence
    assert "1.80 times dense's images per second, the fastest of 2 settings that hold" in sentence
    only_bad = try_chains([dense, results[4]], with_low("d:4", 0.8), 0.95, 0.05)
    taken, sentence = decide(only_bad, dense, {"min_fidelity": 0.95}, 300)
    assert taken == "dense"
    assert "the nearest is d:4 (measured 90.0%, lower bound 80.0%)" in sentence
    only_slow = try_chains([dense, results[3]], with_low("c:4", 0.99), 0.95, 0.05)
    assert decide(only_slow, dense, {"min_fidelity": 0.95}, 300) == (
        "dense",
        "--reduction auto takes dense: none of 1 settings is faster on this machine",
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def folder(tmp_path: Path, store_in: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(auto_reduction, "METHODS", ("random", "ficoco-l"))
    monkeypatch.setattr(auto_reduction, "SHARES", ("50%", "25%"))
    write_corpus(tmp_path / "corpus", shards=3)
    store_in(tmp_path)
    return tmp_path


def annotate(folder: Path, model: Path, *more: str) -> JobResult:
    words = ["--input", f"{folder}/corpus", "--output", f"{folder}/out", "--model", str(model), "--reduction", "auto"]
    words += ["--tracking-uri", f"sqlite:///{folder}/mlflow.db", "--max-new-tokens", "3", "--metric", "exact"]
    return run_auto(located(parse_command([*words, "--auto-samples", "6", *more]), inside_job=False), PARTS)


def chosen_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out" / "run.json").read_text())["config"]["chosen"]


def test_a_run_goes_on_with_what_was_chosen_and_says_why(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whatever loses nothing that a bound of 0 could see holds; so the fastest of all four is taken, if it beats dense.
    outcome = annotate(folder, model, "--min-fidelity", "0")
    assert outcome.exit_code == 0
    chosen = chosen_in(folder)
    assert len(chosen["trials"]) == 4
    assert chosen["asked"] == {"min_fidelity": 0.0}
    assert chosen["sentence"] in capsys.readouterr().err
    run = json.loads((folder / "out" / "run.json").read_text())
    assert run["config"]["reduction"] == chosen["reduction"]
    kept = {"dense": 16, "random:50%": 8, "random:25%": 4, "ficoco-l:50%": 8, "ficoco-l:25%": 4}[chosen["reduction"]]
    rows = [row for path in (folder / "out/data").iterdir() for row in pq.read_table(path).to_pylist()]
    assert {row["visual_tokens"] for row in rows} == {kept}
    assert len(rows) == 18
    assert verify(open_output(str(folder / "out"))).ok
    assert (folder / "out/auto/report.html").exists()
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    params = client.get_run(outcome.summary["mlflow_run_id"]).data.params
    assert params["reduction"] == chosen["reduction"]
    assert chosen["reduction"] in params["chosen"]

    def no_comparison(*_: object) -> None:
        raise AssertionError("the choice in run.json stands")

    write_corpus(folder / "corpus", shards=4)
    monkeypatch.setattr(auto_reduction, "compare", no_comparison)
    again = annotate(folder, model, "--min-fidelity", "0")
    assert (again.exit_code, again.summary["shards"]) == (0, 4)
    assert chosen_in(folder) == chosen


def test_where_nothing_holds_it_is_dense(folder: Path, model: Path) -> None:
    assert annotate(folder, model, "--min-fidelity", "1").exit_code == 0
    chosen = chosen_in(folder)
    assert chosen["reduction"] == "dense"
    assert "takes dense" in chosen["sentence"]


def test_without_references_an_accuracy_drop_cannot_be_known(folder: Path, model: Path) -> None:
    for path in (folder / "corpus").iterdir():
        path.write_bytes(tar_bytes([("a.jpg", JPEG), ("a.json", {"question": "What is it?"})]))
    with pytest.raises(UserError, match="so --max-accuracy-drop cannot be known: give --min-fidelity"):
        annotate(folder, model, "--max-accuracy-drop", "1")
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "needs --max-accuracy-drop or --min-fidelity, one of them"),
        (["--max-accuracy-drop", "1", "--min-fidelity", "0.9"], "one of them"),
        (["--max-accuracy-drop", "1", "--metric", "none"], "--max-accuracy-drop needs --metric"),
        (["--min-fidelity", "0.9", "--keep-tokens", "64"], "leave --keep-tokens and --split out"),
        (["--min-fidelity", "0.9", "--reduction", "dense"], "are for --reduction auto"),
        (["--min-fidelity", "95"], "give 0 to 1"),
    ],
)
def test_what_does_not_go_with_auto_is_refused(folder: Path, model: Path, words: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        annotate(folder, model, *words)


def test_a_run_whose_reduction_was_given_is_not_continued_with_another(folder: Path, model: Path) -> None:
    annotate(folder, model, "--min-fidelity", "1")
    record = json.loads((folder / "out/run.json").read_text())
    del record["config"]["chosen"]
    (folder / "out/run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"holds a run whose reduction was given \(dense\)"):
        annotate(folder, model, "--min-fidelity", "1")
