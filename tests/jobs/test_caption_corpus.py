"""The command: one run with a real LLaVA on a real local Ray, and what is refused before any work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest
from mlflow import MlflowClient

from jobs.caption_corpus import main
from tests.checkpoint import save_checkpoint
from tests.pipeline.shard_bytes import encoded, noise, tar_bytes

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"), grid=4)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two shards: pictures with several questions, one without a question, one that is none."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for shard in range(2):
        members: list[tuple[str, bytes | dict[str, Any]]] = []
        for index in range(3):
            picture = encoded(noise(70 + 20 * index, 60, seed=10 * shard + index), "JPEG")
            asked = {"questions": [{"question": f"What is {n}?", "answers": ["x"], "kind": "what"} for n in range(2)]}
            members += [(f"{index:05d}.jpg", picture), (f"{index:05d}.json", asked)]
        members += [("00008.jpg", members[0][1]), ("00009.jpg", b"no picture")]
        (folder / f"{shard:05d}.tar").write_bytes(tar_bytes(members))
    return folder


def test_a_corpus_is_annotated_on_a_local_ray(tmp_path: Path, corpus: Path, model: Path) -> None:
    words = [sys.executable, str(ROOT / "jobs/caption_corpus.py"), "--input", "corpus/{00000..00001}.tar"]
    words += ["--output", "out", "--model", str(model), "--reduction", "ficoco-vl", "--keep-tokens", "25%"]
    words += ["--prompt", "Describe the image.", "--max-new-tokens", "4", "--metric", "exact"]
    words += ["--cpus-per-replica", "1", "--replicas", "1"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(words, cwd=tmp_path, text=True, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["shards"], summary["samples"]) == (2, 10)
    assert (summary["questions"], summary["answers"], summary["quarantined"]) == (16, 14, 2)
    assert summary["accuracy"] is not None
    assert all(summary["flops_per_answer"][part] > 0 for part in ("vision", "projector", "prefill", "reduction"))
    assert all(summary["seconds"][stage] > 0 for stage in ("total", "vision", "prefill", "decode"))
    assert summary["output"] == str(tmp_path / "out")
    counted = f"SELECT count(*), min(visual_tokens), max(visual_tokens) FROM '{tmp_path}/out/data/*.parquet'"
    assert duckdb.execute(counted).fetchall() == [(14, 4, 4)]
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    run = client.get_run(summary["mlflow_run_id"])
    assert run.data.params["reduction"] == "ficoco-vl:25%"
    assert run.data.metrics["answers"] == 14.0
    assert {item.path for item in client.list_artifacts(run.info.run_id)} == {"answers.json", "config.yaml"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"--model": "nowhere"}, "no model at nowhere"),
        ({"--reduction": "ficoco-w:4"}, "unknown reduction 'ficoco-w'"),
        ({"--reduction": "ficoco-v:17"}, "cannot keep 17 visual tokens: the model has 16"),
        ({"--output": "/proc/out"}, "/proc/out"),
        ({"--input": "nowhere/*.tar"}, "nowhere"),
        ({"--metrik": "vqa"}, "unknown option --metrik: did you mean '--metric'?"),
        ({"--config": "nowhere.yaml"}, "cannot read --config nowhere.yaml"),
    ],
)
def test_what_cannot_work_is_one_sentence_before_any_work(
    tmp_path: Path,
    corpus: Path,
    model: Path,
    change: dict[str, str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    options = {"--input": str(corpus), "--output": "out", "--model": str(model), **change}
    assert main([word for pair in options.items() for word in pair]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    last = err.strip().splitlines()[-1]
    assert last.startswith("caption_corpus: ")
    assert sentence in last
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "data").exists()


@pytest.mark.parametrize("job", ["caption_corpus", "compare_reductions"])
def test_a_wrong_command_is_answered_without_torch_and_ray(job: str) -> None:
    asked = f"import sys, jobs.{job} as job; job.main(['--inptu', 'x']); print({{'torch', 'ray'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", asked], cwd=ROOT, text=True, capture_output=True)
    assert "did you mean '--input'?" in done.stderr
    assert done.stdout.strip() == "set()"
