"""Score an output's answers again: `python jobs/score_answers.py --output DIR --metric vqa`.

Reads the Parquet parts and changes nothing. Prints, as the last line, one JSON object: accuracy over all scored answers
and by kind of question; for `yesno` also precision, recall, F1 and the ratio of yes.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.command import exit_status
from pipeline.errors import UserError
from pipeline.ledger import Ledger
from pipeline.option_parser import OptionParser
from pipeline.scoring import METRICS, NONE, score, yesno_metrics
from pipeline.storage import Output, open_output
from reduction.console import run_command

COLUMNS = ["question", "answer", "references", "kind"]


def main(arguments: Sequence[str] | None = None) -> int:
    return exit_status("score_answers", lambda: _score(_parser().parse_args(arguments)))


def _score(options: argparse.Namespace) -> int:
    print(json.dumps(score_output(open_output(options.output), options.metric)))
    return 0


def score_output(output: Output, metric: str) -> dict[str, Any]:
    """The accuracy of every committed answer by `metric`, part by part in bounded memory.

    Raises:
        UserError: there are no committed answers, or no references.
    """
    answers = scored = 0
    total = 0.0
    by_kind: dict[str, tuple[int, float]] = {}
    for row in _answers(output):
        answers += 1
        value = score(metric, row["answer"], row["references"], row["question"])
        if value is None:
            continue
        scored, total = scored + 1, total + value
        if row["kind"] is not None:
            count, points = by_kind.get(row["kind"], (0, 0.0))
            by_kind[row["kind"]] = (count + 1, points + value)
    if not answers:
        raise UserError(f"{output.url} has no committed answers; check --output")
    if not scored:
        raise UserError(f"no answer in {output.url} has a reference that {metric} can use; check --metric")
    result = {
        "output": output.url,
        "metric": metric,
        "answers": answers,
        "scored": scored,
        "accuracy": total / scored,
        "accuracy_by_kind": {kind: points / count for kind, (count, points) in sorted(by_kind.items())},
    }
    if metric != "yesno":
        return result
    pairs = ((row["answer"], row["references"][0]) for row in _answers(output) if row["references"])
    return {**result, "yesno": yesno_metrics(pairs)}


def _answers(output: Output) -> Iterator[dict[str, Any]]:
    for entry in Ledger(output).done().values():
        for path, _ in entry.parts:
            if path.startswith("data/"):
                yield from pq.read_table(io.BytesIO(output.read(path)), columns=COLUMNS).to_pylist()


def _parser() -> OptionParser:
    parser = OptionParser(description="Score an output's answers again, by the benchmarks' own rules.")
    parser.add_argument("--output", required=True, help="folder or URL of the run's output")
    parser.choose("--metric", [name for name in METRICS if name != NONE], required=True)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
