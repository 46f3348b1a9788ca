"""Many shards through the real fleet and the real writer while replicas are killed every few seconds.

`TORTURE_SAMPLES` (200,000) sets the size; `build/soak.csv` and `build/soak.png` show memory over time.
"""

from __future__ import annotations

import csv
import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import duckdb
import matplotlib
import pytest

from jobs.verify_output import main as verify_output
from tests.pipeline.shard_bytes import numbered, tar_bytes
from tests.torture.processes import in_session, kill, resident_bytes
from tests.torture.scene import ROOT, Run, Scene

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SAMPLES_PER_SHARD = 100
REPLICAS = 3
KILL_SECONDS = (3.0, 8.0)
MOST_GROWTH = 1.10
"""Mean memory of the last third over that of the second, while replicas work; the first third warms up."""
MEGABYTE = 2**20


@dataclass
class Record:
    """Memory over time: (seconds, shards done, driver's MB, mean MB of the replicas at work)."""

    rows: list[tuple[float, int, float, float]] = field(default_factory=list)
    kills: list[float] = field(default_factory=list)

    def growth(self, column: int) -> tuple[float, float]:
        """Mean of a column in the last third of the work, and its ratio to that in the second."""
        worked = [row[column] for row in self.rows if row[3]]
        third = len(worked) // 3
        last = mean(worked[2 * third :])
        return last, last / mean(worked[third : 2 * third])

    def write(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        with (folder / "soak.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["seconds", "shards", "driver_mb", "replica_mb"])
            table.writerows(self.rows)
        seconds, shards, driver, replica = zip(*self.rows, strict=True)
        figure, memory = plt.subplots(figsize=(9, 4), layout="constrained")
        memory.plot(seconds, driver, label="driver")
        memory.plot(seconds, replica, label="replicas, mean")
        memory.vlines(self.kills, 0, 10, color="tab:red", linewidth=0.5, label="a replica is killed")
        memory.set(xlabel="seconds", ylabel="memory of its own, MB", ylim=(0, None))
        done = memory.twinx()
        done.plot(seconds, shards, color="tab:grey", linestyle=":", label="shards done")
        done.set(ylabel="shards done", ylim=(0, None))
        figure.legend(loc="outside upper center", ncols=4)
        figure.savefig(folder / "soak.png", dpi=120)
        plt.close(figure)


def watch(run: Run, scene: Scene, chance: random.Random, every: float) -> Record:
    """Kill replicas and note memory until the run ends."""
    record, began = Record(), time.monotonic()
    next_kill, next_row = chance.uniform(*KILL_SECONDS), 0.0
    while run.process.poll() is None:
        now = time.monotonic() - began
        workers = [pid for pid in scene.recent_workers() if in_session(pid, run.session)]
        if now >= next_kill and workers:
            kill(chance.choice(workers))
            record.kills.append(now)
            next_kill = now + chance.uniform(*KILL_SECONDS)
        if now >= next_row:
            next_row = now + every
            sizes = [size for size in map(resident_bytes, workers) if size]
            replica = mean(sizes) / MEGABYTE if sizes else 0.0
            record.rows.append((now, scene.reports(), resident_bytes(run.session) / MEGABYTE, replica))
        time.sleep(0.1)
    return record


def soak(scene: Scene, chance: random.Random, samples: int, every: float) -> Record:
    data = tar_bytes(numbered(SAMPLES_PER_SHARD))
    for path in scene.corpus.iterdir():
        path.unlink()
    for number in range(samples // SAMPLES_PER_SHARD):
        (scene.corpus / f"{number:05d}.tar").write_bytes(data)
    run = scene.start("--replicas", str(REPLICAS), nap=0.0)
    record = watch(run, scene, chance, every)
    said = run.ends(0)
    assert said.count("is replaced") >= len(record.kills) // 2 > 0
    counted = f"SELECT count(*), count(DISTINCT (shard, key, question_index)) FROM '{scene.output}/data/*.parquet'"
    assert duckdb.execute(counted).fetchall() == [(samples, samples)]
    assert run.summary["quarantined"] == 0
    assert verify_output(["--output", str(scene.output), "--input", str(scene.corpus)]) == 0
    return record


@pytest.mark.torture
@pytest.mark.timeout(5 * 3600)
def test_a_long_soak_loses_nothing_and_takes_no_more_memory(
    scene: Scene, chance: random.Random, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = int(os.environ.get("TORTURE_SAMPLES") or 200_000)
    record = soak(scene, chance, samples, every=2.0)
    record.write(ROOT / "build")
    driver, driver_growth = record.growth(2)
    replica, replica_growth = record.growth(3)
    with capsys.disabled():
        print(
            f"\nsoak: {samples} samples in {record.rows[-1][0]:.0f} s, {len(record.kills)} kills, "
            f"driver {driver:.0f} MB (x {driver_growth:.3f}), replicas {replica:.0f} MB (x {replica_growth:.3f})"
        )
    assert driver_growth < MOST_GROWTH
    assert replica_growth < MOST_GROWTH
