"""The local log of metrics, after a process died in the middle of a line."""

from __future__ import annotations

from pathlib import Path

from pipeline.metrics_log import MetricsLog
from pipeline.storage import open_output


def test_steps_go_on_after_a_line_that_was_cut_off(tmp_path: Path) -> None:
    output = open_output(str(tmp_path))
    log = MetricsLog(output)
    for shards in range(3):
        log.append({"shards_done": float(shards)})
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-10])
    MetricsLog(output).append({"shards_done": 3.0})
    lines = MetricsLog(output).lines
    assert [(line["step"], line["shards_done"]) for line in lines] == [(0, 0.0), (1, 1.0), (2, 3.0)]


def test_a_new_log_begins_with_its_first_line(tmp_path: Path) -> None:
    MetricsLog(open_output(str(tmp_path))).append({"shards_done": 1.0})
    assert (tmp_path / "metrics.jsonl").read_bytes().startswith(b'{"step": 0,')
