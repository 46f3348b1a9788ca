"""Relative paths: here, and inside a Ray job, where the current folder is a copy that Ray deletes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import places
from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.places import located


def config(**changes: object) -> RunConfig:
    return RunConfig(**{"input": ("corpus/{0..3}.tar",), "output": "out/a", "model": "model", **changes})  # type: ignore[arg-type]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of `ray start`; the current folder is a copy beside it."""
    for name in ("home", "copy/corpus", "copy/model"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setattr(places, "_folder_of_ray_start", lambda: tmp_path / "home")
    return tmp_path / "home"


def test_outside_a_job_everything_is_taken_from_the_current_folder(home: Path) -> None:
    found, here = located(config(), inside_job=False), home.parent / "copy"
    assert found.input == (f"{here}/corpus/{{0..3}}.tar",)
    assert (found.output, found.model) == (f"{here}/out/a", f"{here}/model")
    assert found.tracking_uri == f"sqlite:///{here}/mlflow.db"


def test_inside_a_job_results_go_to_the_folder_of_ray_start(home: Path) -> None:
    found = located(config(), inside_job=True)
    assert found.output == f"{home}/out/a"
    assert found.tracking_uri == f"sqlite:///{home}/mlflow.db"


def test_inside_a_job_an_input_comes_from_the_folder_of_ray_start_where_it_is_there(home: Path) -> None:
    copy = home.parent / "copy"
    assert located(config(), inside_job=True).input == (f"{copy}/corpus/{{0..3}}.tar",)
    (home / "corpus").mkdir()
    (home / "model").mkdir()
    found = located(config(input=("corpus/*.tar", "corpus", "corpus/0.tar")), inside_job=True)
    assert found.input == (f"{home}/corpus/*.tar", f"{home}/corpus", f"{home}/corpus/0.tar")
    assert found.model == f"{copy}/model"


def test_urls_absolute_paths_and_hub_ids_stay(home: Path) -> None:
    given = config(
        input=("s3://b/{0..3}.tar", "/data/*.tar"),
        output="s3://b/out",
        model="llava-hf/llava-1.5-7b-hf",
        tracking_uri="sqlite:////var/mlflow.db",
    )
    assert located(given, inside_job=True) == given
    assert located(config(tracking_uri="http://host"), inside_job=False).tracking_uri == "http://host"


def test_a_relative_output_inside_a_job_is_refused_where_its_meaning_is_unknown(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "_folder_of_ray_start", lambda: None)
    with pytest.raises(UserError, match=r"--output out/a is relative.*give an absolute path or a URL"):
        located(config(), inside_job=True)


def test_without_a_raylet_above_there_is_no_such_folder() -> None:
    assert places._folder_of_ray_start() is None
