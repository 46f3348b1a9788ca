"""The sizes of a CLIP text tower that decide what it costs and which LLaVA it fits: only what `config.json` says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reduction.errors import ReductionError, first_line


@dataclass(frozen=True, slots=True)
class TextShape:
    """A CLIP text tower, and the projections by which texts and patches meet."""

    layers: int
    width: int
    ffn: int
    heads: int
    positions: int
    """Most tokens of a text; longer ones are cut."""
    projection: int
    """Width of the space where texts and patches meet."""
    vision_width: int
    """Width of the patches that the visual projection takes."""


CLIP_L_TEXT = TextShape(layers=12, width=768, ffn=3072, heads=12, positions=77, projection=768, vision_width=1024)
"""Of CLIP ViT-L/14, whose vision tower LLaVA-1.5 has."""


def read_config(name: str, failing: str) -> Any:
    """The configuration of a folder or hub id; ReductionError, beginning with `failing`, where it cannot be read."""
    # These take seconds to import: only where a configuration is read.
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (ValueError, OSError, KeyError, TypeError, StrictDataclassError) as error:
        raise ReductionError(f"{failing}: {first_line(error)}") from error


def text_shape(name: str) -> TextShape:
    """The shape of the text tower of a hub id or folder; only its configuration is read.

    Raises ReductionError where there is none, or it is not CLIP's.
    """
    return from_clip_config(clip_config(name), name)


def clip_config(name: str) -> Any:
    """The configuration of a CLIP model; raises as `text_shape` does."""
    failing = f"no text tower at {name}, give the hub id of a CLIP model or a folder with its config.json"
    return read_config(name, failing)


def from_clip_config(config: Any, name: str) -> TextShape:
    """The shape of the text tower that a `transformers.CLIPConfig` describes.

    Raises ReductionError for any other configuration.
    """
    if config.model_type != "clip":
        raise ReductionError(
            f"the text tower in {name} is a {config.model_type!r}, not a clip: give a CLIP checkpoint."
        )
    text = config.text_config
    return TextShape(
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        ffn=text.intermediate_size,
        heads=text.num_attention_heads,
        positions=text.max_position_embeddings,
        projection=config.projection_dim,
        vision_width=config.vision_config.hidden_size,
    )
