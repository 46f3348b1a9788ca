"""Comparisons with made-up figures, to try the report on."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from pipeline.comparison import Comparison, Example, Flow, Interval, SettingResult
from pipeline.records import FLOP_PARTS

GRID = 24
KINDS = ("colour", "count", "digit")


def around(value: float, half: float) -> Interval:
    return Interval(value, value - half, value + half)


def result(setting: str, right: float = 0.9, share: float = 0.5, **changes: Any) -> SettingResult:
    """A setting that is right in `right` of its answers at `share` of dense's cost."""
    dense = setting == "dense"
    values: dict[str, Any] = {
        "setting": setting,
        "method": setting.partition(":")[0],
        "visual_tokens": 576 * share,
        "vision_lengths": (576, 576),
        "decoder_lengths": (636, round(636 * share)),
        "flops": dict.fromkeys(FLOP_PARTS, 1.7e12 * share),
        "llm_viewer_tflops": 8.45 * share,
        "kv_megabytes": 333 * share,
        "kv_megabytes_fp16": 330 * share,
        "questions": 400,
        "answers": 400,
        "images_per_second": around(9 / share, 0.3),
        "answers_per_second": around(36 / share, 1.2),
        "seconds": {"vision": 2.0, "prefill": 5.0 * share, "decode": 3.0},
        "peak_megabytes": 15_000.0,
        "usd_per_million_images": 77.0 * share,
        "realised_share": None if dense else 0.6,
        "accuracy": around(right, 0.02),
        "accuracy_by_kind": {kind: right - 0.05 * place for place, kind in enumerate(KINDS)},
        "accuracy_difference": None if dense else around(right - 0.95, 0.015),
        "mcnemar_p": None if dense else 0.04,
        "fidelity": around(1.0 if dense else right, 0.0 if dense else 0.02),
        "rouge_l": around(1.0 if dense else right, 0.0 if dense else 0.02),
    }
    return SettingResult(**{**values, **changes})


def picture(seed: int = 0, side: int = 336) -> bytes:
    """A JPEG that does not compress well."""
    noise = np.random.default_rng(seed).integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).resize((side, side)).save(data, "JPEG", quality=80)
    return data.getvalue()


def flow(setting: str, seed: int = 0, keep: int = 64, answer: str = "red") -> Flow:
    """A random choice of patches, with the others gone to one of them each."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(GRID * GRID)
    kept = sorted(order[:keep].tolist())
    moved = [(int(cell), int(generator.choice(kept)), float(generator.random())) for cell in sorted(order[keep:])]
    return Flow(setting, answer, tuple(kept), tuple(moved))


def example(settings: list[str], seed: int = 0, **changes: Any) -> Example:
    values: dict[str, Any] = {
        "jpeg": picture(seed),
        "grid": GRID,
        "key": f"{seed:06d}",
        "question": "What colour is the large shape?",
        "references": ("red",),
        "flows": tuple(flow(setting, seed + place) for place, setting in enumerate(settings)),
    }
    return Example(**{**values, **changes})


def comparison(*results: SettingResult, **changes: Any) -> Comparison:
    """Dense and two others, or `results`, with one example."""
    chosen = results or (result("dense", 0.95, 1.0), result("ficoco-v:64", 0.93, 0.3), result("random:64", 0.9, 0.4))
    best = chosen[min(1, len(chosen) - 1)].setting
    values: dict[str, Any] = {
        "samples": 100,
        "repeats": 3,
        "metric": "exact",
        "model": "llava-hf/llava-1.5-7b-hf",
        "hardware": {"device": "NVIDIA H100"},
        "versions": {"torch": "2.13.0", "commit": "0123456789ab"},
        "recommendation": f"The cheapest setting within 2 points of dense is {best}.",
        "recommended": best,
        "usd_per_hour": 2.5,
        "examples": (example([one.setting for one in chosen]),),
        "notes": ("Made up.",),
    }
    return Comparison(chosen, **{**values, **changes})


def many(count: int = 50, pictures: int = 5) -> Comparison:
    """`count` settings over a handful of pictures."""
    generator = np.random.default_rng(1)
    results = [result("dense", 0.95, 1.0)]
    for number in range(count - 1):
        share = float(generator.uniform(0.15, 0.9))
        loss = float(generator.exponential(0.05)) * (1 - share)
        setting = ("ficoco-v", "ficoco-l", "fastv", "random", "vispruner,filter=max_min")[number % 5]
        name, _, rest = setting.partition(",")
        text = f"{name}:{round(576 * share)}" + (f",{rest}" if rest else "")
        results.append(result(text, 0.95 - loss, share, images_per_second=around(9 / share**0.7, 0.3)))
    names = [one.setting for one in results]
    return comparison(*results, examples=tuple(example(names, seed) for seed in range(pictures)))
