"""What a checkpoint may not do: bring code, or weights that are pickles."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pipeline.checkpoint import load_checkpoint
from pipeline.errors import UserError
from pipeline.images import ImageTransform
from pipeline.model_check import check_model
from reduction.settings import Reduction
from tests.checkpoint import save_checkpoint
from tests.fuzz.hostile import SENTINEL, Unpickled

DENSE = Reduction.parse("dense")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def model(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a sound checkpoint to be spoilt; the current folder is where code of it would leave its mark."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(whole, tmp_path / "model"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def bring_code(model: Path, file: str, **auto_map: Any) -> None:
    (model / "brought.py").write_text(f"import os\nos.mkdir({SENTINEL!r})\nclass Brought: pass\n")
    edit(model / file, auto_map=auto_map)


def weights_as_pickle(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Unpickled()))


def index_of_pickles(model: Path) -> None:
    weights_as_pickle(model)
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "pytorch_model.bin"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def pickle_in_disguise(model: Path) -> None:
    (model / "model.safetensors").write_bytes(pickle.dumps(Unpickled()))


@pytest.mark.parametrize("spoil", [weights_as_pickle, index_of_pickles, pickle_in_disguise])
@pytest.mark.parametrize("load", [lambda name: check_model(name, DENSE), load_checkpoint], ids=["check", "load"])
def test_weights_are_read_from_safetensors_only(
    model: Path, spoil: Callable[[Path], None], load: Callable[[str], Any]
) -> None:
    spoil(model)
    with pytest.raises(UserError, match="safetensors") as caught:
        load(str(model))
    assert "\n" not in str(caught.value)
    assert not list(model.parent.rglob(SENTINEL))


def unknown_type(model: Path) -> None:
    bring_code(model, "config.json", AutoConfig="brought.Brought", AutoModel="brought.Brought")
    edit(model / "config.json", model_type="brought")


def code_beside_a_known_type(model: Path) -> None:
    bring_code(model, "config.json", AutoConfig="brought.Brought", AutoModel="brought.Brought")


def image_processor(model: Path) -> None:
    (model / "preprocessor_config.json").write_text('{"image_processor_type": "Brought"}')
    (model / "processor_config.json").unlink()
    bring_code(model, "preprocessor_config.json", AutoImageProcessor="brought.Brought")


def tokenizer(model: Path) -> None:
    bring_code(model, "tokenizer_config.json", AutoTokenizer=["brought.Brought", "brought.Brought"])
    edit(model / "tokenizer_config.json", tokenizer_class="Brought")


@pytest.mark.parametrize("spoil", [unknown_type, code_beside_a_known_type, image_processor, tokenizer])
def test_code_of_a_checkpoint_is_never_run(model: Path, spoil: Callable[[Path], None]) -> None:
    spoil(model)
    for load in (lambda: check_model(str(model), DENSE), lambda: load_checkpoint(str(model))):
        with suppress(UserError):
            load()
    assert not list(model.parent.rglob(SENTINEL))


def test_a_type_that_needs_code_is_refused_in_a_sentence(model: Path) -> None:
    unknown_type(model)
    with pytest.raises(UserError, match=f"no model at {model}"):
        check_model(str(model), DENSE)


def test_an_image_processor_that_needs_code_is_refused_in_a_sentence(model: Path) -> None:
    image_processor(model)
    with pytest.raises(UserError, match="no image processor can be read from"):
        ImageTransform.from_folder(str(model))
