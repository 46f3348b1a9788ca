"""LLaVA with random weights at a published shape: for measuring speed where no checkpoint is at hand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from pipeline.errors import UserError
from reduction.schedule import plan
from reduction.settings import Reduction
from reduction.shapes import NAMED, ModelShape
from reduction.text_shape import TextShape
from reduction.text_tower import TextTower


def shape_config(shape: ModelShape, decoder_layers: int | None = None) -> LlavaConfig:
    """Return the configuration of a LLaVA of this shape, or of one with fewer decoder layers."""
    tower, decoder = shape.vision, shape.decoder
    vision = CLIPVisionConfig(
        hidden_size=tower.width,
        intermediate_size=tower.ffn,
        num_hidden_layers=tower.layers,
        num_attention_heads=tower.heads,
        image_size=tower.image,
        patch_size=tower.patch,
        projection_dim=tower.width,
    )
    text = LlamaConfig(
        vocab_size=decoder.vocab,
        hidden_size=decoder.width,
        intermediate_size=decoder.ffn,
        num_hidden_layers=decoder_layers or decoder.layers,
        num_attention_heads=decoder.heads,
        num_key_value_heads=decoder.kv_heads,
        max_position_embeddings=4096,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=decoder.vocab - 1,
        image_seq_length=tower.patches,
        vision_feature_layer=tower.layers_run - tower.layers - 1,
        vision_feature_select_strategy="full" if tower.keeps_cls else "default",
    )


def check_shape(model: str, layers: int | None, reductions: Iterable[Reduction], text_tower: bool = True) -> None:
    """That a named shape has so many decoder layers, and the reductions fit it; other models show when they are read.

    Args:
        text_tower: there is one for reductions that choose by the question.

    Raises:
        UserError: it has fewer layers, or is no named shape, of which alone a part can be run.
        ReductionError: a reduction does not fit.
    """
    if model not in NAMED:
        if layers is not None:
            raise UserError(f"--layers is for {', '.join(NAMED)}, and {model} runs as it is: leave it out")
        return
    shape = NAMED[model]
    most = shape.decoder.layers
    if layers is not None and not 1 <= layers <= most:
        raise UserError(f"--layers {layers}: {model} has {most} decoder layers, give 1 to {most}")
    decoder = replace(shape.decoder, layers=layers or most)
    shape = replace(shape, decoder=decoder, text=shape.text if text_tower else None)
    for reduction in reductions:
        plan(reduction, shape)


class _Words:
    """Stands for CLIP's tokenizer where the weights are random anyway: a token per word, between the two ends."""

    def __init__(self, vocab: int) -> None:
        self.vocab = vocab

    def __len__(self) -> int:
        return self.vocab

    def __call__(self, texts: list[str], max_length: int, **how: Any) -> dict[str, list[list[int]]]:
        start, end = self.vocab - 2, self.vocab - 1
        return {"input_ids": [[start, *[1 for _ in text.split()][: max_length - 2], end] for text in texts]}


def random_text_tower(shape: TextShape, device: torch.device, dtype: torch.dtype, vocab: int = 49408) -> TextTower:
    """Return a CLIP text tower of this shape with random weights, one token per word."""
    config = CLIPTextConfig(
        vocab_size=vocab,
        hidden_size=shape.width,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=shape.positions,
        projection_dim=shape.projection,
        bos_token_id=vocab - 2,
        eos_token_id=vocab - 1,
        pad_token_id=vocab - 1,
    )
    with torch.device("meta"):
        text: Any = CLIPTextModelWithProjection(config)
        norm, projection = nn.LayerNorm(shape.vision_width), nn.Linear(shape.vision_width, shape.projection, bias=False)
        whole = nn.ModuleDict({"text": text, "norm": norm, "projection": projection}).to(dtype)
    _draw(whole.to_empty(device=device), device)
    return TextTower(text, norm, projection, _Words(vocab), shape, 100.0)


def random_llava(config: LlavaConfig, device: torch.device, dtype: torch.dtype) -> LlavaForConditionalGeneration:
    """Return a model whose weights are allocated once, in their final type and place, and drawn there."""
    with torch.device("meta"):
        model: Any = LlavaForConditionalGeneration(config)
    model = model.to(dtype).to_empty(device=device)
    _draw(model, device)
    # What `to_empty` left undefined besides: rotary frequencies of the decoder.
    llama = model.model.language_model
    llama.rotary_emb = type(llama.rotary_emb)(config=config.text_config).to(device)
    return model.eval()


@torch.no_grad()
def _draw(model: nn.Module, device: torch.device) -> None:
    """Fill weights and position ids that are allocated and nothing more."""
    generator = torch.Generator(device).manual_seed(0)
    for parameter in model.parameters():
        # Norms start at one and the rest small, so that activations stay finite through all layers.
        if parameter.ndim == 1:
            parameter.fill_(1.0)
        else:
            parameter.normal_(0, 0.02, generator=generator)
    for name, buffer in model.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1], device=device).expand_as(buffer))
