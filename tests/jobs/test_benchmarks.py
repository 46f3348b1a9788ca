"""The measuring commands: what they print, and that their FLOPs are those of the work they time."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.benchmark_engine import make_work, measure, parse_arguments, split_settings
from pipeline.batching import Asked, Picture
from pipeline.engine import Engine
from pipeline.engine_timing import REDUCING, realised_shares, run_once, work_flops
from pipeline.errors import UserError
from pipeline.generation import GenerationSettings
from pipeline.random_checkpoint import checkpoint_folder
from pipeline.random_model import random_llava, random_text_tower, shape_config
from pipeline.records import Answer, Question, Sample
from pipeline.replica import Replica, ReplicaSettings
from reduction.flops import count
from reduction.settings import Reduction
from reduction.shapes import NAMED, DecoderShape, ModelShape, VisionShape, from_config
from reduction.text_shape import TextShape
from tests.checkpoint import save_checkpoint
from tests.clip_checkpoint import save_clip
from tests.reduction.counted import operations

ROOT = Path(__file__).resolve().parents[2]


def last_json(script: str, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "jobs" / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_the_engine_benchmark_reports_every_setting(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "model")
    arguments = [
        "--model-shape",
        str(folder),
        "--settings",
        "dense,ficoco-v:5,lam=0.4,ficoco-l:5,cdpruner:5",
        "--repeats",
        "1",
    ]
    arguments += ["--text-tower", str(save_clip(tmp_path / "clip"))]
    arguments += ["--batch-size", "4", "--questions-per-image", "2", "--new-tokens", "3", "--text-tokens", "12"]
    result = last_json("benchmark_engine.py", *arguments, "--baseline", "hf", "--json", str(tmp_path / "r.json"))
    assert [one["setting"] for one in result["settings"]] == ["dense", "ficoco-v:5,lam=0.4", "ficoco-l:5", "cdpruner:5"]
    for one in result["settings"]:
        assert {"vision", "prefill", "decode", "reduction", "total"} <= set(one["seconds"])
        assert one["images_per_second"] * 2 == pytest.approx(one["answers_per_second"])
        assert one["speed_over_generate"] > 0
    assert result["settings"][0]["realised_share"] == pytest.approx(1)
    assert result["settings"][0]["seconds"]["reduction"] == 0 < result["settings"][1]["seconds"]["reduction"]
    assert {"device", "torch", "matmul_tflops"} <= set(result["hardware"])
    assert json.loads((tmp_path / "r.json").read_text()) == result


def test_a_result_that_cannot_be_written_any_more_stands_on_stdout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model-shape", str(save_checkpoint(tmp_path)), "--settings", "dense", "--repeats", "1"]
    args = parse_arguments([*words, "--batch-size", "1", "--new-tokens", "2", "--text-tokens", "12"])
    args.json = tmp_path / "gone" / "r.json"
    with pytest.raises(UserError, match=r"cannot write --json .*gone/r\.json: No such file .* stands on stdout"):
        measure(args)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [one["setting"] for one in result["settings"]] == ["dense"]


def test_the_job_benchmark_holds_a_shard_against_the_engine(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "model")
    arguments = ["--model", str(folder), "--reduction", "ficoco-v:5", "--images", "9", "--repeats", "1", "--side", "80"]
    result = last_json("benchmark_job.py", *arguments, "--max-new-tokens", "2")
    assert result["ratio"] > 0
    assert result["shard_images_per_second"] > 0


def test_the_replica_benchmark_runs_the_whole_job(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "model")
    arguments = ["--model", str(folder), "--reduction", "ficoco-v:5", "--images", "2", "--shards", "3", "--side", "80"]
    arguments += ["--replicas", "1", "--cpus-per-replica", "0.5", "--repeats", "1", "--max-new-tokens", "2"]
    result = last_json("benchmark_replicas.py", *arguments)
    assert result["times_the_first"] == {"1": 1.0}
    assert result["images_per_second"]["1"] == result["repeats"]["1"][0] > 0


def test_the_driver_benchmark_finishes_every_shard_and_resumes() -> None:
    arguments = ["--replicas", "7", "--shards", "60", "--idle-seconds", "0.2"]
    result = last_json("benchmark_driver.py", *arguments)
    assert result["finished_shards"] == 60
    costs = ("cpu_ms_per_lease", "cpu_share_while_all_work", "cold_ledger_seconds", "warm_ledger_seconds")
    assert all(result[name] > 0 for name in costs)


def test_settings_are_split_between_not_inside() -> None:
    assert split_settings("dense,ficoco-v:64,epsilon=0.9,start=3,ficoco-l:64") == [
        "dense",
        "ficoco-v:64,epsilon=0.9,start=3",
        "ficoco-l:64",
    ]


TOY = ModelShape(
    name="toy",
    vision=VisionShape(layers=4, layers_run=3, width=32, ffn=64, heads=4, patch=14, image=56),
    projector_in=32,
    decoder=DecoderShape(layers=4, width=32, ffn=64, heads=4, kv_heads=4, head_dim=8, vocab=300),
    text=TextShape(layers=2, width=24, ffn=40, heads=3, positions=30, projection=20, vision_width=32),
)


def toy_engine(text: str, new_tokens: int = 4) -> Engine:
    model = random_llava(shape_config(TOY), torch.device("cpu"), torch.float32)
    settings = GenerationSettings(max_new_tokens=new_tokens)
    mean, std = (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)
    assert TOY.text is not None
    return Engine(
        model,
        Reduction.parse(text),
        mean=mean,
        std=std,
        stop_tokens=frozenset(),
        settings=settings,
        text_tower=random_text_tower(TOY.text, torch.device("cpu"), torch.float32, vocab=50),
    )


def test_a_random_model_has_the_shape_it_was_asked_for_and_finite_answers() -> None:
    config = shape_config(TOY)
    shape = from_config(config, "toy")
    assert (shape.vision, shape.decoder) == (TOY.vision, TOY.decoder)
    assert from_config(shape_config(TOY, decoder_layers=2)).decoder.layers == 2
    engine = toy_engine("ficoco-vl:6")
    arguments = ["--model-shape", "toy", "--batch-size", "3", "--text-tokens", "9", "--new-tokens", "4"]
    work = make_work(engine.model, parse_arguments(arguments))
    answers = engine.answer(work.images, work.prefix, work.requests)
    assert [len(answer.tokens) for answer in answers] == [4, 4, 4]
    assert all(answer.mean_logprob == answer.mean_logprob for answer in answers)


def test_a_random_checkpoint_answers_as_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = dataclasses.replace(TOY, decoder=dataclasses.replace(TOY.decoder, vocab=2000))
    monkeypatch.setitem(NAMED, "toy", words)
    folder = checkpoint_folder("toy", 2, tmp_path / "model")
    replica = Replica(ReplicaSettings(folder, "ficoco-v:6", generation=GenerationSettings(max_new_tokens=3)))
    assert replica.engine.shape.decoder.layers == 2
    assert replica.transform.size == TOY.vision.image
    question = Question(0, "0", "What is it?")
    asked = Asked((0, 0), Sample("s", "k", b"", (question,)), question, replica.prompts.encode(question.text))
    picture = Picture(np.zeros((56, 56, 3), np.uint8), [asked])
    ((_, answer, _),) = replica.answer([picture])
    assert isinstance(answer, Answer)
    assert answer.generated_tokens == 3
    assert checkpoint_folder("some/where", None, tmp_path / "unused") == "some/where"
    assert not (tmp_path / "unused").exists()


def test_work_flops_are_the_sum_of_its_requests() -> None:
    engine = toy_engine("ficoco-v:6")
    arguments = ["--model-shape", "toy", "--batch-size", "3", "--text-tokens", "9", "--new-tokens", "4"]
    work = make_work(engine.model, parse_arguments(arguments))
    one = count(engine.shape, engine.plan, len(work.prefix), 9, 4, engine.reduction)
    assert work_flops(engine, work).total == pytest.approx(3 * one.total)
    shared = make_work(engine.model, parse_arguments([*arguments, "--questions-per-image", "3"]))
    assert len(shared.images) == 1
    assert work_flops(engine, shared).vision == pytest.approx(one.vision)
    assert one.prefill < work_flops(engine, shared).prefill < 3 * one.prefill


@pytest.mark.parametrize("questions", [1, 3])
def test_work_flops_are_what_the_engine_computes(questions: int) -> None:
    engine = toy_engine("ficoco-l:6,start=2,layers=1")
    arguments = ["--model-shape", "toy", "--batch-size", "3", "--text-tokens", "41", "--new-tokens", "4"]
    work = make_work(engine.model, parse_arguments([*arguments, "--questions-per-image", str(questions)]))
    seen = operations(lambda: engine.answer(work.images, work.prefix, work.requests))
    # A mean over words that may be padded is a product too, which is not counted: 2 FLOPs per word and visual token.
    uncounted = sum(seen.values()) - work_flops(engine, work).total
    assert 0 <= uncounted <= 3 * 2 * 41 * 16


@pytest.mark.parametrize("questions", [1, 3])
@pytest.mark.parametrize("text", ["cdpruner:6", "trim:6"])
def test_work_flops_of_choosing_by_the_question(text: str, questions: int) -> None:
    engine = toy_engine(text)
    arguments = ["--model-shape", "toy", "--batch-size", "3", "--text-tokens", "21", "--new-tokens", "4"]
    work = make_work(engine.model, parse_arguments([*arguments, "--questions-per-image", str(questions)]))
    seen = operations(lambda: engine.answer(work.images, work.prefix, work.requests))
    assert sum(seen.values()) == work_flops(engine, work).total


def test_timing_leaves_the_functions_it_times_as_they_were() -> None:
    before = [getattr(module, name) for module, name in REDUCING]
    engine = toy_engine("ficoco-v:6")
    work = make_work(engine.model, parse_arguments(["--model-shape", "toy", "--batch-size", "1"]))
    run_once(engine, work, None)
    assert [getattr(module, name) for module, name in REDUCING] == before
    assert engine.stopwatch.seconds()["reduction"] > 0
    at_projector = toy_engine("stride:6")
    run_once(at_projector, work, None)
    assert at_projector.stopwatch.seconds()["reduction"] > 0


def test_realised_share_is_the_time_ratio_over_the_flops_ratio() -> None:
    def result(name: str, seconds: float, flops: float) -> dict[str, Any]:
        parts = {"vision": seconds, "prefill": 0.0, "decode": 0.0}
        zero = dict.fromkeys(("prefill", "projector", "reduction", "decode"), 0.0)
        return {"setting": name, "seconds": parts, "flops": {"vision": flops, **zero}}

    results = [result("dense", 10.0, 100.0), result("ficoco-v:5", 4.0, 20.0)]
    realised_shares(results)
    assert results[1]["realised_share"] == pytest.approx((10 / 4) / (100 / 20))
