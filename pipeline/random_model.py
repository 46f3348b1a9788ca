"""LLaVA with random weights at a published shape: for measuring speed where no checkpoint is at hand."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from reduction.shapes import ModelShape


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


def random_llava(config: LlavaConfig, device: torch.device, dtype: torch.dtype) -> LlavaForConditionalGeneration:
    """Return a model whose weights are allocated once, in their final type and place, and drawn there."""
    with torch.device("meta"):
        model: Any = LlavaForConditionalGeneration(config)
    model = model.to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            # Norms start at one and the rest small, so that activations stay finite through all layers.
            if parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0, 0.02, generator=generator)
        _fill_buffers(model, config, device)
    return model.eval()


def _fill_buffers(model: LlavaForConditionalGeneration, config: LlavaConfig, device: torch.device) -> None:
    """Compute what `to_empty` left undefined: position ids of the tower, rotary frequencies of the decoder."""
    for name, buffer in model.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1], device=device).expand_as(buffer))
    llama = model.model.language_model
    llama.rotary_emb = type(llama.rotary_emb)(config=config.text_config).to(device)
