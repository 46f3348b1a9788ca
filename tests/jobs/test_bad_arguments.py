"""Every command but the two jobs themselves: what cannot be used is one sentence, before anything is done."""

from __future__ import annotations

import importlib

import pytest

MODEL = ["--model", "infra/demo/model"]
SHAPE = ["--model-shape", "llava-1.5-7b"]
DEMO = ["--model-shape", "demo"]
COMMANDS = {
    "benchmark_engine": [
        ([*SHAPE, "--layers", "99"], "--layers 99: llava-1.5-7b has 32 decoder layers, give 1 to 32"),
        ([*SHAPE, "--layers", "0"], "--layers: '0' cannot be used, give at least 1"),
        ([*SHAPE, "--layers", "-1"], "--layers: '-1' cannot be used, give at least 1"),
        ([*DEMO, "--layers", "2"], "--layers is for llava-1.5-7b, llava-1.5-13b, and demo runs as it is"),
        ([*DEMO, "--repeats", "0"], "--repeats: '0' cannot be used, give at least 1"),
        ([*DEMO, "--batch-size", "0"], "--batch-size: '0' cannot be used, give at least 1"),
        ([*DEMO, "--new-tokens", "0"], "--new-tokens: '0' cannot be used, give at least 1"),
        ([*DEMO, "--questions-per-image", "0"], "--questions-per-image: '0' cannot be used, give at least 1"),
        ([*DEMO, "--questions-per-image", "3"], "--batch-size 8 must be a multiple of --questions-per-image"),
        ([*DEMO, "--threads", "0"], "--threads: '0' cannot be used, give at least 1"),
        ([*DEMO, "--dtype", "float17"], "--dtype: 'float17' cannot be used, did you mean 'float16'?"),
        ([*DEMO, "--device", "cuda"], "--device cuda: this machine has no GPU that torch can use"),
        ([*DEMO, "--settings", "dense,ficocov:64"], "unknown reduction 'ficocov': did you mean 'ficoco-v'?"),
        ([*SHAPE, "--settings", "ficoco-v:999"], "cannot keep 999 visual tokens: the model has 576"),
        ([*SHAPE, "--layers", "2", "--settings", "ficoco-l:64,start=9"], "cannot start at layer 9: layers 0 to 1"),
        ([*DEMO, "--json", "/proc/x"], "cannot write --json /proc/x"),
        (["--model-shap", "demo"], "unknown option --model-shap: did you mean '--model-shape'?"),
    ],
    "benchmark_job": [
        ([*MODEL, "--images", "0"], "--images: '0' cannot be used, give at least 1"),
        ([*MODEL, "--side", "1"], "--side: '1' cannot be used, give at least 2"),
        ([*MODEL, "--batch-size", "0"], "--batch-size: '0' cannot be used, give at least 1"),
        ([*MODEL, "--repeats", "0"], "--repeats: '0' cannot be used, give at least 1"),
        ([*MODEL, "--layers", "1"], "--layers is for"),
        ([*MODEL, "--device", "cuda"], "--device cuda: this machine has no GPU that torch can use"),
        (["--model", "llava-1.5-7b", "--reduction", "trim:64"], "give one with --text-tower"),
        ([*MODEL, "--reducton", "dense"], "unknown option --reducton: did you mean '--reduction'?"),
    ],
    "benchmark_replicas": [
        ([*MODEL, "--replicas", "1,0"], "--replicas 1,0 must be 1 or more each"),
        ([*MODEL, "--shards", "0"], "--shards: '0' cannot be used, give at least 1"),
        ([*MODEL, "--images", "0"], "--images: '0' cannot be used, give at least 1"),
        ([*MODEL, "--repeats", "0"], "--repeats: '0' cannot be used, give at least 1"),
        ([*MODEL, "--cpus-per-replica", "-1"], "--cpus-per-replica: '-1' cannot be used, give a number from 0 on"),
        ([*MODEL, "--dtype", "int8"], "--dtype: 'int8' cannot be used, known are auto, float32, bfloat16, float16"),
        ([*MODEL, "--reduction", "ficoco-v:999"], "cannot keep 999 visual tokens: the model has 256"),
        (["--model", "llava-1.5-13b", "--layers", "41"], "llava-1.5-13b has 40 decoder layers"),
        ([*MODEL, "--replica", "1"], "unknown option --replica: did you mean '--replicas'?"),
    ],
    "benchmark_driver": [
        (["--replicas", "0", "--shards", "10"], "--replicas: '0' cannot be used, give at least 1"),
        (["--shards", "0"], "--shards: '0' cannot be used, give at least 1"),
        (["--idle-seconds", "nan"], "--idle-seconds: 'nan' cannot be used, give 0.1 to 86400"),
        (["--shard", "9"], "unknown option --shard: did you mean '--shards'?"),
    ],
    "verify_output": [(["--output", "x", "--inptu", "y"], "unknown option --inptu: did you mean '--input'?")],
    "score_answers": [
        (["--output", "x", "--metric", "vqq"], "--metric: 'vqq' cannot be used, did you mean 'vqa'?"),
        (["--ouput", "x"], "unknown option --ouput: did you mean '--output'?"),
    ],
    "show_reduction": [(["--imge", "x"], "unknown option --imge: did you mean '--image'?")],
    "demo": [
        (["--metods", "dense"], "unknown option --metods: did you mean '--methods'?"),
        (["--methods", "ficoco-w"], "unknown reduction 'ficoco-w': did you mean"),
        (["--keep-tokens", "110%"], "110%"),
        (["--max-new-tokens", "0"], "--max-new-tokens: '0' cannot be used, give at least 1"),
    ],
}


@pytest.mark.parametrize(
    ("command", "words", "sentence"),
    [(command, *one) for command, lines in COMMANDS.items() for one in lines],
    ids=[f"{command} {' '.join(words)}" for command, lines in COMMANDS.items() for words, _ in lines],
)
def test_what_cannot_be_used_is_one_sentence(
    command: str,
    words: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.delattr("torch.nn.Module.to_empty")  # no model is made: one of a named shape takes all memory
    assert importlib.import_module(f"jobs.{command}").main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"{command}: ")
    assert sentence in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
