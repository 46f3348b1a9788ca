"""Loading a LLaVA checkpoint: a hub id or a local folder, safetensors only, never code from it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoTokenizer, GenerationConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.utils import logging

from pipeline.errors import UserError
from pipeline.machine_speed import bfloat16_gain
from reduction.errors import ReductionError, first_line
from reduction.text_shape import read_config

SMALL_WIDTH = 1024
"""A decoder narrower than this runs in float32 on a CPU: its layers are too small for bfloat16 units to pay."""


LEAST_GAIN = 1.25
SAFETENSORS_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Checkpoint:
    model: Any
    tokenizer: Any
    stop_tokens: frozenset[int]


def load_checkpoint(name: str, device: str = "auto", dtype: str = "auto") -> Checkpoint:
    """Load model and tokenizer of a Hugging Face hub id or folder onto a device.

    Weights that have their type already, or go to a GPU, are mapped, so that replicas on one machine share them; others
    are read and converted one by one. Either way the process holds hardly more than the weights at any moment.

    Raises:
        UserError: it is not there, not a LLaVA, has no safetensors weights, or not all of them; no such device here.
    """
    target = choose_device(device)
    config: Any = load_config(name)
    loader: Any = LlavaForConditionalGeneration  # its types say nothing of `output_loading_info`
    try:
        chosen = choose_dtype(dtype, target, config.text_config.hidden_size)
        stays = target.type == "cpu"
        unread = _to_convert(name, chosen) if stays else None
        with only_downloads_shown():
            model, loaded = loader.from_pretrained(
                None if unread else name,
                config=config,
                state_dict=unread,
                dtype=chosen if stays else "auto",
                use_safetensors=True,
                attn_implementation="sdpa",
                output_loading_info=True,
            )
        if absent := sorted(loaded["missing_keys"]):
            raise ValueError(
                f"{len(absent)} of its weights are not in its files, {absent[0]} among them; copy it again"
            )
        if not stays:
            _move(model, target, chosen)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"the model in {name} cannot be loaded: {first_line(error)}") from None
    return Checkpoint(model.eval(), tokenizer, stop_tokens(name, config))


@contextmanager
def only_downloads_shown() -> Iterator[None]:
    """No progress bars of transformers, as "Loading weights", for a while; the hub's, of downloads, stay."""
    before = logging.set_tqdm_hook(lambda factory, given, named: logging.EmptyTqdm(*given, **named))
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)


def _move(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Bring a model to a device, weight by weight in their new type; buffers, as rotary frequencies, keep theirs."""
    moved: dict[nn.Parameter, nn.Parameter] = {}  # tied weights stay one
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if weight not in moved:
                moved[weight] = nn.Parameter(weight.detach().to(device, dtype), requires_grad=weight.requires_grad)
            setattr(module, name, moved[weight])
    model.to(device)


def _to_convert(name: str, dtype: torch.dtype) -> dict[str, Any] | None:
    """Weights that wait to be read, by name; None where all have the type already.

    Reading instead of mapping: the pages of a mapped file stay in memory beside what was made of them.
    """
    folder = Path(name)
    if not folder.is_dir():
        folder = Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    weights: dict[str, Any] = {}
    for path in _weight_files(folder):
        try:
            file: Any = safe_open(path, framework="pt", backend="pread")
        except TypeError:  # safetensors before 0.8 can only map
            return None
        except SafetensorError as error:
            raise ValueError(f"{path.name} is no safetensors file, or a damaged one ({error})") from None
        weights |= {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118, it is no dict
    same = all(weight.get_dtype() == SAFETENSORS_NAMES.get(dtype) for weight in weights.values())
    return None if same else weights


def _weight_files(folder: Path) -> Iterable[Path]:
    index = folder / INDEX
    names = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {WEIGHTS}
    return (folder / name for name in sorted(names))


def load_config(name: str) -> LlavaConfig:
    """Read the configuration only.

    Raises:
        UserError: there is none, or it is not a LLaVA-1.5's.
    """
    try:
        config = read_config(name, f"no model at {name}, give a Hugging Face hub id or a folder with its config.json")
    except ReductionError as error:
        raise UserError(str(error)) from None
    if not isinstance(config, LlavaConfig):
        raise UserError(f"the model in {name} is a {config.model_type}, not a llava: give a LLaVA-1.5 checkpoint")
    return config


def choose_device(device: str) -> torch.device:
    """`auto` is the GPU where there is one.

    Raises:
        UserError: a GPU is asked for, and torch can use none here.
    """
    has_gpu = torch.cuda.is_available()
    if device == "auto":
        device = "cuda" if has_gpu else "cpu"
    chosen = torch.device(device)
    if chosen.type == "cuda" and not has_gpu:
        raise UserError(f"--device {device}: this machine has no GPU that torch can use; choose --device cpu or auto")
    return chosen


def choose_dtype(dtype: str, device: torch.device, width: int) -> torch.dtype:
    """`auto` is bfloat16 where the device computes in it and the decoder's `width` makes it pay, else float32.

    On a CPU with units for bfloat16 a measurement must agree. It only has to show that the units work (with them the
    gain is several times `LEAST_GAIN`, without it is below 1), so equal machines come to the same type.
    """
    if dtype != "auto":
        chosen: torch.dtype = getattr(torch, dtype)
        return chosen
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    features = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    fast = any(features.get(name) for name in ("amx_bf16", "avx512_bf16")) or _has_bf16_units()
    pays = fast and width >= SMALL_WIDTH and bfloat16_gain(width) >= LEAST_GAIN
    return torch.bfloat16 if pays else torch.float32


def _has_bf16_units() -> bool:
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, probe)() for probe in probes if hasattr(torch.cpu, probe))


def stop_tokens(name: str, config: Any) -> frozenset[int]:
    """The tokens that end an answer, by the generation configuration where there is one."""
    try:
        ends = GenerationConfig.from_pretrained(name).eos_token_id
    except OSError:
        ends = None
    ends = ends if ends is not None else config.text_config.eos_token_id
    return frozenset(ends if isinstance(ends, list) else [ends] if ends is not None else [])
