"""Recount an output from its files: `python jobs/verify_output.py --output DIR [--input SHARDS ...]`.

Prints one line per finding and, as the last line, one JSON object. Exit status: 0 all is well, 1 something is off,
2 the command cannot be carried out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.command import exit_status
from pipeline.ledger import Ledger
from pipeline.limits import ReadLimits
from pipeline.listing import list_shards
from pipeline.option_parser import OptionParser
from pipeline.part_audit import Identity
from pipeline.records import Rejection, Sample, ShardRef
from pipeline.run_folder import read_run
from pipeline.shards import read_shard
from pipeline.storage import Output, open_output
from pipeline.verification import QuestionsOf, Verification, verify
from reduction.console import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    return exit_status("verify_output", lambda: _verify(_parser().parse_args(arguments)))


def _verify(options: argparse.Namespace) -> int:
    result = run(options.output, options.input, options.skip_keys)
    for finding in result.findings:
        print(finding)
    print(json.dumps({**result.summary(), "output": open_output(options.output).url}))
    return 0 if result.ok else 1


def run(output_url: str, inputs: Sequence[str], skip_keys: bool = False) -> Verification:
    """Verify an output, against its input too where `inputs` are given.

    Raises:
        UserError: not an output, an input that matches nothing, or unreachable storage.
    """
    output = open_output(output_url)
    shards = list_shards(inputs, Ledger(output).scan().known_names) if inputs else None
    return verify(output, shards, None if skip_keys or not inputs else _questions_of(output))


def _questions_of(output: Output) -> QuestionsOf | None:
    """Reads a shard as the run did; None for a run with a limit, which left questions out on purpose."""
    run = read_run(output) or {}
    settings = run.get("rows_depend_on", {})
    if settings.get("limit") is not None:
        return None
    limits = ReadLimits.from_settings(run.get("config", {}))

    def read(ref: ShardRef) -> Iterator[Identity]:
        for item in read_shard(ref, settings.get("prompt"), limits):
            if isinstance(item, Sample):
                yield from ((item.key, question.index) for question in item.questions)
            elif isinstance(item, Rejection):
                yield item.key, item.question_index

    return read


def _parser() -> OptionParser:
    parser = OptionParser(description="Recount an output from its files and say what is off.")
    parser.add_argument("--output", required=True, help="folder or URL of the run's output")
    parser.add_argument("--input", action="append", default=[], help="the run's input, to find missing shards and keys")
    parser.add_argument(
        "--skip-keys", action="store_true", help="with --input: look for missing shards only, do not read them again"
    )
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
