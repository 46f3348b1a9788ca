"""Asking whether a file can be written changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.writable import check_writable


def test_nothing_is_left_and_nothing_lost(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("kept")
    for name in ("there", "new"):
        check_writable(tmp_path / name, "--json")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert (tmp_path / "there").read_text() == "kept"


@pytest.mark.parametrize(("name", "reason"), [("", "Is a directory"), ("none/x", "No such file or directory")])
def test_what_cannot_be_written_is_one_sentence(tmp_path: Path, name: str, reason: str) -> None:
    path = tmp_path / name
    with pytest.raises(UserError, match=f"^cannot write --json {path}: {reason}; choose another place$"):
        check_writable(path, "--json")
