"""`python -m reduction cost` as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from reduction.cost import main
from reduction.shapes import NAMED, from_folder

ROOT = Path(__file__).parents[2]


def cost(capsys, *arguments: str) -> dict:
    assert main(["cost", *arguments]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_last_line_is_one_json_object_with_the_published_figures(capsys):
    figures = cost(capsys, "--model-shape", "llava-1.5-7b", "--reduction", "ficoco-v:64", "--text-tokens", "60")
    assert round(figures["llm_viewer_tflops"], 1) == 1.6
    assert set(figures["flops"]) == {"vision", "projector", "prefill", "decode", "reduction"}
    assert all(value > 0 for value in figures["flops"].values())
    assert figures["flops"]["reduction"] < 0.01 * figures["flops_total"]
    assert figures["vision_lengths"][-1] == 64
    assert figures["decoder_lengths"] == [124] * 32
    assert figures["model_shape"] == "llava-1.5-7b"


def test_dense_by_default(capsys):
    figures = cost(capsys, "--model-shape", "llava-hf/llava-1.5-7b-hf")
    assert round(figures["llm_viewer_tflops"], 1) == 8.5
    assert round(figures["kv_megabytes"]) == 333
    assert figures["flops"]["reduction"] == 0


def test_the_table_shows_every_part_and_its_share(capsys):
    assert main(["cost", "--model-shape", "llava-1.5-7b"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.endswith("%")}
    assert list(rows) == ["vision", "projector", "prefill", "decode", "reduction", "total"]
    assert rows["total"][1] == "100.0%"
    assert float(rows["prefill"][0]) == pytest.approx(8.45, abs=0.01)
    assert any("636 x32" in line for line in lines)


def test_settings_are_compared_in_one_object(capsys):
    figures = cost(capsys, "--model-shape", "llava-1.5-7b", "--reduction", "dense", "--reduction", "ficoco-l:11%")
    assert [setting["visual_tokens_left"] for setting in figures["settings"]] == [576, 63]


def llava_folder(folder: Path, **changes: object) -> Path:
    # As published: what equals the defaults of the parts' own configs is left out.
    config = {
        "model_type": "llava",
        "image_token_index": 32000,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "text_config": {"model_type": "llama", "vocab_size": 32064},
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 1024,
            "image_size": 336,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "patch_size": 14,
        },
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def test_a_folder_needs_only_its_config(tmp_path, capsys):
    folder = llava_folder(tmp_path / "my-llava")
    shape = from_folder(folder)
    named = NAMED["llava-1.5-7b"]
    assert (shape.vision, shape.projector_in, shape.decoder) == (named.vision, named.projector_in, named.decoder)
    figures = cost(capsys, "--model-shape", str(folder))
    assert figures["model_shape"] == "my-llava"
    assert round(figures["llm_viewer_tflops"], 1) == 8.5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cots"], ["cots", "did you mean 'cost'"]),
        (["cost", "--model-shap", "llava-1.5-7b"], ["--model-shap", "did you mean '--model-shape'"]),
        (["cost"], ["--model-shape"]),
        (["cost", "--model-shape", "llava-1.5-70b"], ["llava-1.5-70b", "llava-1.5-7b", "folder"]),
        (["cost", "--model-shape", "llava-1.5-7b", "--reduction", "ficoco-v:577"], ["577", "576"]),
        (["cost", "--model-shape", "llava-1.5-7b", "--reduction", "ficoco-w:64"], ["ficoco-w", "ficoco-v"]),
        (["cost", "--model-shape", "llava-1.5-7b", "--text-tokens", "many"], ["--text-tokens", "many"]),
        (["cost", "--model-shape", "llava-1.5-7b", "--text-tokens", "-1"], ["--text-tokens", "-1"]),
        (["cost", "--model-shape", "llava-1.5-7b", "--prefix-tokens", "61"], ["61", "60"]),
        (["cost", "--model-shape", "llava-1.5-7b", "stray"], ["stray"]),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(arguments: list[str], words: list[str], capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert all(word in captured.err for word in words), captured.err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "llama"}, ["llama", "llava"]),
        ({"text_config": {"model_type": "qwen2"}}, ["qwen2", "llama"]),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, ["CLS", "full"]),
        ({"vision_config": {"model_type": "vit"}}, ["vit", "clip_vision_model"]),
        ({"vision_feature_layer": -40}, ["-40", "12 layers"]),
        ({"vision_feature_layer": []}, ["vision_feature_layer", "empty"]),
        ({"text_config": {"model_type": "llama", "hidden_size": "wide"}}, ["config.json", "hidden_size", "wide"]),
        ({"text_config": {"model_type": "llama", "intermediate_size": 0}}, ["decoder", "ffn", "0"]),
        ({"vision_config": {"model_type": "clip_vision_model", "patch_size": 0}}, ["tower", "patch", "0"]),
        ({"vision_config": {"model_type": "clip_vision_model", "patch_size": 900}}, ["900", "224"]),
        ({"model_type": "never-heard-of"}, ["config.json", "never-heard-of"]),
    ],
)
def test_a_folder_of_another_kind_is_one_sentence(changes: dict, words: list[str], tmp_path, capsys):
    if "vision_feature_layer" in changes:
        changes = {**changes, "vision_config": {"model_type": "clip_vision_model"}}
    folder = llava_folder(tmp_path, **changes)
    assert main(["cost", "--model-shape", str(folder)]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert all(word in error for word in words), error


def test_broken_json_is_one_sentence(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{")
    assert main(["cost", "--model-shape", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_named_shape_imports_neither_torch_nor_transformers():
    program = (
        "import sys; from reduction.cost import main; main(['cost', '--model-shape', 'llava-1.5-7b', "
        "'--reduction', 'ficoco-v:64']); print(sorted({'torch', 'transformers'} & set(sys.modules)), file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stderr.strip() == "[]"


def test_it_runs_as_a_module():
    command = [sys.executable, "-m", "reduction", "cost", "--model-shape", "llava-1.5-13b", "--text-tokens", "512"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert round(json.loads(run.stdout.splitlines()[-1])["llm_viewer_tflops"], 1) == 28.6
