"""Loading CLIP's text tower from a Hugging Face folder or hub id: safetensors only, never code from it.

Of a full CLIP checkpoint the text tower and the two projections are read, and nothing else of its vision model.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from reduction.errors import ReductionError, first_line
from reduction.text_shape import clip_config, from_clip_config
from reduction.text_tower import TextTower

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
READ = ("text_model.", "text_projection.", "visual_projection.", "vision_model.post_layernorm.", "logit_scale")
FILES = ["*.json", "*.txt", "*.safetensors"]
LARGEST_SCALE = 100.0
"""What CLIP's training ends at: it holds the scale to that. Taken where the checkpoint does not say."""


def load_text_tower(name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> TextTower:
    """Load a text tower and its tokenizer onto a device.

    Raises:
        ReductionError: it is not there, not CLIP's, or has no safetensors weights, or not all of them.
    """
    from transformers import AutoTokenizer, CLIPTextModelWithProjection

    config = clip_config(name)
    shape = from_clip_config(config, name)
    config.text_config.projection_dim = config.projection_dim
    vision = config.vision_config
    try:
        weights = _weights(_folder(name))
        scale = weights.pop("logit_scale", None)
        with torch.device("meta"):
            text: Any = CLIPTextModelWithProjection(config.text_config)
            norm = nn.LayerNorm(vision.hidden_size, eps=vision.layer_norm_eps)
            projection = nn.Linear(vision.hidden_size, config.projection_dim, bias=False)
            whole = nn.ModuleDict({"text": text, "norm": norm, "projection": projection})
        # The type first, so that memory is taken once.
        whole.to(dtype).to_empty(device=device)
        _fill(whole, {_place(key): weight for key, weight in weights.items()})
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ReductionError(f"the text tower in {name} cannot be loaded: {first_line(error)}") from None
    found = LARGEST_SCALE if scale is None else math.exp(float(scale))
    return TextTower(text, norm, projection, tokenizer, shape, found)


def _folder(name: str) -> Path:
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=FILES))


def _weights(folder: Path) -> dict[str, Tensor]:
    index = folder / INDEX
    names = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {WEIGHTS}
    found: dict[str, Tensor] = {}
    for path in (folder / name for name in sorted(names)):
        if not path.is_file():
            raise ValueError(f"it has no {path.name}; convert the checkpoint, other formats are not loaded")
        with safe_open(path, framework="pt") as file:
            found |= {key: file.get_tensor(key) for key in file.keys() if key.startswith(READ)}  # noqa: SIM118
    return found


def _place(key: str) -> str:
    """Where a checkpoint's weight stands among the modules loaded."""
    if key.startswith("text_"):
        return f"text.{key}"
    return key.replace("vision_model.post_layernorm", "norm").replace("visual_projection", "projection")


def _fill(modules: nn.Module, weights: dict[str, Tensor]) -> None:
    wanted = modules.state_dict()
    if absent := sorted(wanted.keys() - weights.keys()):
        raise ValueError(f"{len(absent)} of its weights are not in its files, {absent[0]} among them; copy it again")
    for key, parameter in wanted.items():
        if weights[key].shape != parameter.shape:
            raise ValueError(
                f"{key} has the shape {tuple(weights[key].shape)}, and its configuration says {tuple(parameter.shape)}"
            )
        parameter.copy_(weights[key])
    for buffer_name, buffer in modules.named_buffers():
        if buffer_name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
