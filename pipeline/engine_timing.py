"""Timing one engine setting: seconds by part, the reduction's own share, and what the machine achieved meanwhile."""

from __future__ import annotations

import resource
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

import pipeline.decoder
import reduction.text_tower
import reduction.vision
from pipeline.engine import Engine, Request
from reduction.flops import Flops, count_image, count_shared_text, count_text, kv_bytes

REDUCING = (
    (reduction.vision, "reduce_patches"),
    (reduction.vision, "reduce_features"),
    (reduction.text_tower.TextTower, "embed_ids"),
    (reduction.text_tower.Asked, "view"),
    (pipeline.decoder, "reduce_block"),
)


@dataclass(frozen=True)
class Work:
    """The same for every setting."""

    images: torch.Tensor
    prefix: tuple[int, ...]
    requests: tuple[Request, ...]
    new_tokens: int

    @property
    def questions_per_image(self) -> int:
        return len(self.requests) // len(self.images)

    @property
    def text_tokens(self) -> int:
        return len(self.prefix) + len(self.requests[0].suffix)


@dataclass
class Timing:
    """Seconds of each repeat, by part; `reduction` is contained in vision and prefill."""

    setting: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    peak_bytes: int = 0

    def add(self, seconds: dict[str, float]) -> None:
        for part, value in seconds.items():
            self.seconds.setdefault(part, []).append(value)

    def median(self, *parts: str) -> float:
        """Median over the repeats of the sum of `parts`."""
        return statistics.median(map(sum, zip(*(self.seconds[part] for part in parts), strict=True)))

    def spread(self, *parts: str) -> float:
        """Largest less smallest repeat, over the median."""
        sums = [sum(values) for values in zip(*(self.seconds[part] for part in parts), strict=True)]
        return (max(sums) - min(sums)) / statistics.median(sums)


def run_once(engine: Engine, work: Work, timing: Timing | None) -> None:
    """Answer the work once; a run without `timing` is a warm-up."""
    if engine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(engine.device)
    engine.stopwatch.clear()
    with _reduction_timed(engine):
        engine.answer(work.images, work.prefix, work.requests)
    if timing is not None:
        timing.add({"reduction": 0.0} | engine.stopwatch.seconds())
        peak = _peak_bytes(engine.device) - engine.kept.spare_bytes(engine.decoder)
        timing.peak_bytes = max(timing.peak_bytes, peak)


def work_flops(engine: Engine, work: Work) -> Flops:
    """Return the exact FLOPs of the whole work, with what questions about one image share counted once."""
    shape, plan, reduction = engine.shape, engine.plan, engine.reduction
    rows, images, text = len(work.requests), len(work.images), work.text_tokens
    image = count_image(shape, plan, reduction).shared_by(1)
    total = Flops(**{part: images * value for part, value in image.parts().items()})
    words = len(work.prefix), text, work.new_tokens
    question = work.requests[0].question
    tower = engine.text_tower if question is not None else None
    read = len(tower.tokenise([question or ""])[0]) if tower else None
    if rows == images:
        one = count_text(shape, plan, *words, reduction, question_tokens=read)
    else:
        one = count_shared_text(shape, plan, *words, reduction, work.questions_per_image, question_tokens=read)
    return total + Flops(**{part: rows * value for part, value in one.parts().items()})


def decode_bytes(engine: Engine, work: Work) -> float:
    """Return the bytes that one decoding step must read: the decoder's weights, and the batch's keys and values."""
    decoder = engine.model.model.language_model
    weights = [*decoder.layers.parameters(), *engine.model.lm_head.parameters()]
    read = sum(p.numel() * p.element_size() for p in weights)
    cached = kv_bytes(engine.shape, engine.plan, work.text_tokens, work.new_tokens // 2, engine.dtype.itemsize)
    return float(read + len(work.requests) * cached)


def report(engine: Engine, work: Work, timing: Timing, peak_tflops: float, copy_gbs: float) -> dict[str, Any]:
    """Return one setting's result; speeds are medians over the repeats."""
    flops, steps = work_flops(engine, work), max(1, work.new_tokens - 1)
    front, total = timing.median("vision", "prefill"), timing.median("vision", "prefill", "decode")
    tflops = (flops.vision + flops.projector + flops.prefill + flops.reduction) / front / 1e12
    gbs = decode_bytes(engine, work) * steps / timing.median("decode") / 1e9
    parts = {part: timing.median(part) for part in ("vision", "prefill", "decode", "reduction")}
    return {
        "setting": timing.setting,
        "seconds": parts | {"total": total, "decode_per_token": parts["decode"] / steps},
        "spread": {"vision_prefill": timing.spread("vision", "prefill"), "decode": timing.spread("decode")},
        "reduction_share": parts["reduction"] / front,
        "flops": flops.parts(),
        "images_per_second": len(work.images) / total,
        "answers_per_second": len(work.requests) / total,
        "vision_prefill_tflops": tflops,
        "share_of_matmul_peak": tflops / peak_tflops,
        "decode_gigabytes_per_second": gbs,
        "share_of_copy_bandwidth": gbs / copy_gbs,
        "peak_megabytes": timing.peak_bytes / 1e6,
        "kv_megabytes": len(work.requests)
        * kv_bytes(engine.shape, engine.plan, work.text_tokens, work.new_tokens, engine.dtype.itemsize)
        / 1e6,
    }


def realised_shares(results: list[dict[str, Any]]) -> None:
    """Add to each result how much of its FLOPs ratio to dense became a time ratio; None where dense was not run."""
    dense = next((result for result in results if result["setting"] == "dense"), None)
    for result in results:
        result["realised_share"] = dense and _share(dense, result, ("vision", "prefill"))
        result["realised_share_total"] = dense and _share(dense, result, ("vision", "prefill", "decode"))


def _share(dense: dict[str, Any], reduced: dict[str, Any], parts: tuple[str, ...]) -> float:
    def seconds(result: dict[str, Any]) -> float:
        return sum(result["seconds"][part] for part in parts)

    def flops(result: dict[str, Any]) -> float:
        return sum(result["flops"][part] for part in (*parts, "projector", "reduction"))

    return (seconds(dense) / seconds(reduced)) / (flops(dense) / flops(reduced))


@contextmanager
def _reduction_timed(engine: Engine) -> Iterator[None]:
    """Time the functions that reduce, as the stage `reduction`, for as long as the block lasts; dense has none."""
    if not engine.plan.reduces:
        yield
        return
    originals = [getattr(module, name) for module, name in REDUCING]

    def timed(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            with engine.stopwatch.stage("reduction"):
                return original(*args, **kwargs)

        return call

    try:
        for (module, name), original in zip(REDUCING, originals, strict=True):
            setattr(module, name, timed(original))
        yield
    finally:
        for (module, name), original in zip(REDUCING, originals, strict=True):
            setattr(module, name, original)


def _peak_bytes(device: torch.device) -> int:
    """Peak memory: of the device, or of this process since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
