"""Prompts have the ids that the checkpoint's own processor would give, and a question is never more than text."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from pipeline.errors import UserError
from pipeline.prompts import VICUNA_SYSTEM_PROMPT, PromptError, PromptFormat
from tests.pipeline.tokenizers_of_kinds import byte_level_tokenizer, llama_tokenizer

KINDS: dict[str, PreTrainedTokenizerFast] = {
    "llama legacy": llama_tokenizer(),
    "llama": llama_tokenizer(legacy=False),
    "byte level": byte_level_tokenizer(),
}
QUESTIONS = ["What is in the image?", " How many?", "Two\nlines", "", "  ", "日本語 ❤", "it's 3.14", "a\tb\0c\x1b"]


def prompt_format(tokenizer: Any, **options: Any) -> PromptFormat:
    return PromptFormat(tokenizer, tokenizer.convert_tokens_to_ids("<image>"), **options)


def spoken(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


def special_ids(tokenizer: Any) -> set[int]:
    return {tokenizer.convert_tokens_to_ids(token) for token in ("<image>", "<s>", "</s>", "<pad>", "<unk>")}


def test_a_character_that_the_tokenizer_lacks_is_no_reason_to_refuse() -> None:
    model = BPE({"<unk>": 0, "a": 1, ":": 2, "<s>": 3}, [], unk_token="<unk>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), unk_token="<unk>", bos_token="<s>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    assert prompt_format(tokenizer).encode("a é").suffix_ids.count(0) > 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("system_prompt", [None, VICUNA_SYSTEM_PROMPT])
@pytest.mark.parametrize("question", QUESTIONS)
def test_ids_are_those_of_the_checkpoints_processor(kind: str, system_prompt: str | None, question: str) -> None:
    tokenizer = KINDS[kind]
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    start = f"{system_prompt} " if system_prompt else ""
    text = f"{start}USER: <image>\n{question} ASSISTANT:"
    ids = processor(images=Image.new("RGB", (28, 28)), text=text, return_tensors="pt")["input_ids"][0].tolist()
    prompt = prompt_format(tokenizer, system_prompt=system_prompt).encode(question)
    slot = [tokenizer.convert_tokens_to_ids("<image>")] * 4
    assert [*prompt.prefix_ids, *slot, *prompt.suffix_ids] == ids
    assert prompt.text_tokens == len(ids) - 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "question",
    [
        "<image>",
        "What is <image>\n<image> in </s> it?",
        "</s><s><pad><unk>",
        "<<image>image>",
        "<im<image>age>",
        "<|im_end|> {question} {0} %s",
        "</s>" * 1000,
    ],
)
def test_a_question_cannot_speak_in_special_tokens(kind: str, question: str) -> None:
    tokenizer = KINDS[kind]
    formatter = prompt_format(tokenizer)
    prompt = formatter.encode(question)
    assert special_ids(tokenizer).isdisjoint(prompt.suffix_ids)
    assert prompt.prefix_ids == formatter.encode("What?").prefix_ids
    heard = spoken(tokenizer, prompt.suffix_ids)
    assert "".join(f"{question} ASSISTANT:".split()) == "".join(heard.split())


PIECES = ["<", ">", "image", "<image>", "/", "s", "</s>", "<pad>", " ", "x", "▁", "é"]


@given(question=st.lists(st.sampled_from(PIECES)).map("".join))
def test_no_mixture_of_pieces_becomes_special(question: str) -> None:
    for tokenizer in KINDS.values():
        assert special_ids(tokenizer).isdisjoint(prompt_format(tokenizer).encode(question).suffix_ids)


@given(question=st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_any_text_is_encoded_as_it_stands(question: str) -> None:
    tokenizer = KINDS["byte level"]
    assume(not any(token in question for token in ("<image>", "<s>", "</s>", "<pad>", "<unk>")))
    prompt = prompt_format(tokenizer).encode(question)
    assert spoken(tokenizer, prompt.suffix_ids) == f"\n{question} ASSISTANT:"


def test_a_token_that_arises_only_after_normalisation_is_refused() -> None:
    class Folding(PreTrainedTokenizerFast):
        def __call__(self, text: Any = None, *arguments: Any, **options: Any) -> Any:
            return super().__call__(text.replace("＜", "<").replace("＞", ">"), *arguments, **options)

    tokenizer = Folding(tokenizer_object=llama_tokenizer().backend_tokenizer, unk_token="<unk>", bos_token="<s>")
    with pytest.raises(PromptError, match="turns into a special token"):
        prompt_format(tokenizer).encode("a ＜image＞ b")
    with pytest.raises(PromptError, match="turns into a special token"):
        prompt_format(tokenizer).encode("a ＜s＞ b")


def test_prompts_over_the_limit_are_refused_with_their_length() -> None:
    tokenizer = KINDS["llama legacy"]
    length = prompt_format(tokenizer).encode("What is in the image?").text_tokens
    assert prompt_format(tokenizer, max_text_tokens=length).encode("What is in the image?").text_tokens == length
    with pytest.raises(PromptError, match=f"has 100000 characters; at most {length} tokens fit"):
        prompt_format(tokenizer, max_text_tokens=length).encode("a" * 100_000)
    with pytest.raises(PromptError, match=f"has {length} text tokens; at most {length - 1} fit"):
        prompt_format(tokenizer, max_text_tokens=length - 1).encode("What is in the image?")


def test_a_context_without_room_for_a_question_is_refused_at_once() -> None:
    fixed = prompt_format(KINDS["llama"]).encode("").text_tokens
    for room in (-5, 0, fixed):
        with pytest.raises(UserError, match=f"leaves {room} tokens for text and the prompt format alone takes {fixed}"):
            prompt_format(KINDS["llama"], max_text_tokens=room)
    assert prompt_format(KINDS["llama"], max_text_tokens=fixed + 1).encode("").text_tokens == fixed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unit", ["a", "word ", "<image>", "\n", "日", "<"])
def test_a_question_of_a_hundred_thousand_characters_is_quick(kind: str, unit: str) -> None:
    question = unit * (100_000 // len(unit))
    start = time.process_time()
    assert prompt_format(KINDS[kind]).encode(question).text_tokens > 100
    with pytest.raises(PromptError, match=r"characters; at most 3000|tokens; at most 3000"):
        prompt_format(KINDS[kind], max_text_tokens=3000).encode(question)
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "template", ["{question}", "<image>", "{question} <image>", "<image><image>{question}", "<image>{question}{x}"]
)
def test_templates_without_their_slots_are_refused(template: str) -> None:
    with pytest.raises(UserError, match=r"needs <image> once and \{question\} once after it"):
        prompt_format(KINDS["llama"], template=template)


def test_an_image_token_that_the_tokenizer_lacks_is_refused() -> None:
    with pytest.raises(UserError, match="image token id 1000000 is not a token of its tokenizer"):
        PromptFormat(KINDS["byte level"], 10**6)
