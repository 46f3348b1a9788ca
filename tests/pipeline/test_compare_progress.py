"""A comparison shows that work gets on within a shard."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import dispatch
from tests.checkpoint import save_checkpoint
from tests.pipeline.compare_runs import run_compare, words, write_corpus


def test_batches_are_counted_while_the_only_shard_is_under_way(
    tmp_path: Path,
    store_in: Callable[[Path], str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(dispatch, "PULSE_SECONDS", 0.0)
    monkeypatch.setattr(dispatch, "POLL_SECONDS", 0.02)
    write_corpus(tmp_path / "corpus", shards=1, samples=33)
    store_in(tmp_path)
    model = save_checkpoint(tmp_path / "model")
    more = ["--settings", "random:4,stride:4", "--repeats", "2", "--log-every", "0.1"]
    assert run_compare(words(tmp_path, model, *more)).exit_code == 0
    shown = re.findall(r"shards 0/1  batches (\d+)  images 0 ", capsys.readouterr().err)
    counts = [int(text) for text in shown]
    assert len(set(counts)) > 1
    assert counts == sorted(counts)
    # 64 questions in batches of four, one of them not full, by three settings, twice.
    assert counts[-1] <= 17 * 3 * 2
