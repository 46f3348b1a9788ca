"""Write the demo corpus: drawn scenes with their questions, as WebDataset shards.

    python -m infra.demo.make_corpus --output corpus --shards 4 --samples 32

The scenes are the evaluation stream's: none of them was trained on. The same arguments write the same samples.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import webdataset

from infra.demo.questions import ask, caption
from infra.demo.scenes import EVALUATION, encode_jpeg, sample_scene
from reduction.console import run_command

FIRST = 10_000
"""Scenes before this one steered the training; the corpus starts behind them."""


def sample(index: int, most: int | None = None) -> dict[str, bytes | str]:
    """Return scene `index` as WebDataset members: the picture, its questions with answers, and a caption.

    `most` limits the questions; from scene to scene other kinds are asked then.
    """
    scene = sample_scene(EVALUATION, FIRST + index)
    key = f"{index:06d}"
    questions = [
        {"id": f"{key}-{one.kind}", "question": one.question, "answers": [one.answer], "kind": one.kind}
        for one in ask(scene, np.random.default_rng([EVALUATION, FIRST + index, 1]))
    ]
    if most is not None:
        first = index % len(questions)
        questions = [*questions, *questions][first : first + most]
    about = {"width": scene.width, "height": scene.height, "texture": scene.texture, "objects": len(scene.objects)}
    return {
        "__key__": key,
        "jpg": encode_jpeg(scene),
        "json": json.dumps({"questions": questions, **about}).encode(),
        "txt": caption(scene),
    }


def write(folder: Path, shards: int, samples: int, most: int | None = None) -> list[Path]:
    """Write `shards` tar files of `samples` scenes each, with at most `most` questions a scene; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:05d}.tar" for number in range(shards)]
    for number, path in enumerate(paths):
        # A fixed time in the headers: the same arguments give the same bytes.
        with webdataset.TarWriter(str(path), mtime=0.0) as writer:
            for index in range(number * samples, (number + 1) * samples):
                writer.write(sample(index, most))
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--samples", type=int, default=32, help="scenes per shard")
    parser.add_argument("--questions", type=int, help="at most so many per scene")
    args = parser.parse_args()
    paths = write(args.output, args.shards, args.samples, args.questions)
    size = sum(path.stat().st_size for path in paths)
    print(json.dumps({"shards": len(paths), "samples": args.shards * args.samples, "bytes": size}))


if __name__ == "__main__":
    sys.exit(run_command(main))
