"""Loading: what is read and converted equals what is mapped, memory holds the weights once, nothing is made up."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils.logging import set_tqdm_hook

from pipeline import checkpoint
from pipeline.checkpoint import choose_dtype, load_checkpoint, load_config
from pipeline.errors import UserError
from pipeline.machine_speed import bfloat16_gain
from pipeline.random_model import random_llava, shape_config
from reduction.shapes import DecoderShape, ModelShape, VisionShape
from reduction.text_shape import clip_config
from tests.checkpoint import save_checkpoint, tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]
PEAK = """
import sys
from pathlib import Path
import torch
from pipeline.checkpoint import load_checkpoint

def kilobytes(name):
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0])

load_checkpoint(sys.argv[1], "cpu", "float32")  # what loading imports is there now
before = kilobytes("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
model = load_checkpoint(sys.argv[2], "cpu", "bfloat16").model
size = sum(p.numel() * p.element_size() for p in model.parameters())
print((kilobytes("VmHWM") - before) * 1024 / size)
"""
MEDIUM = ModelShape(
    name="medium",
    vision=VisionShape(layers=2, layers_run=1, width=64, ffn=128, heads=2, patch=14, image=56),
    projector_in=64,
    decoder=DecoderShape(layers=8, width=1024, ffn=3072, heads=8, kv_heads=8, head_dim=128, vocab=300),
)


def test_converted_weights_are_the_mapped_ones_in_another_type(tmp_path: Path) -> None:
    folder = str(save_checkpoint(tmp_path))
    mapped, converted = (load_checkpoint(folder, "cpu", dtype).model for dtype in ("float32", "bfloat16"))
    expected = mapped.state_dict()
    found = converted.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name].to(torch.bfloat16)) for name in found)
    assert not converted.training


def test_what_goes_to_another_device_goes_there_whole(tmp_path: Path) -> None:
    """The meta device stands for a GPU: only that it holds no values."""
    loaded = load_checkpoint(str(save_checkpoint(tmp_path)), "meta", "bfloat16").model
    assert {(weight.device.type, weight.dtype) for weight in loaded.parameters()} == {("meta", torch.bfloat16)}
    assert {buffer.device.type for buffer in loaded.buffers()} == {"meta"}
    rotary = loaded.model.language_model.rotary_emb
    assert rotary.inv_freq.dtype == torch.float32, "rounded frequencies turn long prompts wrongly"


def test_moving_keeps_values_and_ties(tmp_path: Path) -> None:
    folder = str(save_checkpoint(tmp_path))
    expected, moved = (load_checkpoint(folder, "cpu", dtype).model for dtype in ("bfloat16", "float32"))
    moved.lm_head.weight = moved.model.language_model.embed_tokens.weight
    checkpoint._move(moved, torch.device("cpu"), torch.bfloat16)
    assert moved.lm_head.weight is moved.model.language_model.embed_tokens.weight
    values = expected.state_dict() | {"lm_head.weight": expected.model.language_model.embed_tokens.weight}
    assert all(torch.equal(value, values[name]) for name, value in moved.state_dict().items())


def test_converting_holds_the_weights_once(tmp_path: Path) -> None:
    """Mapping the float32 file takes three times the memory of the bfloat16 weights.

    Of weights this small, what threads and allocator hold is up to a quarter, and not the same each time: the least
    of three counts.
    """
    small, medium = save_checkpoint(tmp_path / "small"), tmp_path / "medium"
    random_llava(shape_config(MEDIUM), torch.device("cpu"), torch.float32).save_pretrained(medium)
    tiny_tokenizer().save_pretrained(medium)
    command = [sys.executable, "-c", PEAK, str(small), str(medium)]
    runs = [subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True) for _ in range(3)]
    assert 0.8 < min(float(done.stdout) for done in runs) < 1.25


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_are_not_there_are_not_made_up(tmp_path: Path, dtype: str) -> None:
    path = save_checkpoint(tmp_path) / "model.safetensors"
    weights = load_file(path)
    gone = next(name for name in weights if name.endswith("q_proj.weight"))
    save_file({name: weight.clone() for name, weight in weights.items() if name != gone}, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"1 of its weights are not in its files, .*q_proj\.weight among them"):
        load_checkpoint(str(tmp_path), "cpu", dtype)


def test_a_gpu_that_is_not_there_is_a_sentence_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        UserError, match="--device cuda: this machine has no GPU that torch can use; choose --device cpu"
    ):
        load_checkpoint("nowhere", "cuda")


def test_loading_draws_no_progress_bar(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_checkpoint(str(save_checkpoint(tmp_path)), "cpu", "float32")
    capfd.readouterr()
    load_checkpoint(str(tmp_path), "cpu", "float32")
    assert "Loading" not in capfd.readouterr().err
    assert set_tqdm_hook(None) is None


@pytest.mark.parametrize("missing", [load_config, clip_config], ids=["model", "text tower"])
def test_a_name_that_the_hub_cannot_give_is_one_whole_sentence(
    missing: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"at nowhere/x, give .*: We couldn't connect to [^\n]*files\.$"):
        missing("nowhere/x")


def test_what_is_wrong_in_a_configuration_is_said(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path) / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["hidden_size"] = "many"
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"'hidden_size': .*many"):
        load_config(str(tmp_path))


@pytest.mark.parametrize(
    ("units", "gain", "width", "expected"),
    [
        (True, 4.0, 4096, torch.bfloat16),
        (True, 0.4, 4096, torch.float32),
        (True, 4.0, 256, torch.float32),
        (False, 4.0, 4096, torch.float32),
    ],
    ids=["units that work", "units that do not", "layers too small", "no units"],
)
def test_bfloat16_is_chosen_on_a_cpu_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, units: bool, gain: float, width: int, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": units})
    monkeypatch.setattr(checkpoint, "_has_bf16_units", lambda: False)
    monkeypatch.setattr(checkpoint, "bfloat16_gain", lambda width: gain)
    assert choose_dtype("auto", torch.device("cpu"), width) == expected
    assert choose_dtype("float16", torch.device("cpu"), width) == torch.float16


def test_the_gain_is_measured_once() -> None:
    assert bfloat16_gain(64) == bfloat16_gain(64) > 0
