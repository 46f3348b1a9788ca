"""Settings of a run as its replicas get them."""

from __future__ import annotations

import pytest

from pipeline.command_line import parse_command
from pipeline.worker_spec import replica_settings


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--draft-jpegs"], "draft_jpegs", True),
        ([], "draft_jpegs", False),
        (["--image-aspect", "crop"], "image_aspect", "crop"),
        (["--dtype", "bfloat16"], "dtype", "bfloat16"),
        (["--batch-size", "7"], "batch_size", 7),
        (["--text-tower", "clip"], "text_tower", "clip"),
    ],
)
def test_options_reach_the_replica(words: list[str], name: str, value: object) -> None:
    config = parse_command(["--input", "a.tar", "--output", "out", "--model", "m", *words])
    assert getattr(replica_settings(config, "dense"), name) == value
