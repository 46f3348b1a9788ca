"""The settings files that come with the jobs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from reduction.compress import quantile_count
from reduction.schedule import plan
from reduction.settings import Reduction
from reduction.shapes import NAMED

FILES = sorted((Path(__file__).parents[2] / "jobs" / "settings").glob("*.yaml"))
SEVEN = NAMED["llava-1.5-7b"]


def settings(path: Path) -> list[str]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))["settings"]


def test_there_are_some() -> None:
    assert {"ficoco-table-5.yaml", "ficoco-table-6.yaml"} <= {path.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_setting_fits_the_published_model(path: Path) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert set(content) <= {"settings", "budget_tflops"}
    sized = "budget_tflops" not in content
    parsed = [Reduction.parse(text, sized=sized) for text in content["settings"]]
    assert len(set(parsed)) == len(parsed) > 1
    for setting in parsed:
        plan(setting, SEVEN)


@pytest.mark.parametrize(("name", "rows"), [("ficoco-table-5", 7), ("ficoco-table-6", 4)])
def test_a_published_ablation_changes_one_thing_at_64_tokens(name: str, rows: int) -> None:
    (path,) = (path for path in FILES if path.stem == name)
    whole, *others = map(Reduction.parse, settings(path))
    assert len(others) == rows - 1
    assert plan(whole, SEVEN).visual_tokens_left == 64
    for other in others:
        changed = [field for field in vars(whole) if getattr(whole, field) != getattr(other, field)]
        assert len(changed) == 1
        assert plan(other, SEVEN) == plan(whole, SEVEN)


def test_epsilon_1_is_one_target() -> None:
    assert quantile_count(1.0, 530) == 1
