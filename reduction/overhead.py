"""FLOPs of the reduction itself: the matrix products of filter, correlate and compress, in the tower and the decoder.

Counted as in `reduction.flops`: matrix products only; means, softmax, top-k, gathers and element-wise work are not.
The products follow the linear form (FICOCO.md, section 7) as `vision` and `language` compute it: a mean over keys is
one product with the mean key, a correlation needs only the dropped rows, the update is one weight matrix.
Symbols: n visual tokens entering the layer, r dropped, k = n - r kept, w width of all heads, d hidden width.
"""

from __future__ import annotations

from collections import Counter

from reduction.schedule import Plan
from reduction.settings import Reduction
from reduction.shapes import DecoderShape, ModelShape


def _vision_filter(n: int, keys: int, w: int, has_cls: bool, reduction: Reduction) -> int:
    if reduction.stages("vision")[0] != "ficoco":
        return 0
    visual = 2 * n * keys * w if reduction.patch_scores == "softmax" else 2 * n * w
    if not has_cls or reduction.cls_scores == "keys":
        return visual
    return visual + 2 * (n if reduction.cls_scores == "raw" else keys) * w


def vision_terms(shape: ModelShape, plan: Plan, reduction: Reduction) -> dict[str, int]:
    """FLOPs of each stage over all reducing encoder layers; none where no layer drops."""
    terms: Counter[str] = Counter()
    w, cls = shape.vision.width, int(shape.vision.has_cls)
    for n, r in zip(plan.vision_lengths, plan.vision_drops, strict=False):
        if not r:
            continue
        k = n - r
        terms["filter"] += _vision_filter(n, n + cls, w, shape.vision.has_cls, reduction)
        if reduction.stages("vision")[2] != "prune":
            # Weights of the softmax need the whole row; raw scores only the kept columns.
            terms["correlate"] += 2 * r * (n + cls if reduction.patch_scores == "softmax" else k) * w
            terms["compress"] += 2 * r * k * w
    return dict(terms)


def _language_weights(reduction: Reduction) -> tuple[bool, set[str]]:
    """Whether correlate goes through the text, and the softmax weights in use, each computed once per layer."""
    filter_stage, correlate_stage, compress_stage = reduction.stages("language")
    scores, correlates = filter_stage == "ficoco", compress_stage != "prune"
    via_text = correlates and correlate_stage == "attention_and_text" and reduction.gamma != 1
    weights: set[str] = set()
    if reduction.patch_scores == "softmax" and (scores or correlates):
        weights.add("among visual")
    if reduction.text_scores == "softmax":
        received = "visual to all" if reduction.text_direction == "vision_to_text" else "text to all"
        weights |= {received} if scores else set()
        weights |= {received, "text to all"} if via_text else set()
    return via_text, weights


def _language_layer(decoder: DecoderShape, n: int, r: int, prefix: int, m: int, reduction: Reduction) -> dict[str, int]:
    """One reducing decoder layer; `prefix` and `m` text tokens before and after the image."""
    filter_stage, _, compress_stage = reduction.stages("language")
    via_text, weights = _language_weights(reduction)
    kw, hw, k = decoder.kv_heads * decoder.head_dim, decoder.heads * decoder.head_dim, n - r
    raw_visual, raw_text = reduction.patch_scores == "raw", reduction.text_scores == "raw"
    terms = {
        # Heads that share keys are added up first, so raw scores are products at the keys' width.
        "filter": 2 * n * kw * (raw_visual + raw_text) if filter_stage == "ficoco" else 0,
        "weights": sum(2 * (m if name == "text to all" else n) * (prefix + n + m) * hw for name in weights),
    }
    if compress_stage != "prune":
        terms["correlate"] = 2 * r * k * kw * raw_visual
        terms["compress"] = 2 * r * k * decoder.width
    if via_text:
        products = 2 if reduction.text_direction == "vision_to_text" else 1
        terms["via_text"] = 2 * r * m * k + products * 2 * m * n * kw * raw_text
    return terms


def language_terms(
    shape: ModelShape, plan: Plan, prefix_tokens: int, text_tokens: int, reduction: Reduction
) -> dict[str, int]:
    """FLOPs of each stage over all reducing decoder layers; none where no layer drops.

    `prefix_tokens` stand before the image, `text_tokens` after it, none of them padding: masked means over a padded
    batch are products too, 2 FLOPs per word and visual token at most.
    """
    terms: Counter[str] = Counter()
    for n, r in zip(plan.decoder_visual_lengths, plan.decoder_drops, strict=True):
        if r:
            terms.update(_language_layer(shape.decoder, n, r, prefix_tokens, text_tokens, reduction))
    return dict(terms)
