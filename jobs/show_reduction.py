"""Draw which tokens of an image a reduction keeps, and where the content of the others goes.

    python jobs/show_reduction.py --image FILE --question TEXT --model DIR --reduction ficoco-v:64 --output out.png

Left the image as the model sees it, right the same with dropped patches dimmed, and arrows from some of them to where
most of their content went. The answers of the dense and the reduced model stand above. The last line on stdout is one
JSON object. Exit status 2: the command cannot be carried out.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.checkpoint import load_checkpoint
from pipeline.command import exit_status
from pipeline.comparison import Flow
from pipeline.config import DEVICES
from pipeline.engine import Engine
from pipeline.errors import UserError
from pipeline.generation import GenerationSettings
from pipeline.images import ImageError, ImageTransform, decode_image
from pipeline.option_parser import OptionParser, typed
from pipeline.options import count
from pipeline.prompts import VICUNA_SYSTEM_PROMPT, PromptError, PromptFormat
from pipeline.report_drawing import SIDE, draw
from pipeline.report_flows import answer_and_flow
from pipeline.storage import open_output
from pipeline.text_towers import text_tower_for
from reduction.console import run_command
from reduction.settings import Reduction


def main(arguments: Sequence[str] | None = None) -> int:
    return exit_status("show_reduction", lambda: _show(arguments))


def _show(arguments: Sequence[str] | None) -> int:
    print(json.dumps(show(_parser().parse_args(arguments))))
    return 0


def show(options: argparse.Namespace) -> dict[str, Any]:
    """Answer with and without the reduction, draw, and write the picture.

    Raises:
        UserError: an image, model, question or output that cannot be used.
        ReductionError: an unknown reduction, or one that does not fit the model.
    """
    reduction, output = Reduction.parse(options.reduction), Path(options.output)
    if output.suffix.lower() != ".png":
        raise UserError(f"--output {output}: the drawing is a PNG, so give a name that ends in .png")
    data = _read(Path(options.image))
    transform = ImageTransform.from_folder(options.model, options.image_aspect)
    picture = _decode(data, transform, options.image)
    dense, reduced, grid = _flows(options, reduction, transform, picture)
    larger = max(1, -(-SIDE // (2 * transform.size)))
    fine = replace(transform, size=larger * transform.size, shortest_edge=larger * transform.edge)
    title = [
        options.question,
        f"dense: {dense.answer or '(no answer)'}",
        f"{reduced.setting}: {reduced.answer or '(no answer)'}   ({len(reduced.kept)} of {grid**2} patches left)",
    ]
    _write(draw(_decode(data, fine, options.image), grid, reduced, title, options.arrows), output)
    return {
        "image": options.image,
        "question": options.question,
        "reduction": reduced.setting,
        "cells": grid**2,
        "kept": len(reduced.kept),
        "kept_cells": reduced.kept,
        "moved": len(reduced.moved),
        "answers": {"dense": dense.answer, "reduced": reduced.answer},
        "output": str(output),
    }


def _flows(
    options: argparse.Namespace, reduction: Reduction, transform: ImageTransform, picture: npt.NDArray[np.uint8]
) -> tuple[Flow, Flow, int]:
    """What dense and the reduction make of the picture, and the patches along its side."""
    checkpoint = load_checkpoint(options.model, options.device)
    tower = text_tower_for([reduction], options.text_tower, checkpoint.model)
    engines = [
        Engine(
            checkpoint.model,
            setting,
            mean=transform.mean,
            std=transform.std,
            stop_tokens=checkpoint.stop_tokens,
            settings=GenerationSettings(max_new_tokens=options.max_new_tokens),
            text_tower=tower,
        )
        for setting in (Reduction(), reduction)
    ]
    vision, config = engines[0].shape.vision, checkpoint.model.config
    room = config.text_config.max_position_embeddings - options.max_new_tokens - vision.visual_tokens
    system = VICUNA_SYSTEM_PROMPT if options.system_prompt == "vicuna" else options.system_prompt
    try:
        prompt = PromptFormat(checkpoint.tokenizer, config.image_token_id, system, max_text_tokens=room).encode(
            options.question
        )
    except PromptError as error:
        raise UserError(f"--question cannot be asked: {error}") from None
    dense, reduced = (
        answer_and_flow(engine, picture, prompt, checkpoint.tokenizer, options.question) for engine in engines
    )
    return dense, reduced, vision.grid


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read --image {path}: {error.strerror}; give a JPEG, PNG or WebP file") from None


def _decode(data: bytes, transform: ImageTransform, name: str) -> npt.NDArray[np.uint8]:
    try:
        return decode_image(data, transform)
    except ImageError as error:
        raise UserError(f"cannot use --image {name}: {error}") from None


def _write(drawing: Image.Image, path: Path) -> None:
    """Whole or not at all."""
    data = io.BytesIO()
    drawing.save(data, "PNG", optimize=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write --output {path}: {error.strerror}; choose another place") from None
    open_output(str(path.parent)).put_atomic(path.name, data.getvalue())


def _parser() -> OptionParser:
    parser = OptionParser(prog="show_reduction", description="Draw what a reduction keeps of one image.")
    parser.add_argument("--image", required=True, help="JPEG, PNG or WebP file")
    parser.add_argument("--question", required=True)
    parser.add_argument("--model", required=True, help="Hugging Face hub id, or a local folder of that format")
    parser.add_argument("--reduction", required=True, help="as in ficoco-v:64,epsilon=0.99")
    parser.add_argument("--text-tower", help="CLIP model with the text tower that cdpruner and trim choose by")
    parser.add_argument("--output", required=True, metavar="FILE.png")
    parser.add_argument(
        "--arrows", type=typed(count(0)), default=24, help="most arrows drawn, the strongest (default: 24)"
    )
    parser.add_argument(
        "--max-new-tokens", type=typed(count(1)), default=64, help="most tokens of an answer (default: 64)"
    )
    parser.add_argument("--system-prompt", help="text before the conversation; vicuna stands for LLaVA-1.5's own")
    parser.choose("--image-aspect", ("pad", "crop"), default="pad")
    parser.choose("--device", DEVICES, default="auto")
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
