"""What can be known to be wrong with a model and its reduction before any work starts."""

from __future__ import annotations

from pipeline.checkpoint import load_config
from pipeline.images import ImageTransform
from pipeline.model_digest import model_digest
from reduction.schedule import plan
from reduction.settings import Reduction
from reduction.shapes import ModelShape, from_config


def check_model(name: str, reduction: Reduction) -> str:
    """The model's digest, once its configuration, image processor and the reduction have been seen to fit.

    Raises:
        UserError: no such model, not a LLaVA, no safetensors weights, no image processor.
        ReductionError: a decoder or tower that is not supported, or more tokens to keep than there are.
    """
    digest, shape = checked_shape(name)
    plan(reduction, shape)
    return digest


def checked_shape(name: str) -> tuple[str, ModelShape]:
    """The model's digest and shape; raises as `check_model` does."""
    config = load_config(name)
    digest = model_digest(name)
    shape = from_config(config, name)
    ImageTransform.from_folder(name)
    return digest, shape
