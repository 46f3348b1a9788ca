"""What can be known to be wrong with a model and its reduction before any work starts."""

from __future__ import annotations

from pipeline.checkpoint import load_config
from pipeline.images import ImageTransform
from pipeline.model_digest import model_digest
from reduction.schedule import plan
from reduction.settings import Reduction
from reduction.shapes import ModelShape, from_config
from reduction.text_shape import text_shape


def check_model(name: str, reduction: Reduction, text_tower: str | None = None) -> str:
    """The model's digest, once its configuration, image processor and the reduction have been seen to fit.

    Raises:
        UserError: no such model, not a LLaVA, no safetensors weights, no image processor.
        ReductionError: a decoder or tower that is not supported, more tokens to keep than there are, or no text tower
            that fits where the reduction needs one.
    """
    digest, shape = checked_shape(name, text_tower)
    plan(reduction, shape)
    return digest


def checked_shape(name: str, text_tower: str | None = None) -> tuple[str, ModelShape]:
    """The model's digest and shape, with the text tower's; raises as `check_model` does."""
    config = load_config(name)
    digest = model_digest(name)
    shape = from_config(config, name, text_shape(text_tower) if text_tower else None)
    ImageTransform.from_folder(name)
    return digest, shape


def text_tower_digest(text_tower: str | None, reduction: Reduction) -> str | None:
    """The identity of the text tower's weights, None where no answer depends on them.

    Raises UserError where it has no safetensors weights.
    """
    return model_digest(text_tower) if text_tower and reduction.by_question else None
