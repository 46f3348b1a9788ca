"""The text tower's files: configuration, tokenizer and weights, as in a CLIP checkpoint without its vision encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import CLIPConfig, PreTrainedTokenizerFast

from infra.demo.model_files import VOCABULARY, llava_config

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
BOS_ID, EOS_ID = VOCABULARY - 2, VOCABULARY - 1
"""The last two ids, as in CLIP: pooling at the EOS and, as older code does it, at the highest id are then the same."""
LONGEST = 77
PROJECTION = 64


def clip_config() -> CLIPConfig:
    """Return the configuration: a text tower of 2 layers and width 128, beside the demo model's own vision tower."""
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": LONGEST,
        "projection_dim": PROJECTION,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": EOS_ID,
    }
    llava: Any = llava_config()
    return CLIPConfig(text_config=text, vision_config=llava.vision_config.to_dict(), projection_dim=PROJECTION)


def build_text_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a lower-case byte-level BPE that ends every text, also one that it cuts at 77 tokens, with its EOS."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=BOS_ID, initial_alphabet=alphabet, show_progress=False)
    )
    # Fewer texts may need fewer tokens; the ids of BOS and EOS stay what the configuration says.
    bpe.add_tokens([f"<|unused{index}|>" for index in range(BOS_ID - bpe.get_vocab_size())])
    bpe.add_special_tokens([BOS, EOS])
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(BOS, BOS_ID), (EOS, EOS_ID)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        model_max_length=LONGEST,
        clean_up_tokenization_spaces=False,
    )


def save_text_tower(folder: Path, weights: dict[str, Tensor], tokenizer: PreTrainedTokenizerFast) -> None:
    """Write a folder that `CLIPTextModelWithProjection` and `AutoTokenizer` load; weights are float16 there."""
    folder.mkdir(parents=True, exist_ok=True)
    config = clip_config()
    config.architectures = ["CLIPModel"]
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    halved = {name: tensor.detach().half().contiguous() for name, tensor in weights.items()}
    save_file(halved, folder / "model.safetensors", metadata={"format": "pt"})
