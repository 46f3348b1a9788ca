"""The sizes of a LLaVA model that decide what it costs: no weights, only what `config.json` says.

The published sizes of LLaVA-1.5 are known by name and need nothing imported; a folder is read with transformers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reduction.errors import ReductionError
from reduction.text_shape import CLIP_L_TEXT, TextShape, read_config


@dataclass(frozen=True, slots=True)
class VisionShape:
    """A ViT as LLaVA uses it: the layers after the feature layer never run."""

    layers: int
    layers_run: int
    """Encoder layers up to the (highest) feature layer: 23 of CLIP ViT-L's 24 at `vision_feature_layer=-2`."""
    width: int
    ffn: int
    heads: int
    patch: int
    """Side of a patch, pixels."""
    image: int
    """Side of the square input image, pixels."""
    channels: int = 3
    has_cls: bool = True
    keeps_cls: bool = False
    """`vision_feature_select_strategy="full"`: the CLS token goes to the decoder with the patches."""

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image // self.patch

    @property
    def patches(self) -> int:
        return self.grid**2

    @property
    def visual_tokens(self) -> int:
        """Tokens that the unreduced tower hands to the projector."""
        return self.patches + int(self.keeps_cls)


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """A LLaMA decoder: gated FFN of three matrices, grouped keys and values, untied or tied head."""

    layers: int
    width: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int


@dataclass(frozen=True, slots=True)
class ModelShape:
    """One LLaVA model: tower, two-layer projector, decoder, and a text tower where one is given beside it."""

    name: str
    vision: VisionShape
    projector_in: int
    """Width of the features: the tower's width times the number of feature layers."""
    decoder: DecoderShape
    text: TextShape | None = None
    """Of CLIP; a LLaVA checkpoint does not carry it."""


_CLIP_L_336 = VisionShape(layers=24, layers_run=23, width=1024, ffn=4096, heads=16, patch=14, image=336)

NAMED: dict[str, ModelShape] = {
    "llava-1.5-7b": ModelShape(
        name="llava-1.5-7b",
        vision=_CLIP_L_336,
        projector_in=1024,
        decoder=DecoderShape(layers=32, width=4096, ffn=11008, heads=32, kv_heads=32, head_dim=128, vocab=32064),
        text=CLIP_L_TEXT,
    ),
    "llava-1.5-13b": ModelShape(
        name="llava-1.5-13b",
        vision=_CLIP_L_336,
        projector_in=1024,
        decoder=DecoderShape(layers=40, width=5120, ffn=13824, heads=40, kv_heads=40, head_dim=128, vocab=32064),
        text=CLIP_L_TEXT,
    ),
}


def _feature_layers(config: Any) -> list[int]:
    layers = config.vision_feature_layer
    return [layers] if isinstance(layers, int) else list(layers)


def _layers_run(feature_layers: list[int], depth: int) -> int:
    if not feature_layers:
        raise ReductionError("vision_feature_layer is an empty list: name the encoder layer to read, such as -2.")
    # hidden_states holds depth + 1 tensors: the embeddings, then one after each layer.
    indices = [layer if layer >= 0 else depth + 1 + layer for layer in feature_layers]
    outside = [layer for layer, index in zip(feature_layers, indices, strict=True) if not 0 <= index <= depth]
    if outside:
        raise ReductionError(
            f"vision_feature_layer {outside[0]} is outside the tower's {depth} layers: correct it in the config."
        )
    return max(indices)


def _vision_shape(config: Any) -> VisionShape:
    tower = config.vision_config
    if tower.model_type not in ("clip_vision_model", "siglip_vision_model"):
        raise ReductionError(
            f"the vision tower is a {tower.model_type!r}: only clip_vision_model and siglip_vision_model are known."
        )
    has_cls = tower.model_type == "clip_vision_model"
    full = config.vision_feature_select_strategy == "full"
    if not has_cls and not full:
        raise ReductionError(
            'the tower has no CLS token, so vision_feature_select_strategy must be "full": '
            f"{config.vision_feature_select_strategy!r} would cut off the first patch."
        )
    return VisionShape(
        layers=tower.num_hidden_layers,
        layers_run=_layers_run(_feature_layers(config), tower.num_hidden_layers),
        width=tower.hidden_size,
        ffn=tower.intermediate_size,
        heads=tower.num_attention_heads,
        patch=tower.patch_size,
        image=tower.image_size,
        channels=tower.num_channels,
        has_cls=has_cls,
        keeps_cls=has_cls and full,
    )


def _decoder_shape(text: Any) -> DecoderShape:
    return DecoderShape(
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        ffn=text.intermediate_size,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads or text.num_attention_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        vocab=text.vocab_size,
    )


def _check_sizes(part: VisionShape | DecoderShape, what: str) -> None:
    for name, value in asdict(part).items():
        least = 0 if name == "layers_run" else 1
        if not isinstance(value, bool) and not (isinstance(value, int) and value >= least):
            raise ReductionError(f"the {what}'s {name} is {value!r} in the config: it must be a whole number above 0.")
    if isinstance(part, VisionShape) and part.patch > part.image:
        raise ReductionError(f"the tower's patches of {part.patch} pixels are larger than its image of {part.image}.")


def from_config(config: Any, name: str = "", text_tower: TextShape | None = None) -> ModelShape:
    """The shape of a `transformers.LlavaConfig` (typed loosely: importing transformers takes seconds), with the text
    tower that stands beside it.

    Raises ReductionError for a tower or decoder whose operations are not the ones counted here.
    """
    if config.model_type != "llava":
        raise ReductionError(f"the model is a {config.model_type!r}, not a llava: give a LLaVA-1.5 style model.")
    text = config.text_config
    if text.model_type != "llama":
        raise ReductionError(f"the decoder is a {text.model_type!r}: only llama decoders are supported.")
    vision, decoder = _vision_shape(config), _decoder_shape(text)
    _check_sizes(vision, "tower")
    _check_sizes(decoder, "decoder")
    return ModelShape(
        name=name or str(getattr(config, "name_or_path", "") or "llava"),
        vision=vision,
        projector_in=vision.width * len(_feature_layers(config)),
        decoder=decoder,
        text=text_tower,
    )


def from_folder(folder: str | Path) -> ModelShape:
    """The shape of a model folder in Hugging Face's format; only its `config.json` is read."""
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise ReductionError(
            f"no model shape at {str(folder)!r}: give one of {', '.join(NAMED)}, or a folder with a config.json."
        )
    return from_config(read_config(str(path), f"cannot read {path / 'config.json'}"), name=path.resolve().name)


def model_shape(name_or_folder: str) -> ModelShape:
    """The shape known by name (`llava-1.5-7b`, `llava-hf/llava-1.5-7b-hf`) or read from a folder."""
    short = name_or_folder.removeprefix("llava-hf/").removesuffix("-hf")
    return NAMED[short] if short in NAMED else from_folder(name_or_folder)
