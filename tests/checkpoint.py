"""A whole checkpoint folder of a tiny random LLaVA, as `from_pretrained` reads one; made in a second, offline."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models
from tokenizers.processors import TemplateProcessing
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.tiny import BOS_TOKEN, EOS_TOKEN, IMAGE_TOKEN, PAD_TOKEN, tiny_llava

UNKNOWN_TOKEN = 3
LETTERS = "\n" + "".join(chr(code) for code in range(32, 127) if chr(code) not in "`~")
"""One token per character; the two left out are unknown to the model."""
PATCH = 14


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Characters as tokens, with the special tokens of `tests.tiny`'s models."""
    special = {"<pad>": PAD_TOKEN, "<s>": BOS_TOKEN, "</s>": EOS_TOKEN, "<unk>": UNKNOWN_TOKEN, "<image>": IMAGE_TOKEN}
    vocabulary = special | {letter: 4 + index for index, letter in enumerate(LETTERS)}
    letters = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    letters.decoder = decoders.Fuse()
    letters.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS_TOKEN)])
    return PreTrainedTokenizerFast(
        tokenizer_object=letters,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        clean_up_tokenization_spaces=False,
    )


def save_checkpoint(folder: Path, seed: int = 0, grid: int = 4) -> Path:
    """Write config, safetensors, tokenizer and processor of a model with `grid` x `grid` patches; returns `folder`."""
    size = grid * PATCH
    model = tiny_llava(seed, grid=grid)
    model.save_pretrained(folder)
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size}),
        tokenizer=tiny_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
    ).save_pretrained(folder)
    return folder
