"""Compare reductions: `python jobs/compare_reductions.py --input SHARDS --output DIR --model MODEL --settings ...`.

Runs every setting on the same samples, in the same batches, on the same replicas, and writes what each costs and how
often it is right: `comparison.parquet`, `comparison.csv`, and each setting's answers under `settings/`. Running the
same command again continues; more settings on the same output reuse what is there. Progress goes to stderr; the last
line on stdout is one JSON object. Exit status as of `caption_corpus.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.command import carry_out
from pipeline.command_line import parse_options
from pipeline.compare_config import CompareConfig
from pipeline.places import inside_ray_job, located
from pipeline.shutdown import Shutdown
from reduction.console import run_command

if TYPE_CHECKING:
    from pipeline.compare_job import CompareResult

ABOUT = "Compare token reductions on a corpus: accuracy, fidelity, time, FLOPs and money, side by side."


def main(arguments: Sequence[str] | None = None) -> int:
    return carry_out("compare_reductions", lambda shutdown: _compare(arguments, shutdown))


def _compare(arguments: Sequence[str] | None, shutdown: Shutdown) -> CompareResult:
    config = located(parse_options(arguments, CompareConfig, "compare_reductions", ABOUT), inside_ray_job())
    _ = config.wanted
    # Imported here, so that a wrong command line is answered before torch and Ray are there.
    from pipeline.compare_job import compare_on_ray

    return compare_on_ray(config, shutdown)


if __name__ == "__main__":
    sys.exit(run_command(main))
