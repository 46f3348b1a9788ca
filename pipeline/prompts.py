"""A question -> the token ids before and after the image, in LLaVA-1.5's conversation format."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError

VICUNA_SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""What LLaVA-1.5 was trained and evaluated with (conversation "vicuna_v1")."""
LLAVA_TEMPLATE = "USER: <image>\n{question} ASSISTANT:"
"""Fixed: with a checkpoint's own chat template the same weights would be asked differently, by who packaged them."""
_IMAGE = "<image>"


class PromptError(ValueError):
    """The question cannot be put to the model; the message says why."""


@dataclass(frozen=True, slots=True)
class Prompt:
    prefix_ids: tuple[int, ...]
    """Before the image, the same for every question: its keys and values can be shared."""
    suffix_ids: tuple[int, ...]
    """After the image."""

    @property
    def text_tokens(self) -> int:
        return len(self.prefix_ids) + len(self.suffix_ids)


class PromptFormat:
    """Puts questions into a template around one image slot.

    The ids are those the tokenizer gives for the whole text with one image token in it. A special token that a
    question spells out (``<image>``, ``</s>``) stays text: a space after its first character keeps it from being one.
    """

    def __init__(
        self,
        tokenizer: Any,
        image_token_id: int,
        system_prompt: str | None = None,
        template: str = LLAVA_TEMPLATE,
        max_text_tokens: int | None = None,
    ) -> None:
        """Args:
            tokenizer: a Hugging Face tokenizer that has the image token.
            image_token_id: the id that stands for the image in the model's configuration.
            system_prompt: stands before the template, a space between; None for none.
            template: holds ``<image>`` once and, after it, ``{question}`` once.
            max_text_tokens: tokens that a prompt may have besides the image's: the context less the visual tokens
                less the new tokens. None for no limit.

        Raises:
            UserError: the template lacks a slot, the tokenizer lacks the image token, or no question could fit.
        """
        if not re.fullmatch(r"[^{}]*<image>[^{}]*\{question\}[^{}]*", template) or template.count(_IMAGE) != 1:
            raise UserError(f"the prompt template {template!r} needs <image> once and {{question}} once after it")
        self._tokenizer = tokenizer
        self._image_token_id = image_token_id
        image_token = tokenizer.convert_ids_to_tokens(image_token_id)
        if not isinstance(image_token, str) or self._ids(image_token, special=False) != [image_token_id]:
            raise UserError(f"the model's image token id {image_token_id} is not a token of its tokenizer")
        self._limit = max_text_tokens
        before, after = template.split(_IMAGE)
        start = f"{system_prompt} {before}" if system_prompt else before
        special = {str(token): int(id_) for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
        special |= {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens}
        special[image_token] = image_token_id
        self._special = re.compile("|".join(map(re.escape, sorted(filter(None, special), key=len, reverse=True))))
        # A tokenizer gives the unknown token for characters it lacks: that is still text.
        self._special_ids = frozenset(special.values()) - {tokenizer.unk_token_id}
        self._longest_token = max(map(len, tokenizer.get_vocab()))
        self._start, self._after = self._plain(start) + image_token, after
        self._prefix, empty = self._split(self._ids(self._start + after.replace("{question}", "")))
        self._closing_ids = _special_at_end(empty, self._special_ids)
        self._require_room(len(self._prefix) + len(empty))

    def encode(self, question: str) -> Prompt:
        """The prompt for a question. The cost is linear in its length, and none where it is far too long.

        Raises:
            PromptError: the prompt is longer than ``max_text_tokens``, or the question cannot be kept from becoming
                a special token.
        """
        if self._limit is not None and len(question) > self._limit * self._longest_token:
            raise PromptError(f"the question has {len(question)} characters; at most {self._limit} tokens fit")
        text = self._start + self._after.replace("{question}", self._plain(question))
        prefix, suffix = self._split(self._ids(text))
        body = suffix[: len(suffix) - len(self._closing_ids)]
        if prefix != self._prefix or not self._special_ids.isdisjoint(body):
            raise PromptError("the question has characters that the tokenizer turns into a special token")
        prompt = Prompt(self._prefix, suffix)  # not a copy for every question
        if self._limit is not None and prompt.text_tokens > self._limit:
            raise PromptError(f"the prompt has {prompt.text_tokens} text tokens; at most {self._limit} fit the context")
        return prompt

    def _require_room(self, fixed: int) -> None:
        if self._limit is not None and fixed >= self._limit:
            raise UserError(
                f"the context leaves {self._limit} tokens for text and the prompt format alone takes {fixed}: "
                "ask for fewer new tokens or give a shorter system prompt"
            )

    def _plain(self, text: str) -> str:
        return self._special.sub(lambda match: f"{match.group()[0]} {match.group()[1:]}", text)

    def _ids(self, text: str, special: bool = True) -> list[int]:
        # verbose=False: no warning for a text longer than the tokenizer's idea of the context
        return self._tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]

    def _split(self, ids: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        slot = ids.index(self._image_token_id)
        return tuple(ids[:slot]), tuple(ids[slot + 1 :])


def _special_at_end(ids: Iterable[int], special: frozenset[int]) -> tuple[int, ...]:
    """Special tokens that the tokenizer itself puts after a text, such as an end of sequence."""
    ids = tuple(ids)
    count = 0
    while count < len(ids) and ids[-1 - count] in special:
        count += 1
    return ids[len(ids) - count :]
