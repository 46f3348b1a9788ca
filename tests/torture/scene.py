"""A corpus, what an undisturbed run makes of it, and runs that are disturbed and must end in the same."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from jobs.verify_output import main as verify_output
from pipeline.command_line import parse_command
from pipeline.job import run
from pipeline.places import located
from tests.pipeline.echo_job import echo_parts
from tests.pipeline.shard_bytes import numbered, tar_bytes
from tests.torture.processes import PATIENCE, alive, kill_session, of_session, until

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, str(ROOT / "jobs/caption_corpus.py"))


class Run:
    """A driver in a session of its own, so that it and the Ray that it starts can be told from all others."""

    def __init__(self, words: Sequence[str], folder: Path, number: int, environment: Mapping[str, str]) -> None:
        self.out, self.err = folder / f"{number}.out", folder / f"{number}.err"
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                words,
                cwd=ROOT,
                stdout=out,
                stderr=err,
                env=dict(environment),
                start_new_session=True,
                preexec_fn=_heed_interrupts,
            )

    @property
    def session(self) -> int:
        return self.process.pid

    def says(self, pattern: str) -> re.Match[str]:
        """Waits until the driver says so on stderr."""

        def look() -> re.Match[str] | None:
            ended = self.process.poll() is not None
            found = re.search(pattern, self.err.read_text())
            assert found or not ended, f"ended without saying {pattern!r}:\n{self.err.read_text()}"
            return found

        found: re.Match[str] = until(look, f"{pattern!r} in {self.err}")
        return found

    def named(self, text: str) -> list[int]:
        return [pid for pid, command in of_session(self.session).items() if text in command]

    def ends(self, code: int | None = 0) -> str:
        """Waits for the driver's end; returns what it said. `code` None: whatever it is."""
        self.process.wait(PATIENCE)
        said = self.err.read_text()
        assert code is None or self.process.returncode == code, f"exit status {self.process.returncode}:\n{said}"
        return said

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads(self.out.read_text().splitlines()[-1])

    def gone(self) -> None:
        """Waits until nothing is left of its session: what a killed driver leaves must end by itself."""
        until(lambda: not of_session(self.session), f"processes are left: {of_session(self.session)}")


def _heed_interrupts() -> None:
    """As from a terminal: what a shell runs in the background ignores them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Scene:
    """Folder with a corpus; `quiet/` is the output of an undisturbed run, `out/` that of disturbed ones.

    Args:
        store: MLflow's, by its URI.
        home: Ray's folder, of a short path as it holds sockets.
    """

    def __init__(self, folder: Path, store: str, home: Path, shards: int = 24, samples: int = 3) -> None:
        self.folder, self.store, self.runs = folder, store, list[Run]()
        self.corpus, self.output, self.log = folder / "corpus", folder / "out", folder / "log"
        self.home, self.questions = home, shards * samples
        self.corpus.mkdir()
        data = tar_bytes(numbered(samples))
        for number in range(shards):
            (self.corpus / f"{number:05d}.tar").write_bytes(data)
        self.log.touch()

    def options(self, output: Path | None = None) -> list[str]:
        words = ["--input", str(self.corpus), "--output", str(output or self.output), "--model", "echo"]
        return [*words, "--tracking-uri", self.store, "--log-every", "1"]

    def quiet(self) -> Path:
        """The output of an undisturbed run, of one process and without Ray."""
        output = self.folder / "quiet"
        if not output.exists():
            self.run_here(output)
        return output

    def run_here(self, output: Path | None = None, *more: str) -> None:
        """A whole run in this process."""
        words = [*self.options(output), *more]
        assert run(located(parse_command(words), inside_job=False), echo_parts()).exit_code == 0

    def start(self, *more: str, nap: float = 0.3, **environment: str) -> Run:
        """The job on a Ray of its own, with three replicas that repeat the question."""
        words = [sys.executable, "-m", "tests.torture.ray_echo", str(self.log), str(nap), *self.options()]
        return self.launch([*words, "--replicas", "3", "--cpus-per-replica", "0.5", *more], environment)

    def start_threads(self, *more: str, nap: float = 0.3, **environment: str) -> Run:
        """The job in one process without Ray, where Ray adds nothing."""
        words = [sys.executable, "-m", "tests.pipeline.echo_job", str(nap), *self.options()]
        return self.launch([*words, *more], environment)

    def launch(self, words: Sequence[str], environment: Mapping[str, str]) -> Run:
        kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        # Ray notes there which cluster was started last; another's must not be joined.
        kept["RAY_TMPDIR"] = str(self.home)
        started = Run(words, self.folder, len(self.runs), {**kept, "PYTHONPATH": str(ROOT), **environment})
        self.runs.append(started)
        return started

    def reports(self) -> int:
        return len(list((self.output / "ledger").glob("*.json")))

    def reported(self, number: int, run: Run | None = None) -> None:
        """Waits until so many shards are done by a run, or the last one."""
        working = run or self.runs[-1]

        def enough() -> bool:
            assert working.process.poll() is None, f"ended early:\n{working.err.read_text()}"
            return self.reports() >= number

        until(enough, f"{number} reports")

    def workers(self) -> dict[int, int]:
        """Replica that took up a shard and is alive -> its raylet."""
        rows = [line.split() for line in self.log.read_text().splitlines()]
        return {int(pid): int(raylet) for _, pid, raylet in rows if alive(int(pid))}

    def recent_workers(self) -> list[int]:
        """Replicas alive that took up one of the last shards; reads the log's end alone."""
        with self.log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 2000))
            rows = [line.split() for line in log.read().decode().splitlines()[1:]]
        return sorted({int(row[1]) for row in rows if len(row) == 3 and alive(int(row[1]))})

    def check(self) -> None:
        """All is as an undisturbed run leaves it, to the byte."""
        check_output(self.output, self.quiet(), self.corpus, self.questions)

    def close(self) -> None:
        for one in self.runs:
            kill_session(one.session)
            one.process.wait(PATIENCE)


def check_output(output: Path, quiet: Path, corpus: Path | str, questions: int) -> None:
    """Every question is there once, the parts are those of the output `quiet`, and `verify_output` has no objection."""
    tables = [pq.read_table(path).to_pylist() for path in sorted((output / "data").glob("*.parquet"))]
    identities = Counter((row["shard"], row["key"], row["question_index"]) for table in tables for row in table)
    assert set(identities.values()) == {1}
    assert len(identities) == questions
    assert parts(output) == parts(quiet)
    assert verify_output(["--output", str(output), "--input", str(corpus)]) == 0
    assert (output / "_SUCCESS").exists()
    assert not (output / "driver.lock").exists()
    assert not [path for path in output.rglob("*") if path.suffix == ".tmp" or path.name.startswith(".probe")]


def parts(output: Path) -> dict[str, bytes]:
    """Every Parquet file of an output by its path there."""
    return {str(path.relative_to(output)): path.read_bytes() for path in sorted(output.glob("*/*.parquet"))}
