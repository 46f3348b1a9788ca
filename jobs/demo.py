"""The demo: a local Ray, and the annotation job submitted to it four times, dense and reduced; `make demo` runs it.

Ray runs on loopback with a token made for this run; it is stopped afterwards, and no other Ray is touched.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from infra.demo.make_corpus import write
from pipeline.answer_sample import answer_sample
from pipeline.command import exit_status
from pipeline.option_parser import OptionParser, typed
from pipeline.options import count
from pipeline.storage import open_output
from reduction.console import run_command
from reduction.settings import Reduction

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("dense", "ficoco-v", "ficoco-l", "ficoco-vl")
EXCLUDED = (".git", ".venv", "out", "tests")
RAY_SECONDS = 120.0
SHARDS, SCENES = 4, 60
"""Of the demo corpus: shards, and scenes in each."""
ONE_RUN_EACH = "images/s is of one run each; jobs/compare_reductions.py measures speed, with the settings taking turns."


def main(arguments: Sequence[str] | None = None) -> int:
    return exit_status("demo", lambda: run(parse_arguments(arguments)))


def run(options: argparse.Namespace) -> int:
    """Annotate with every method and show what came out; the exit status."""
    results: dict[str, dict[str, Any]] = {}
    if not options.corpus.exists():
        print(f"drawing {SHARDS * SCENES} scenes to {options.corpus}", flush=True)
        write(options.corpus, SHARDS, SCENES, most=1)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that Ray is stopped then too
    with local_ray(options.output) as environment:
        for method in options.methods:
            print(f"{method} ...", flush=True)
            began = time.monotonic()
            results[method] = submit(method, options, environment)
            print(f"{method} took {time.monotonic() - began:.0f} s", flush=True)
    print(f"\n{table(results)}\n")
    show_answers(options.output / options.methods[-1])
    print(f"answers      {options.output}/<setting>/data/*.parquet")
    print(f"tracking     {shlex.quote(sys.executable)} -m mlflow ui --backend-store-uri {_store(options.output)}")
    print(json.dumps(results))
    return 0


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Raises UserError, or ReductionError for a method that there is not, before Ray is started."""
    parser = OptionParser(prog="demo", description="Annotate the demo corpus, dense and reduced, and compare.")
    parser.add_argument("--model", type=Path, default=ROOT / "infra/demo/model")
    parser.add_argument("--corpus", type=Path, default=ROOT / "out/demo/corpus")
    parser.add_argument("--output", type=lambda text: Path(text).absolute(), default=ROOT / "out/demo")
    parser.add_argument("--keep-tokens", default="25%", help="visual tokens left: count or share")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="METHOD")
    parser.add_argument("--max-new-tokens", type=typed(count(1)), default=32)
    options = parser.parse_args(arguments)
    for method in options.methods:
        Reduction.parse(method if method == "dense" else f"{method}:{options.keep_tokens}")
    return options


@contextmanager
def local_ray(folder: Path) -> Iterator[dict[str, str]]:
    """Start a Ray head on free loopback ports; yields the environment in which it can be reached."""
    folder.mkdir(parents=True, exist_ok=True)
    # A short path, as Ray puts sockets into it; its own, so that another Ray's note of where it runs stays.
    home = Path(tempfile.mkdtemp(prefix="ray-demo-"))
    token = home / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    gcs, dashboard, client, agent = _free_ports(4)
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_worker_niceness": "0"}
    words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--node-ip-address=127.0.0.1"]
    words += [f"--temp-dir={home}", f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    words += [
        f"--ray-client-server-port={client}",
        f"--dashboard-agent-listen-port={agent}",  # takes jobs up; at the default port another Ray's may listen
        "--include-dashboard=true",
        "--disable-usage-stats",
        f"--object-store-memory={100 * 2**20}",
    ]
    with (folder / "ray.log").open("w") as log:
        ray = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_for(dashboard, ray, folder / "ray.log")
        yield {**environment, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    finally:
        ray.send_signal(signal.SIGTERM)
        ray.wait(60)
        shutil.rmtree(home, ignore_errors=True)


def submit(method: str, options: argparse.Namespace, environment: dict[str, str]) -> dict[str, Any]:
    """Run the job under `ray job submit` and return its last line."""
    job = [sys.executable, "jobs/caption_corpus.py", "--input", str(options.corpus), "--model", str(options.model)]
    job += ["--output", str(options.output / method), "--overwrite", "--metric", "exact"]
    job += ["--max-new-tokens", str(options.max_new_tokens), "--tracking-uri", _store(options.output)]
    job += ["--experiment", "demo", "--run-name", method, "--reduction", method]
    job += [] if method == "dense" else ["--keep-tokens", options.keep_tokens]
    words = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--working-dir", "."]
    words += ["--runtime-env-json", json.dumps({"excludes": list(EXCLUDED)}), "--", *job]
    done = run_when_ready(words, environment)
    (options.output / f"{method}.log").write_text(done.stdout + done.stderr)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        sys.exit(f"the {method} run failed; its last words:\n{done.stdout[-2000:]}")
    sample = answer_sample(open_output(str(options.output / method)), most=1)
    return {**json.loads(lines[-1]), "visual_tokens": sample["visual_tokens"][0] if sample else None}


def run_when_ready(words: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A `ray job submit`; Ray's dashboard is there, on a busy machine, before what takes jobs up."""
    deadline = time.monotonic() + RAY_SECONDS
    while True:
        done = subprocess.run(words, cwd=ROOT, env=environment, text=True, capture_output=True)
        if "No available agent" not in done.stdout + done.stderr or time.monotonic() > deadline:
            return done
        time.sleep(1)


def table(results: dict[str, dict[str, Any]]) -> str:
    """One line per setting, with what it keeps, costs and gets right, and one on what its speed is worth."""
    head = f"{'setting':<10} {'tokens':>6}  {'GFLOPs per answer: vision':>25} {'prefill':>8} {'decode':>7} {'other':>6}"
    lines = [f"{head} {'total':>8}  {'images/s':>8} {'accuracy':>8}"]
    for name, result in results.items():
        giga = {part: value / 1e9 for part, value in result["flops_per_answer"].items()}
        other = giga["projector"] + giga["reduction"]
        line = f"{name:<10} {result['visual_tokens'] or '':>6}  {giga['vision']:>25.3f} {giga['prefill']:>8.3f}"
        line += f" {giga['decode']:>7.3f} {other:>6.3f} {sum(giga.values()):>8.3f}"
        accuracy = "" if result["accuracy"] is None else f"{result['accuracy']:.3f}"
        lines.append(f"{line}  {result['images_per_second']:>8.1f} {accuracy:>8}")
    return "\n".join([*lines, ONE_RUN_EACH])


def show_answers(output: Path) -> None:
    sample = answer_sample(open_output(str(output)), most=3, shards=3)
    for question, answer, references in zip(
        *(sample[name] for name in ("question", "answer", "references")), strict=True
    ):
        print(f"  {question!r} -> {answer!r} (reference: {references!r})")
    print()


def _store(output: Path) -> str:
    return f"sqlite:///{output}/mlflow.db"


def _free_ports(number: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _wait_for(port: int, ray: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + RAY_SECONDS
    while time.monotonic() < deadline and ray.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    sys.exit(f"Ray did not start; its last words:\n{log.read_text()[-2000:]}")


if __name__ == "__main__":
    sys.exit(run_command(main))
