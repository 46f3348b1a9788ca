"""What changes a run's fingerprint, the difference in words, and the digest of weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import UserError
from pipeline.fingerprint import ROW_SETTINGS, difference, row_settings, run_fingerprint
from pipeline.model_digest import model_digest
from pipeline.provenance import code_version, provenance
from tests.pipeline.output_rows import CONFIG


@pytest.mark.parametrize("name", ROW_SETTINGS)
def test_every_setting_that_counts_changes_the_fingerprint_and_is_named(name: str) -> None:
    sampling = {**CONFIG, "temperature": 0.5, "top_p": 0.9, "seed": 1}
    changed = {**sampling, name: "other"}
    assert run_fingerprint(changed) != run_fingerprint(sampling)
    (clause,) = difference(row_settings(sampling), row_settings(changed))
    shown = {"model_digest": "model", "text_tower_digest": "text tower"}.get(name, name)
    assert clause.startswith(f"{shown} was")
    assert clause.endswith("is now 'other'")


@pytest.mark.parametrize(("name", "unused"), [("text_tower_digest", None), ("draft_jpegs", False)])
def test_a_run_keeps_the_fingerprint_of_before_there_was_what_it_does_not_use(name: str, unused: object) -> None:
    assert run_fingerprint({**CONFIG, name: unused}) == run_fingerprint(CONFIG)
    assert name not in row_settings({**CONFIG, name: unused})


@pytest.mark.parametrize("name", ["batch_size", "replicas", "input", "tracking_uri", "device", "model"])
def test_settings_that_change_no_row_do_not_count(name: str) -> None:
    assert run_fingerprint({**CONFIG, name: "other"}) == run_fingerprint(CONFIG)


def test_the_seed_counts_only_when_sampling() -> None:
    assert run_fingerprint({**CONFIG, "seed": 1, "temperature": 0.0}) == run_fingerprint({**CONFIG, "seed": 2})


def test_the_difference_survives_json_and_shortens_long_prompts() -> None:
    stored = json.loads(json.dumps(row_settings({**CONFIG, "max_new_tokens": 64.0, "top_p": 0.5, "temperature": 1})))
    now = row_settings({**CONFIG, "temperature": 1.0, "top_p": 0.5, "reduction": "dense", "prompt": None})
    assert difference(stored, now) == [
        "reduction was 'ficoco-v:64', is now 'dense'",
        "prompt was 'Describe the image.', is now not set",
    ]
    (clause,) = difference(row_settings({**CONFIG, "prompt": "x" * 100_000}), row_settings(CONFIG))
    assert len(clause) < 200


def test_another_schema_is_another_run() -> None:
    (clause,) = difference({**row_settings(CONFIG), "schema": "older"}, row_settings(CONFIG))
    assert "columns" in clause


def checkpoint(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file({"a": torch.zeros(100_000), "b": torch.zeros(10)}, folder / "model.safetensors")
    return folder


def test_the_model_digest_sees_weights_and_configuration(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    first = model_digest(str(folder))
    assert first.startswith("sha256:")
    assert model_digest(str(checkpoint(tmp_path / "copy"))) == first
    (folder / "README.md").write_text("a card is not the model")
    assert model_digest(str(folder)) == first
    save_file({"a": torch.zeros(100_000), "b": torch.full((10,), 1e-3)}, folder / "model.safetensors")
    second = model_digest(str(folder))
    assert second != first
    (folder / "config.json").write_text('{"vision_feature_layer": -1}')
    assert model_digest(str(folder)) != second


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "is not a model folder: it has no config.json"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "model.bin"), r"has no \*.safetensors weights"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "not a safetensors file, or is cut short"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\2" + bytes(7) + b"[]"), "is damaged"),
    ],
)
def test_a_broken_model_folder_is_one_sentence(tmp_path: Path, damage: object, message: str) -> None:
    folder = checkpoint(tmp_path / "model")
    damage(folder)  # type: ignore[operator]
    with pytest.raises(UserError, match=message):
        model_digest(str(folder))


def test_a_model_that_is_nowhere_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="neither a folder here nor a hub id"):
        model_digest("no/such/folder/here")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="'owner/no-such-model' is no folder here and the hub did not resolve it"):
        model_digest("owner/no-such-model")


def test_provenance_names_run_model_and_code_without_credentials() -> None:
    about = provenance("abc", {**CONFIG, "model": "s3://key:planted@bucket/model"})
    assert about["ficoco.fingerprint"] == "abc"
    assert about["ficoco.reduction"] == "ficoco-v:64"
    assert about["ficoco.model_digest"] == "sha256:1234"
    assert about["ficoco.code_version"] == code_version()
    assert "planted" not in json.dumps(about)
