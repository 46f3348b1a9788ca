"""Analytic FLOPs and KV bytes of one request, from the vector of layer-input lengths. 2 FLOPs per multiply-add.

Two conventions:

- exact: every matrix product, convolution and attention that runs, at the length it runs at, as
  `torch.utils.flop_counter.FlopCounterMode` counts them. Attention is counted in full, as that counter does;
  `causal=True` counts only the pairs the causal mask allows. The head runs on the last position only. Not counted, by
  either: element-wise work, norms, softmax, top-k, gathers, rotary angles.
- LLM-Viewer's (Yuan et al. 2024, arXiv 2402.16363), which the published TFLOPs of token reduction are in: prefill of
  the decoder alone, L * [2n(4d^2 + 3dm) + 4n^2 d] + 2dV, plus its element-wise counts of 5 per softmax entry, 7 per
  norm, 1 per residual and 2 per activation entry (0.05 % of the whole, and what makes the dense 8.45 of LLaVA-1.5-7B
  print as 8.5). Here layer by layer at the length n that enters it. It knows no tower, projector or reduction.

Symbols: n tokens, d width, m FFN width, H heads, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache

from reduction.overhead import image_terms, language_terms, question_terms
from reduction.schedule import Plan
from reduction.settings import Reduction
from reduction.shapes import DecoderShape, ModelShape


@dataclass(frozen=True, slots=True)
class Flops:
    """FLOPs by part. `reduction` is what the reduction itself computes, in the tower and in the decoder."""

    vision: float = 0.0
    projector: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    reduction: float = 0.0

    @property
    def total(self) -> float:
        return self.vision + self.projector + self.prefill + self.decode + self.reduction

    def parts(self) -> dict[str, float]:
        return asdict(self)

    def __add__(self, other: Flops) -> Flops:
        return Flops(**{part: value + getattr(other, part) for part, value in self.parts().items()})

    def shared_by(self, questions: int) -> Flops:
        """Each question's share of work that is done once for `questions` questions."""
        return Flops(**{part: value / questions for part, value in self.parts().items()})


def vision_tower(shape: ModelShape, plan: Plan) -> dict[str, int]:
    """FLOPs of the tower by kind of operation; FFNs run at the length behind the drop that comes before them."""
    vision, cls = shape.vision, int(shape.vision.has_cls)
    d, m = vision.width, vision.ffn
    entering = [length + cls for length in plan.vision_lengths[:-1]]
    leaving = entering if plan.vision_after_mlp else [length + cls for length in plan.vision_lengths[1:]]
    return {
        "convolution": 2 * vision.patches * vision.channels * vision.patch**2 * d,
        "projections": sum(8 * n * d * d for n in entering),
        "attention": sum(4 * n * n * d for n in entering),
        "ffn": sum(4 * n * d * m for n in leaving),
    }


def projector(shape: ModelShape, plan: Plan) -> int:
    """FLOPs of the two linear layers on the visual tokens that leave the tower."""
    width = shape.decoder.width
    return 2 * plan.projector_tokens * (shape.projector_in * width + width * width)


def _decoder_layers(
    decoder: DecoderShape, entering: Sequence[int], leaving: Sequence[int], cached: Sequence[int], causal: bool
) -> dict[str, int]:
    """One pass through the layers: `entering` new tokens each, after `cached` earlier ones in the layer's KV cache."""
    heads_width, kv_width = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    pairs = sum(n * old + (n * (n + 1) // 2 if causal else n * n) for n, old in zip(entering, cached, strict=True))
    return {
        "projections": sum(entering) * 4 * decoder.width * (heads_width + kv_width),
        "attention": 4 * heads_width * pairs,
        "ffn": sum(leaving) * 6 * decoder.width * decoder.ffn,
    }


def head(decoder: DecoderShape) -> int:
    """FLOPs of the language-model head on one position."""
    return 2 * decoder.width * decoder.vocab


def _leaving(plan: Plan, text_tokens: int) -> tuple[int, ...]:
    if plan.decoder_after_mlp:
        return plan.decoder_lengths(text_tokens)
    return (*plan.decoder_lengths(text_tokens)[1:], plan.visual_tokens_left + text_tokens)


def prefill(shape: ModelShape, plan: Plan, text_tokens: int, *, causal: bool = False) -> dict[str, int]:
    """FLOPs by kind of operation of prefilling the whole prompt, and the head on its last position."""
    entering, nothing = plan.decoder_lengths(text_tokens), (0,) * shape.decoder.layers
    layers = _decoder_layers(shape.decoder, entering, _leaving(plan, text_tokens), nothing, causal)
    return {**layers, "head": head(shape.decoder)}


def prefill_prefix(shape: ModelShape, plan: Plan, prefix_tokens: int, *, causal: bool = False) -> dict[str, int]:
    """FLOPs of what an image's questions can share: text before the image and image, in the layers before any drop."""
    first = plan.first_decoder_drop
    entering, leaving = plan.decoder_lengths(prefix_tokens)[:first], _leaving(plan, prefix_tokens)[:first]
    return _decoder_layers(shape.decoder, entering, leaving, (0,) * first, causal)


def prefill_suffix(
    shape: ModelShape, plan: Plan, prefix_tokens: int, suffix_tokens: int, *, causal: bool = False
) -> dict[str, int]:
    """FLOPs of one question on top of `prefill_prefix`, and the head on its last position.

    Its own text in the layers before any drop, its whole prompt in the others.
    """
    first, text = plan.first_decoder_drop, prefix_tokens + suffix_tokens
    own = (suffix_tokens,) * first
    cached = plan.decoder_lengths(prefix_tokens)[:first] + (0,) * (shape.decoder.layers - first)
    entering, leaving = plan.decoder_lengths(text)[first:], _leaving(plan, text)[first:]
    layers = _decoder_layers(shape.decoder, (*own, *entering), (*own, *leaving), cached, causal)
    return {**layers, "head": head(shape.decoder)}


def decode(shape: ModelShape, plan: Plan, text_tokens: int, new_tokens: int) -> dict[str, int]:
    """FLOPs by kind of operation of the steps after prefill: new_tokens - 1, as prefill gives the first token.

    A step's query sees the layer's cached prompt, the tokens generated before it, and itself.
    """
    decoder, steps = shape.decoder, max(0, new_tokens - 1)
    heads_width, kv_width = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    pairs = steps * sum(plan.decoder_lengths(text_tokens)) + decoder.layers * steps * (steps + 1) // 2
    return {
        "projections": steps * decoder.layers * 4 * decoder.width * (heads_width + kv_width),
        "attention": 4 * heads_width * pairs,
        "ffn": steps * decoder.layers * 6 * decoder.width * decoder.ffn,
        "head": steps * head(decoder),
    }


@lru_cache(maxsize=256)
def count_image(shape: ModelShape, plan: Plan, reduction: Reduction) -> Flops:
    """What an image costs once, however many questions it has: tower, projector and the reduction in the tower."""
    return Flops(
        vision=float(sum(vision_tower(shape, plan).values())),
        projector=float(projector(shape, plan)),
        reduction=float(sum(image_terms(shape, plan, reduction).values())),
    )


@lru_cache(maxsize=65536)
def count_text(
    shape: ModelShape,
    plan: Plan,
    prefix_tokens: int,
    text_tokens: int,
    new_tokens: int,
    reduction: Reduction,
    *,
    causal: bool = False,
    question_tokens: int | None = None,
) -> Flops:
    """What one question costs: prefill, decode, the reduction in the decoder, and choosing by the question.

    `question_tokens` is what CLIP's text tower reads; None: as many as the decoder reads after the image, up to the
    tower's length. It reads them in full even where `causal` counts the decoder's pairs.
    """
    if not 0 <= prefix_tokens <= text_tokens:
        raise ValueError(f"prefix_tokens {prefix_tokens} must lie between 0 and text_tokens {text_tokens}.")
    after_image = text_tokens - prefix_tokens
    language = language_terms(shape, plan, prefix_tokens, after_image, reduction)
    choosing = question_terms(shape, plan, reduction, after_image if question_tokens is None else question_tokens)
    return Flops(
        prefill=float(sum(prefill(shape, plan, text_tokens, causal=causal).values())),
        decode=float(sum(decode(shape, plan, text_tokens, new_tokens).values())),
        reduction=float(sum(language.values()) + sum(choosing.values())),
    )


@lru_cache(maxsize=65536)
def count_shared_text(
    shape: ModelShape,
    plan: Plan,
    prefix_tokens: int,
    text_tokens: int,
    new_tokens: int,
    reduction: Reduction,
    questions: int,
    *,
    question_tokens: int | None = None,
) -> Flops:
    """What one of an image's `questions` costs in the decoder where they share its prefix, with its part of that."""
    own = prefill_suffix(shape, plan, prefix_tokens, text_tokens - prefix_tokens)
    shared = prefill_prefix(shape, plan, prefix_tokens)
    words = prefix_tokens, text_tokens, new_tokens
    alone = count_text(shape, plan, *words, reduction, question_tokens=question_tokens)
    return replace(alone, prefill=sum(own.values()) + sum(shared.values()) / questions)


def count(
    shape: ModelShape,
    plan: Plan,
    prefix_tokens: int,
    text_tokens: int,
    new_tokens: int,
    reduction: Reduction,
    *,
    causal: bool = False,
    question_tokens: int | None = None,
) -> Flops:
    """Exact FLOPs of one request with its own image.

    `text_tokens` is all text of the prompt, `prefix_tokens` those of them that stand before the image, `new_tokens`
    the tokens generated. Raises ValueError when the prefix is longer than the text.
    """
    return count_image(shape, plan, reduction) + count_text(
        shape,
        plan,
        prefix_tokens,
        text_tokens,
        new_tokens,
        reduction,
        causal=causal,
        question_tokens=question_tokens,
    )


def _llm_viewer_pass(decoder: DecoderShape, entering: Sequence[int], cached: Sequence[int]) -> float:
    """One pass of `entering` new tokens per layer behind `cached` ones, and the head on the last position."""
    products = sum(_decoder_layers(decoder, entering, entering, cached, causal=False).values())
    softmax = sum(5 * decoder.heads * n * (n + old) for n, old in zip(entering, cached, strict=True))
    norms, residuals, activation = 2 * 7, 2 * 1, 2
    others = (norms + residuals + activation) * sum(entering) * decoder.width
    return float(products + softmax + others + head(decoder))


def llm_viewer(shape: ModelShape, plan: Plan, text_tokens: int, new_tokens: int) -> Flops:
    """FLOPs as LLM-Viewer counts them, at the length that enters each layer: the decoder's alone.

    A decoding step is a pass of one token at the length it sees.
    """
    decoder, lengths = shape.decoder, plan.decoder_lengths(text_tokens)
    one, steps = (1,) * decoder.layers, max(0, new_tokens - 1)
    first = _llm_viewer_pass(decoder, one, lengths) if steps else 0.0
    # What a step costs grows by the same amount with every token before it.
    growth = float(sum(4 * decoder.heads * decoder.head_dim + 5 * decoder.heads for _ in one))
    return Flops(
        prefill=_llm_viewer_pass(decoder, lengths, (0,) * decoder.layers),
        decode=steps * first + growth * (steps * (steps - 1) // 2),
    )


def llm_viewer_tflops(shape: ModelShape, plan: Plan, text_tokens: int) -> float:
    """Prefill TFLOPs (10^12) as LLM-Viewer counts them, which the published settings are labelled with."""
    return llm_viewer(shape, plan, text_tokens, 0).prefill / 1e12


def kv_bytes(shape: ModelShape, plan: Plan, text_tokens: int, new_tokens: int = 0, dtype_bytes: int = 2) -> int:
    """Bytes of keys and values cached for one request; the last new token is never fed back, so never cached."""
    decoder = shape.decoder
    tokens = sum(plan.decoder_lengths(text_tokens)) + decoder.layers * max(0, new_tokens - 1)
    return 2 * decoder.kv_heads * decoder.head_dim * dtype_bytes * tokens
