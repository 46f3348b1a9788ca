"""A whole checkpoint folder of a tiny random CLIP, whose text tower fits `tests.tiny`'s models; made in a second."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models
from tokenizers.processors import TemplateProcessing
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from reduction.installation import ask, install
from reduction.schedule import Plan
from reduction.text_checkpoint import load_text_tower
from reduction.text_tower import TextTower
from tests.checkpoint import LETTERS

START_TOKEN, END_TOKEN = len(LETTERS) + 1, len(LETTERS) + 2
POSITIONS = 24


def letters_tokenizer() -> PreTrainedTokenizerFast:
    """Characters as tokens, between a start and an end token."""
    vocabulary = {"<unk>": 0} | {letter: 1 + index for index, letter in enumerate(LETTERS)}
    vocabulary |= {"<start>": START_TOKEN, "<end>": END_TOKEN}
    letters = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    letters.decoder = decoders.Fuse()
    letters.post_processor = TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", START_TOKEN), ("<end>", END_TOKEN)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=letters, unk_token="<unk>", bos_token="<start>", eos_token="<end>", pad_token="<end>"
    )


def tiny_clip(seed: int = 0, **vision: Any) -> CLIPModel:
    """A random CLIP in evaluation mode, its vision tower as wide as that of `tests.tiny`'s models."""
    config = CLIPConfig(
        text_config={
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "max_position_embeddings": POSITIONS,
            "vocab_size": END_TOKEN + 1,
            "bos_token_id": START_TOKEN,
            "eos_token_id": END_TOKEN,
            "pad_token_id": END_TOKEN,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 56,
            "patch_size": 14,
            **vision,
        },
        projection_dim=20,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(config)
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=1.4 / parameter[0].numel() ** 0.5)
            elif parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def save_clip(folder: Path, seed: int = 0, **vision: Any) -> Path:
    """Write config, safetensors and tokenizer; returns `folder`."""
    tiny_clip(seed, **vision).save_pretrained(folder)
    letters_tokenizer().save_pretrained(folder)
    return folder


def tiny_text_tower(folder: Path, dtype: torch.dtype = torch.float32, **sizes: Any) -> TextTower:
    """A text tower as it is loaded from a folder that is made for it."""
    return load_text_tower(str(save_clip(folder, **sizes)), dtype=dtype)


@lru_cache
def text_tower(dtype: torch.dtype = torch.float32) -> TextTower:
    """The tiny text tower, loaded once for all tests."""
    with TemporaryDirectory() as folder:
        return tiny_text_tower(Path(folder), dtype)


QUESTIONS = [
    "what is it?",
    "how many dogs are there in front of the house",
    "red or blue",
    "",
    "is it a cat?",
    "who",
    "a b",
]


@contextmanager
def installed(model: Any, reduction: str, questions: Sequence[str] = QUESTIONS[:2]) -> Iterator[Plan]:
    """`install` with the tiny text tower, asked the questions of one batch."""
    with install(model, reduction, text_tower=text_tower(model.dtype)) as chosen:
        if chosen.reduces:
            ask(model, questions)
        yield chosen
