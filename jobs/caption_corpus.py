"""Annotate a corpus: `python jobs/caption_corpus.py --input SHARDS --output DIR --model MODEL [...]`; see `--help`.

Runs with no Ray there, on a cluster (`RAY_ADDRESS`), and under `ray job submit --working-dir .`. Progress goes to
stderr; the last line on stdout is one JSON object. Exit status: 0 every shard is committed and every question is
accounted for; 1 something is left to do; 2 the command cannot be carried out; 128 + n stopped by signal n.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.budget import within_budget
from pipeline.command import carry_out
from pipeline.command_line import parse_command
from pipeline.job import JobResult, real_parts, run
from pipeline.places import inside_ray_job, located
from pipeline.shutdown import Shutdown
from reduction.console import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    return carry_out("caption_corpus", lambda shutdown: _run(arguments, shutdown))


def _run(arguments: Sequence[str] | None, shutdown: Shutdown) -> JobResult:
    config = located(parse_command(arguments), inside_ray_job())
    if not config.is_auto:
        settled, remark = within_budget(config)
        return run(settled, real_parts(), remark, shutdown)
    from pipeline.auto_reduction import run_auto  # brings the comparison, which a plain run does not need

    return run_auto(config, real_parts(), shutdown)


if __name__ == "__main__":
    sys.exit(run_command(main))
