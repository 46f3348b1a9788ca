"""Tiny random LLaVA models, built from configurations: no download, no tokenizer, milliseconds to run."""

from __future__ import annotations

from typing import Any, Literal

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedConfig,
    SiglipVisionConfig,
)

IMAGE_TOKEN = 98
PAD_TOKEN = 0
BOS_TOKEN = 1
EOS_TOKEN = 2
VOCAB = 99


def tiny_config(
    *,
    grid: int = 4,
    vision_layers: int = 6,
    decoder_layers: int = 5,
    heads: int = 4,
    kv_heads: int = 2,
    feature_layer: int | list[int] = -2,
    strategy: Literal["default", "full"] = "default",
    tower: str = "clip",
    **extra: Any,
) -> LlavaConfig:
    """A LLaVA with `grid` x `grid` patches; `kv_heads` below `heads` gives grouped keys and values."""
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": vision_layers,
        "num_attention_heads": 4,
        "image_size": grid * 14,
        "patch_size": 14,
    }
    vision: PreTrainedConfig = CLIPVisionConfig(**sizes) if tower == "clip" else SiglipVisionConfig(**sizes)
    text = LlamaConfig(
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=decoder_layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=VOCAB,
        max_position_embeddings=1024,
        pad_token_id=PAD_TOKEN,
        bos_token_id=BOS_TOKEN,
        eos_token_id=EOS_TOKEN,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        image_seq_length=grid * grid + (strategy == "full" and tower == "clip"),
        vision_feature_layer=feature_layer,
        vision_feature_select_strategy=strategy,
        **extra,
    )


def tiny_llava(seed: int = 0, *, dtype: torch.dtype = torch.float32, **sizes: Any) -> LlavaForConditionalGeneration:
    """A random model in evaluation mode, with weights large enough that attention is far from uniform.

    The same seed and sizes (see `tiny_config`) give the same weights. The global random state is left alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(tiny_config(**sizes))
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=1.4 / parameter[0].numel() ** 0.5)
            elif parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    # An embedding is looked up, not multiplied: its entries have the scale of the features themselves.
    embeddings = model.model.language_model.embed_tokens.weight
    torch.nn.init.normal_(embeddings, std=1.0, generator=torch.Generator().manual_seed(seed))
    model.generation_config.pad_token_id = PAD_TOKEN
    model.generation_config.bos_token_id = BOS_TOKEN
    model.generation_config.eos_token_id = EOS_TOKEN
    torch.nn.Module.to(model, dtype=dtype)
    return model.eval()


def tiny_images(batch: int, *, seed: int = 0, grid: int = 4, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normalised random images (batch, 3, 14 grid, 14 grid)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, grid * 14, grid * 14, generator=generator, dtype=torch.float64).to(dtype)


def tiny_prompts(
    prefix: list[int], suffixes: list[list[int]], *, visual: int = 16, side: str = "left"
) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` as a processor makes them: prefix, placeholders, suffix, padded on one side."""
    rows = [[*prefix, *[IMAGE_TOKEN] * visual, *suffix] for suffix in suffixes]
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), PAD_TOKEN)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for index, row in enumerate(rows):
        span = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        ids[index, span] = torch.tensor(row)
        mask[index, span] = 1
    return {"input_ids": ids, "attention_mask": mask}
