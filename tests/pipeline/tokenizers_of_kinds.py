"""Small tokenizers of the kinds that LLaVA checkpoints carry, trained on a few sentences."""

from __future__ import annotations

import json

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import decoders as decoding
from transformers import PreTrainedTokenizerFast

TEXT = [
    "A chat between a curious user and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    "USER: \nWhat is in the image? ASSISTANT: Describe the image. How many red shapes are there?",
    "Answer the question using a single word or phrase.",
]
SPECIAL = ["<unk>", "<s>", "</s>"]


def _finished(tokenizer: Tokenizer, bos: bool) -> PreTrainedTokenizerFast:
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    tokenizer.add_special_tokens([AddedToken("<image>", normalized=False), AddedToken("<pad>", normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def llama_tokenizer(legacy: bool = True) -> PreTrainedTokenizerFast:
    """LLaMA's BPE. `legacy` puts a space before every stretch of text, otherwise only before the first."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoding.Sequence([decoding.Replace("▁", " "), decoding.ByteFallback(), decoding.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=[*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))],
        max_token_length=12,
        show_progress=False,
    )
    tokenizer.train_from_iterator([word for line in TEXT for word in line.split()], trainer)
    trained = json.loads(tokenizer.to_str())  # LLaMA's bytes are ordinary entries of the vocabulary, not special ones
    trained["added_tokens"] = [token for token in trained["added_tokens"] if token["content"] in SPECIAL]
    return _finished(Tokenizer.from_str(json.dumps(trained)), bos=True)


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """GPT-2's kind: words split first, no sequence start."""
    tokenizer = Tokenizer(models.BPE())
    words = Regex(r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoding.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return _finished(tokenizer, bos=False)
