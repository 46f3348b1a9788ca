"""Accuracy of the demo model under reduction settings, by kind of question, beside an oracle and random choice.

    python -m infra.demo.evaluate --model infra/demo/model --scenes 400 dense oracle:64 random:64 ficoco-v:64

`oracle:N` and `random:N` choose N tokens after the encoder: those under the objects and a random rest, or any. They
tell whether the model can judge a method at all: where the oracle is far from dense, it cannot.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infra.demo.make_corpus import FIRST
from infra.demo.questions import Asked, ask
from infra.demo.scenes import EVALUATION, Scene, encode_jpeg, sample_scene
from infra.demo.training_data import patch_objects
from pipeline.checkpoint import Checkpoint, load_checkpoint
from pipeline.decoder import Decoder
from pipeline.engine import Engine, Request
from pipeline.generation import GenerationSettings
from pipeline.images import ImageTransform, decode_image
from pipeline.prompts import PromptFormat
from reduction.console import run_command
from reduction.flops import count, llm_viewer_tflops
from reduction.settings import Reduction

CHOSEN_AFTER_ENCODER = ("oracle", "random")


@dataclass(frozen=True)
class Exam:
    """Scenes with their pictures, ground truth and questions."""

    scenes: list[Scene]
    pictures: Tensor
    objects: np.ndarray
    """Object under each patch, 0 for none: (scenes, patches)."""
    asked: list[list[Asked]]

    @classmethod
    def draw(cls, count: int, transform: ImageTransform) -> Exam:
        scenes = [sample_scene(EVALUATION, FIRST + index) for index in range(count)]
        pictures = np.stack([decode_image(encode_jpeg(scene), transform) for scene in scenes])
        objects = np.stack([patch_objects(scene) for scene in scenes])
        asked = [ask(s, np.random.default_rng([EVALUATION, FIRST + i, 1])) for i, s in enumerate(scenes)]
        return cls(scenes, torch.from_numpy(pictures), objects, asked)


class ChoosingEngine(Engine):
    """Keeps, after the dense encoder, the tokens it is told to."""

    chosen: Tensor

    def keep_after_encoder(self, count: int) -> None:
        layers = len(self.plan.decoder_drops)
        lengths = (count,) * layers
        self.plan = replace(self.plan, decoder_visual_lengths=lengths, visual_tokens=count, visual_tokens_left=count)
        self.decoder = Decoder(self.model, self.plan, self.reduction, self.shape.vision.visual_tokens)

    def encode(self, images: Tensor, asked: Any = None) -> tuple[Tensor, Tensor]:
        features, _ = super().encode(images)
        index = self.chosen.unsqueeze(-1).expand(-1, -1, features.shape[-1])
        return features.gather(1, index), self.chosen


def choose(rule: str, objects: np.ndarray, count: int, seed: int) -> Tensor:
    """Return ascending patch indices (scenes, count): a random choice, objects first for the oracle."""
    noise = np.random.default_rng(seed).random(objects.shape)
    if rule == "oracle":
        noise = noise - (objects > 0)
    return torch.from_numpy(np.sort(np.argsort(noise, 1)[:, :count], 1))


def examine(checkpoint: Checkpoint, folder: str, exam: Exam, setting: str, images: int = 24) -> dict[str, Any]:
    """Return accuracy by kind, kept object patches, FLOPs and seconds of one setting."""
    transform = ImageTransform.from_folder(folder)
    rule, _, rest = setting.partition(":")
    special = rule in CHOSEN_AFTER_ENCODER
    reduction = Reduction.parse("dense" if special else setting)
    engine = ChoosingEngine if special else Engine
    made = engine(
        checkpoint.model,
        reduction,
        mean=transform.mean,
        std=transform.std,
        stop_tokens=checkpoint.stop_tokens,
        settings=GenerationSettings(max_new_tokens=12),
    )
    everything = choose(rule, exam.objects, int(rest), 0) if special else None
    if isinstance(made, ChoosingEngine):
        made.keep_after_encoder(int(rest))
    prompts = PromptFormat(checkpoint.tokenizer, checkpoint.model.config.image_token_id)
    right: dict[str, list[int]] = defaultdict(list)
    kept_share: list[float] = []
    began = time.perf_counter()
    for start in range(0, len(exam.scenes), images):
        rows = range(start, min(start + images, len(exam.scenes)))
        if isinstance(made, ChoosingEngine) and everything is not None:
            made.chosen = everything[rows.start : rows.stop]
        for kind, good in _answers(made, prompts, checkpoint.tokenizer, exam, rows):
            right[kind].append(good)
        kept = made.encode(exam.pictures[rows.start : rows.stop])[1].numpy()
        kept_share += _object_share(exam.objects[rows.start : rows.stop], kept)
    seconds = time.perf_counter() - began
    flops = count(made.shape, made.plan, 3, 20, 3, reduction)
    return {
        "setting": setting,
        "accuracy": float(np.mean([g for goods in right.values() for g in goods])),
        "by_kind": {kind: float(np.mean(goods)) for kind, goods in right.items()},
        "object_patches_kept": float(np.mean(kept_share)),
        "gflops": flops.total / 1e9,
        "llm_viewer_gflops": 1e3 * llm_viewer_tflops(made.shape, made.plan, 20),
        "seconds": round(seconds, 2),
    }


def _answers(
    engine: Engine, prompts: PromptFormat, tokenizer: Any, exam: Exam, rows: range
) -> Iterator[tuple[str, int]]:
    pairs = [(row - rows.start, one) for row in rows for one in exam.asked[row]]
    encoded = [prompts.encode(one.question) for _, one in pairs]
    requests = [Request(row, prompt.suffix_ids) for (row, _), prompt in zip(pairs, encoded, strict=True)]
    answers = engine.answer(exam.pictures[rows.start : rows.stop], encoded[0].prefix_ids, requests)
    for (_, one), answer in zip(pairs, answers, strict=True):
        yield one.kind, int(tokenizer.decode(answer.tokens).strip() == one.answer)


def _object_share(objects: np.ndarray, kept: np.ndarray) -> list[float]:
    on = objects > 0
    left = np.take_along_axis(on, kept, 1).sum(1)
    return list(left / np.maximum(on.sum(1), 1))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    kinds = list(rows[0]["by_kind"])
    head = ["setting", "all", *kinds, "object patches", "GFLOPs"]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for row in rows:
        shares = [row["accuracy"], *(row["by_kind"][kind] for kind in kinds), row["object_patches_kept"]]
        cells = [f"`{row['setting']}`", *(f"{share:.3f}" for share in shares), f"{row['gflops']:.2f}"]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="+")
    parser.add_argument("--model", default=str(Path(__file__).parent / "model"))
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    checkpoint = load_checkpoint(args.model, "cpu", "float32")
    exam = Exam.draw(args.scenes, ImageTransform.from_folder(args.model))
    rows = []
    for setting in args.settings:
        rows.append(examine(checkpoint, args.model, exam, setting))
        print(f"{setting}: {rows[-1]['accuracy']:.3f} in {rows[-1]['seconds']} s", flush=True)
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps(rows[-1] if len(rows) == 1 else {"settings": rows}))


if __name__ == "__main__":
    sys.exit(run_command(main))
