"""FLOPs of the reduction itself: the matrix products of filter, correlate and compress, in the tower and the decoder.

Counted as in `reduction.flops`: matrix products only; means, softmax, top-k, gathers and element-wise work are not.
The products follow the linear form (FICOCO.md, section 7) as `vision` and `language` compute it: a mean over keys is
one product with the mean key, a correlation needs only the dropped rows, the update is one weight matrix. A CPU leaves
out of that update what takes in nothing; it is counted all the same.
Symbols: n visual tokens entering the layer, r dropped, k = n - r kept, w width of all heads, d hidden width.
"""

from __future__ import annotations

from collections import Counter

from reduction.methods import tokens_dropped
from reduction.schedule import Plan
from reduction.settings import Reduction
from reduction.shapes import DecoderShape, ModelShape, VisionShape
from reduction.stage_costs import Sizes, shared_terms
from reduction.text_shape import TextShape


def _vision_filter(n: int, vision: VisionShape, reduction: Reduction) -> int:
    w, keys = vision.width, n + vision.has_cls
    visual = 2 * n * keys * w if reduction.patch_scores == "softmax" else 2 * n * w
    if not vision.has_cls or reduction.cls_scores == "keys":
        return visual
    return visual + (2 * n * w if reduction.cls_scores == "raw" else _cls_weights(keys, vision))


def _cls_weights(keys: int, vision: VisionShape) -> int:
    """The weights that CLS pays each key: all keys with the block-diagonal matrix of its heads."""
    return 2 * keys * vision.width * vision.heads if vision.has_cls else 0


def vision_terms(shape: ModelShape, plan: Plan, reduction: Reduction) -> dict[str, int]:
    """FLOPs of each stage over all reducing encoder layers; none where no layer drops."""
    terms: Counter[str] = Counter()
    vision, cls = shape.vision, int(shape.vision.has_cls)
    for n, r in zip(plan.vision_lengths, plan.vision_drops, strict=False):
        if not r:
            continue
        stages, w = reduction.stages("vision"), vision.width
        # Importance is what CLS pays; without CLS it is element-wise.
        importance, one_head = _cls_weights(n + cls, vision), 2 * (n + cls) * w * cls
        sizes = Sizes(n, tokens_dropped(stages[2], r), cls, w, w // vision.heads, importance, one_head)
        terms.update(shared_terms(stages, sizes))
        if stages[0] == "ficoco":
            terms["filter"] += _vision_filter(n, vision, reduction)
        if stages[1] == "attention" and stages[2] != "prune":
            terms["correlate"] += 2 * r * (n + cls) * w
    return dict(terms)


def projector_terms(shape: ModelShape, plan: Plan, reduction: Reduction) -> dict[str, int]:
    """FLOPs of each stage at the projector's output; none where nothing is dropped there."""
    if not plan.projector_drop:
        return {}
    if plan.by_question:
        return _asked_image(shape, plan, reduction)
    return _projector_stages(shape, plan, reduction)


def _projector_stages(shape: ModelShape, plan: Plan, reduction: Reduction) -> dict[str, int]:
    stages, width = reduction.stages("projector"), shape.decoder.width
    s = tokens_dropped(stages[2], plan.projector_drop)
    return shared_terms(stages, Sizes(plan.projector_tokens, s, 0, width, width, 0))


def _asked_image(shape: ModelShape, plan: Plan, reduction: Reduction) -> dict[str, int]:
    """What questions about an image share: its patches in CLIP's common space, and their likeness."""
    assert shape.text is not None  # the plan says so
    n, filter_ = plan.projector_tokens, reduction.stages("projector")[0]
    likeness = 2 * n * n * shape.decoder.width if filter_ == "conditional_dpp" else 0
    return {"patches": 2 * n * shape.vision.width * shape.text.projection, "likeness": likeness}


def text_tower(shape: TextShape, tokens: int) -> dict[str, int]:
    """FLOPs of CLIP's text tower on one question, by kind of operation; only its end is projected."""
    d, layers = shape.width, shape.layers
    return {
        "projections": layers * 8 * tokens * d * d,
        "attention": layers * 4 * tokens * tokens * d,
        "ffn": layers * 4 * tokens * d * shape.ffn,
        "text projection": 2 * d * shape.projection,
    }


def question_terms(shape: ModelShape, plan: Plan, reduction: Reduction, tokens: int) -> dict[str, int]:
    """FLOPs of choosing by one question of `tokens`, cut to the text tower's length; none where the plan does not."""
    if not plan.by_question or shape.text is None:
        return {}
    terms = Counter(_projector_stages(shape, plan, reduction))
    terms["relevance"] += 2 * plan.projector_tokens * shape.text.projection
    terms["text tower"] += sum(text_tower(shape.text, min(tokens, shape.text.positions)).values())
    return dict(terms)


def image_terms(shape: ModelShape, plan: Plan, reduction: Reduction) -> dict[str, int]:
    """FLOPs of each stage in the tower and at the projector's output, done once for an image."""
    return dict(Counter(vision_terms(shape, plan, reduction)) + Counter(projector_terms(shape, plan, reduction)))


def _asks_raters(reduction: Reduction) -> bool:
    """Whether the decoder's stages look at what the raters among the words say."""
    filter_, correlate, compress = reduction.stages("language")
    return filter_ == "raters" or (correlate == "clusters" and compress != "prune")


def _language_weights(reduction: Reduction) -> tuple[bool, set[str]]:
    """Whether correlate goes through the text, and the softmax weights in use, each computed once per layer."""
    filter_stage, correlate_stage, compress_stage = reduction.stages("language")
    scores = filter_stage == "ficoco"
    correlates = compress_stage != "prune" and correlate_stage.startswith("attention")
    via_text = correlates and correlate_stage.endswith("text") and reduction.gamma != 1
    weights: set[str] = {"text to all", "visual to text"} if _asks_raters(reduction) else set()
    if reduction.patch_scores == "softmax" and (scores or correlates):
        weights.add("among visual")
    if reduction.text_scores == "softmax":
        received = "visual to all" if reduction.text_direction == "vision_to_text" else "text to all"
        weights |= {received} if scores else set()
        weights |= {received, "text to all"} if via_text else set()
    return via_text, weights


def _language_layer(decoder: DecoderShape, n: int, r: int, prefix: int, m: int, reduction: Reduction) -> dict[str, int]:
    """One reducing decoder layer; `prefix` and `m` text tokens before and after the image."""
    stages = reduction.stages("language")
    via_text, weights = _language_weights(reduction)
    kw, hw, k = decoder.kv_heads * decoder.head_dim, decoder.heads * decoder.head_dim, n - r
    raw_visual, raw_text = reduction.patch_scores == "raw", reduction.text_scores == "raw"
    s = tokens_dropped(stages[2], r)
    terms = Counter(shared_terms(stages, Sizes(n, s, 0, decoder.width, decoder.head_dim, 2 * (prefix + n + m) * hw)))
    if stages[0] == "ficoco":
        # Heads that share keys are added up first, so raw scores are products at the keys' width.
        terms["filter"] += 2 * n * kw * (raw_visual + raw_text)
    sides = {"text to all": (m, prefix + n + m), "visual to text": (n, m)}
    for queries, keys in (sides.get(name, (n, prefix + n + m)) for name in weights):
        terms["weights"] += 2 * queries * keys * hw
    # Raters are chosen row by row, so their mean is a product with weights.
    terms["weights"] += 2 * m * n * _asks_raters(reduction)
    if stages[1].startswith("attention") and stages[2] != "prune":
        terms["correlate"] += 2 * r * n * kw * raw_visual
    if via_text:
        products = 2 if reduction.text_direction == "vision_to_text" else 1
        terms["via_text"] += 2 * r * m * k + products * 2 * m * n * kw * raw_text
    return dict(terms)


def language_terms(
    shape: ModelShape, plan: Plan, prefix_tokens: int, text_tokens: int, reduction: Reduction
) -> dict[str, int]:
    """FLOPs of each stage over all reducing decoder layers; none where no layer drops.

    `prefix_tokens` stand before the image, `text_tokens` after it, none of them padding: masked means over a padded
    batch are products too, 2 FLOPs per word and visual token at most.
    """
    terms: Counter[str] = Counter()
    decoder = shape.decoder
    for n, r in zip(plan.decoder_visual_lengths, plan.decoder_drops, strict=True):
        if not r:
            continue
        terms.update(_language_layer(decoder, n, r, prefix_tokens, text_tokens, reduction))
        if plan.decoder_by_next:
            heads = (decoder.heads + decoder.kv_heads) * decoder.head_dim
            terms["next_layer"] += 2 * (prefix_tokens + n + text_tokens) * decoder.width * heads
    return dict(terms)
