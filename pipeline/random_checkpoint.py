"""A checkpoint folder with random weights at a published shape, for measuring what loads one."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from pipeline.checkpoint import only_downloads_shown
from pipeline.random_model import random_llava, shape_config
from reduction.shapes import NAMED

WORDS = Path(__file__).resolve().parent.parent / "infra" / "demo" / "model"
"""Its tokenizer is used: which words there are matters little where the answers mean nothing."""


def checkpoint_folder(model: str, layers: int | None, folder: Path) -> str:
    """Return `model`, or where it names a shape, `folder` with such a checkpoint in bfloat16.

    Args:
        layers: decoder layers of a named shape; None: all.
    """
    if model not in NAMED:
        return model
    shape = NAMED[model]
    tokenizer = AutoTokenizer.from_pretrained(WORDS)
    config = shape_config(shape, layers)
    config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    with only_downloads_shown():
        random_llava(config, torch.device("cpu"), torch.bfloat16).save_pretrained(folder)
    side = shape.vision.image
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}),
        tokenizer=tokenizer,
        patch_size=shape.vision.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
    ).save_pretrained(folder)
    return str(folder)
