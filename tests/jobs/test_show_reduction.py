"""Drawing one image's kept and recycled tokens, through the whole command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.show_reduction import main
from pipeline.comparison import Flow
from pipeline.report_drawing import DIM, GAP, MARGIN, SIDE, draw
from tests.checkpoint import save_checkpoint
from tests.clip_checkpoint import save_clip

GRID = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("model"), grid=GRID)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    return path


def arguments(model: Path, image: Path, /, **changes: object) -> list[str]:
    given = {
        "image": image,
        "question": "What is <image> there?",
        "model": model,
        "reduction": "ficoco-vl:5",
        "output": image.parent / "new folder" / "drawn.png",
        "max-new-tokens": 4,
        "device": "cpu",
        **changes,
    }
    return [text for name, value in given.items() for text in (f"--{name}", str(value))]


@pytest.mark.parametrize(("reduction", "moves"), [("ficoco-vl:5", True), ("random:5", False), ("dense", False)])
def test_a_picture_and_its_figures(
    model: Path, image: Path, reduction: str, moves: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(model, image, reduction=reduction)) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    kept = 16 if reduction == "dense" else 5
    assert (result["cells"], result["kept"], len(set(result["kept_cells"]))) == (16, kept, kept)
    assert result["moved"] == (11 if moves else 0)
    assert set(result["answers"]) == {"dense", "reduced"}
    if reduction == "dense":
        assert result["answers"]["dense"] == result["answers"]["reduced"]
    with Image.open(result["output"]) as drawn:
        assert drawn.format == "PNG"
        assert drawn.width == SIDE + MARGIN + GAP // 2


def test_what_stays_depends_on_the_question(
    model: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = []
    for question in ("red?", "how many"):
        changes = {"reduction": "cdpruner:5", "text-tower": save_clip(tmp_path / "clip"), "question": question}
        assert main(arguments(model, image, **changes)) == 0
        kept.append(json.loads(capsys.readouterr().out.splitlines()[-1])["kept_cells"])
    assert len(kept[0]) == len(kept[1]) == 5
    assert kept[0] != kept[1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": "nowhere.jpg"}, "cannot read --image nowhere.jpg: No such file"),
        ({"image": __file__}, "not a JPEG, PNG or WebP"),
        ({"reduction": "ficoco-w:5"}, "ficoco-v"),
        ({"reduction": "ficoco-v:5,epsilom=1"}, "epsilon"),
        ({"reduction": "ficoco-v:99"}, "the model has 16"),
        ({"reduction": "cdpruner:5"}, "give one with --text-tower"),
        ({"model": "no/folder/here"}, "no/folder/here"),
        ({"output": "drawn.jpg"}, "ends in .png"),
        ({"output": "/proc/none/drawn.png"}, "cannot write --output"),
        ({"question": "a" * 5000}, "--question cannot be asked"),
        ({"arows": 3}, "did you mean '--arrows'"),
        ({"arrows": "-1"}, "give at least 0"),
        ({"max-new-tokens": "0"}, "give at least 1"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(
    model: Path, image: Path, changes: dict[str, object], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(model, image, **changes)) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("show_reduction:") == 1
    assert captured.out == ""


def test_kept_patches_are_clear_and_dropped_ones_dim() -> None:
    white = np.full((56, 56, 3), 200, np.uint8)
    drawn = np.asarray(draw(white, GRID, Flow("a", "", (0, 6)), ["q", "a"], 9))
    right = drawn[-(SIDE + MARGIN) // 2 : -MARGIN // 2, -(SIDE + MARGIN) // 2 : -MARGIN // 2]
    middles = right[SIDE // 16 :: SIDE // 8, SIDE // 16 :: SIDE // 8, 0].flatten()
    assert [cell for cell, light in enumerate(middles) if light == 200] == [0, 6]
    assert {int(light) for cell, light in enumerate(middles) if cell not in (0, 6)} == {int(200 * DIM)}


def test_no_more_arrows_than_asked_for() -> None:
    white = np.full((56, 56, 3), 200, np.uint8)
    flow = Flow("a", "", (5,), ((0, 5, 1.0), (3, 5, 0.5)))
    none, one, both = (np.asarray(draw(white, GRID, flow, ["q"], most)) for most in (0, 1, 2))
    changed = [int((picture != none).any(2).sum()) for picture in (one, both)]
    assert 0 < changed[0] < changed[1]
