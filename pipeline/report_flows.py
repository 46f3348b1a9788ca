"""What a setting did to one picture, from the engine's own pass over it, and pictures as examples of a report."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from pipeline.comparison import Example, Flow
from pipeline.engine import Engine, Request
from pipeline.prompts import Prompt
from reduction.trace import Trace, observe

LEAST = 1e-6
"""A dropped patch of which less than this is left went nowhere."""


def answer_and_flow(
    engine: Engine, picture: npt.NDArray[np.uint8], prompt: Prompt, tokenizer: Any, question: str | None = None
) -> Flow:
    """Answer one question about one picture, (side, side, 3) of uint8, and trace what became of its patches."""
    images = torch.from_numpy(picture).unsqueeze(0)
    with observe(engine.model) as trace:
        (generation,) = engine.answer(images, prompt.prefix_ids, [Request(0, prompt.suffix_ids, question=question)])
    answer = str(tokenizer.decode(generation.tokens, skip_special_tokens=True)).strip()
    kept, moved = patch_moves(trace)
    return Flow(str(engine.reduction), answer, kept, moved)


def patch_moves(trace: Trace, row: int = 0) -> tuple[tuple[int, ...], tuple[tuple[int, int, float], ...]]:
    """Cells kept, ascending, and for each dropped cell the cell that most of it went to, with its share.

    Shares are of what is left of the dropped patch; cells whose content is nowhere, or most of it in CLS, do not move.
    """
    cls, patches = trace.cls, trace.shape.vision.patches
    if not trace.steps:
        return tuple(range(patches)), ()
    kept = [token - cls for token in trace.steps[-1].kept[row].tolist()]
    flows = trace.flows()[row, cls:]
    total, (most, place) = flows.sum(1).tolist(), flows.max(1)
    stays = set(kept)
    moved = [
        (cell, kept[target], weight / total[cell])
        for cell, (weight, target) in enumerate(zip(most.tolist(), place.tolist(), strict=True))
        if cell not in stays and total[cell] > LEAST and kept[target] >= 0
    ]
    return tuple(sorted(cell for cell in kept if 0 <= cell < patches)), tuple(moved)


def make_example(
    picture: npt.NDArray[np.uint8],
    grid: int,
    key: str,
    question: str,
    references: Sequence[str],
    flows: Sequence[Flow],
    side: int = 336,
) -> Example:
    """A picture as the model saw it, (rows, columns, 3) of uint8, as a JPEG of `side` pixels at most."""
    image = Image.fromarray(picture)
    image.thumbnail((side, side))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=80, optimize=True)
    return Example(data.getvalue(), grid, key, question, tuple(references), tuple(flows))
