"""Ctrl-C, SIGTERM and `ray job stop` on a real Ray: no more leases, a sentence on how to go on, and nothing lost."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest

from jobs.demo import EXCLUDED, local_ray, run_when_ready
from tests.checkpoint import save_checkpoint
from tests.torture.processes import PATIENCE, until
from tests.torture.scene import COMMAND, ROOT, Scene

pytestmark = pytest.mark.torture


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_on_ray_in_order(scene: Scene, number: signal.Signals, code: int) -> None:
    run = scene.start(nap=0.5)
    scene.reported(2)
    if number == signal.SIGINT:
        os.killpg(run.session, number)  # as a terminal does
    else:
        run.process.send_signal(number)
    said = run.ends(code)
    assert f"stopped by {number.name}" in said
    assert "run the same command again to continue" in said
    assert run.summary["complete"] is False
    run.gone()
    assert 2 <= scene.reports() < 24
    assert not (scene.output / "driver.lock").exists()
    scene.start(nap=0.0).ends(0)
    scene.check()


def test_impatient_interrupts_end_a_run_at_once(scene: Scene) -> None:
    run = scene.start("--stop-grace", "600", "--lease-timeout", "1200", nap=300)
    until(scene.workers, "a shard taken up")

    def ended() -> bool:
        run.process.send_signal(signal.SIGINT)
        return run.process.poll() is not None

    until(ended, "its end")
    said = run.ends(130)
    assert "stopped at once; 0 of 24 shards are done, run the same command again to continue" in said
    assert "Traceback" not in said
    run.gone()
    scene.start(nap=0.0).ends(0)
    scene.check()


COMPARISON = (sys.executable, str(ROOT / "jobs/compare_reductions.py"), "--settings", "ficoco-v:4")


@pytest.mark.parametrize("command", [COMMAND, COMPARISON], ids=["run", "comparison"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_work_begins_is_one_sentence(
    scene: Scene, chance: random.Random, command: Sequence[str], number: signal.Signals, code: int
) -> None:
    words = [*command, *scene.options(), "--model", str(save_checkpoint(scene.folder / "model"))]
    for longest in (0.0, 2.0, 6.0):
        run = scene.launch(words, {})
        until((scene.output / "driver.lock").exists, "the lock")
        time.sleep(chance.uniform(0, longest))  # the listing, the tracking store, Ray's start
        run.process.send_signal(number)
        said = run.ends(code)
        assert said.splitlines()[-1].endswith("run the same command again to continue")
        assert f"stopped by {number.name}" in said
        assert "Traceback" not in said
        assert not (scene.output / "driver.lock").exists()
        run.gone()


RAY = [sys.executable, "-m", "ray.scripts.scripts"]


def ray(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command: Sequence[str] = [*RAY, *words]
    return subprocess.run(
        command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=PATIENCE, check=False
    )


def test_a_submitted_job_that_is_stopped_is_continued_by_submitting_it_again(scene: Scene) -> None:
    work = [sys.executable, "-m", "tests.torture.ray_echo", str(scene.log)]
    more = [*scene.options(), "--replicas", "2", "--cpus-per-replica", "0.5"]
    excluded = json.dumps({"excludes": [name for name in EXCLUDED if name != "tests"]})
    submit = ["job", "submit", "--working-dir", ".", "--runtime-env-json", excluded]
    with local_ray(scene.folder / "ray") as environment:
        words = [*RAY, *submit, "--submission-id", "one", "--no-wait", "--", *work, "1", *more]
        begun = run_when_ready(words, environment)
        assert begun.returncode == 0, begun.stdout + begun.stderr
        until(lambda: scene.reports() >= 2, "two reports")
        stopped = ray(environment, "job", "stop", "one")
        assert stopped.returncode == 0, stopped.stdout + stopped.stderr
        logs = ray(environment, "job", "logs", "one").stdout
        assert "stopped by SIGTERM" in logs
        assert "run the same command again to continue" in logs
        assert scene.reports() < 24
        again = ray(environment, *submit, "--submission-id", "two", "--", *work, "0", *more)
        assert again.returncode == 0, again.stdout + again.stderr
    scene.check()
