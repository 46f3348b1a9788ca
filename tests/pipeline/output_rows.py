"""Rows, reports and provenance for the tests of the output."""

from __future__ import annotations

from dataclasses import replace

from pipeline.records import Answer, Rejection, ShardReport

CONFIG = {
    "model": "models/tiny",
    "model_digest": "sha256:1234",
    "reduction": "ficoco-v:64",
    "prompt": "Describe the image.",
    "max_new_tokens": 64,
    "image_aspect": "pad",
    "metric": "exact",
}
PROVENANCE = {"ficoco.fingerprint": "abc", "ficoco.reduction": "ficoco-v:64"}


def answer(number: int, shard: str = "00000.tar", **changes: object) -> Answer:
    row = Answer(
        shard=shard,
        key=f"{number:05d}",
        question_index=0,
        question_id=f"q{number}",
        question="What colour is it?",
        answer="red",
        references=("red", "crimson"),
        correct=float(number % 2),
        kind="colour",
        finish_reason="stop",
        prompt_tokens=12,
        visual_tokens=64,
        generated_tokens=3,
        mean_logprob=-0.25,
        flops=1.5e9,
        meta='{"width": 640}',
    )
    return replace(row, **changes)  # type: ignore[arg-type]


def rejection(number: int, shard: str = "00000.tar", **changes: object) -> Rejection:
    row = Rejection(shard, f"{number:05d}", "image", f"cannot decode image: {number} bytes missing")
    return replace(row, **changes)  # type: ignore[arg-type]


def report(shard: str = "00000.tar", fingerprint: str = "100-1", **changes: object) -> ShardReport:
    return replace(ShardReport(shard, f"/corpus/{shard}", fingerprint, samples=4), **changes)  # type: ignore[arg-type]
