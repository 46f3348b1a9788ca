"""A token budget becomes drops per layer, and the lengths that every cost follows from.

The budget is what is left after the last reducing layer. Drops are spread evenly over the reducing layers, the larger
ones first: 576 -> 64 over 11 layers is six layers of 47 and five of 46 (FICOCO.md, section 8).
A layer drops between its attention residual and its MLP, so its attention runs at the length that enters it, its MLP
at the length that leaves it, and the decoder caches keys and values at the length that enters.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import isqrt

from reduction.combination import check_text_tower
from reduction.drops import by_counts, counts_for, even, geometric, lengths
from reduction.errors import ReductionError
from reduction.methods import BY_CLS, FRESH, HALVING, NEEDS_WINDOWS, Place, tokens_dropped, tokens_fewer
from reduction.settings import Reduction
from reduction.shapes import ModelShape, VisionShape


@dataclass(frozen=True, slots=True)
class Plan:
    """How many visual tokens each layer drops and how many enter it. Hashable; the same for every image."""

    vision_drops: tuple[int, ...]
    """One per encoder layer that runs."""
    decoder_drops: tuple[int, ...]
    """One per decoder layer."""
    vision_lengths: tuple[int, ...]
    """Patches, without CLS, entering each encoder layer that runs, and last those leaving the tower."""
    decoder_visual_lengths: tuple[int, ...]
    """Visual tokens entering each decoder layer."""
    visual_tokens: int
    """Visual tokens handed to the decoder."""
    visual_tokens_left: int
    """Visual tokens left after the last reducing layer."""
    projector_drop: int = 0
    """Visual tokens dropped at the projector's output."""
    vision_after_mlp: bool = False
    """Encoder layers drop after their MLP, not before it."""
    decoder_after_mlp: bool = False
    """The same of the decoder's layers."""
    adaptive: bool = False
    """Each image keeps as many tokens as it needs: lengths behind the drop are the most there can be."""
    by_question: bool = False
    """Each question keeps its own tokens of the projector's output, so questions share no keys of their image."""
    decoder_by_next: bool = False
    """The decoder drops by the queries and keys of the layer after the one that drops."""

    @property
    def projector_tokens(self) -> int:
        """Visual tokens that the projector runs on."""
        return self.visual_tokens + self.projector_drop

    @property
    def full_visual_tokens(self) -> int:
        """Visual tokens of an image that nothing is dropped of."""
        return self.projector_tokens + self.vision_lengths[0] - self.vision_lengths[-1]

    @property
    def reduces_vision(self) -> bool:
        return any(self.vision_drops)

    @property
    def reduces_language(self) -> bool:
        return any(self.decoder_drops)

    @property
    def first_decoder_drop(self) -> int:
        """The decoder layer up to which an image's questions have its keys in common; the number of layers: in all."""
        if self.by_question:
            return 0
        return next((layer for layer, drop in enumerate(self.decoder_drops) if drop), len(self.decoder_drops))

    @property
    def reduces(self) -> bool:
        return self.reduces_vision or self.reduces_language or self.projector_drop > 0

    def decoder_lengths(self, text_tokens: int) -> tuple[int, ...]:
        """Tokens, text included, entering each decoder layer; also the prompt's KV length in each layer."""
        return tuple(length + text_tokens for length in self.decoder_visual_lengths)


def kept_tokens(keep: int | str | None, total: int) -> int:
    """A budget as a count: an int as it is, a share such as "11%" of `total` rounded, None for all of them."""
    if keep is None:
        return total
    kept = round(float(keep.removesuffix("%")) / 100 * total) if isinstance(keep, str) else keep
    if kept > total:
        raise ReductionError(f"cannot keep {kept} visual tokens: the model has {total} per image.")
    if kept < 1:
        raise ReductionError(f"keeping {keep} leaves {kept} of {total} visual tokens: at least 1 must be left.")
    return kept


def most_outliers(total: int) -> int:
    """The most of `total` values that can lie above their third quartile (linear interpolation), 1 at least."""
    return max(1, total - 1 - 3 * (total - 1) // 4)


def _kept(reduction: Reduction, vision: VisionShape) -> int:
    """Visual tokens left; the most there can be where that is decided for each image."""
    if not reduction.adaptive:
        return kept_tokens(reduction.keep, vision.visual_tokens)
    place = reduction.places[0]
    total = vision.visual_tokens if place == "projector" else vision.patches
    return vision.visual_tokens - tokens_fewer(reduction.stages(place)[2], total - most_outliers(total))


def _check_adaptive(plan: Plan) -> None:
    if plan.projector_drop:
        return
    reducing = [layer for layer, drop in enumerate(plan.vision_drops) if drop]
    if not plan.vision_after_mlp or reducing != [len(plan.vision_drops) - 1]:
        raise ReductionError(
            "keep=adaptive decides once, on the states behind the last encoder layer that runs: "
            "use prumerge without start and layers, or keep a number of tokens."
        )


def _split_drop(reduction: Reduction, drop: int) -> dict[Place, int]:
    """The drop at each place."""
    if len(reduction.places) < 2:
        return dict.fromkeys(reduction.places, drop)
    vision = round(reduction.split * drop)
    return {"vision": vision, "language": drop - vision}


def _layer_drops(reduction: Reduction, place: Place, total: int, drop: int, depth: int, run: int) -> tuple[int, ...]:
    """The drop in each of the `run` layers, of `depth`, that run at `place`."""
    if place not in reduction.places:
        return (0,) * run
    own = reduction.schedule(place)
    vision = place == "vision"
    start = reduction.vision_start if vision else reduction.language_start
    count = reduction.vision_layers if vision else reduction.language_layers
    if own.at and start is None and count is None:
        # Behind a layer's MLP means before the layer at that share of the depth.
        at = [max(0, min(run - 1, int(share * depth) - own.after_mlp)) for share in own.at]
        if own.counts and drop:
            counts = counts_for(total - drop, total, own.counts)
            return by_counts(total, counts, at, run, reduction.stages(place)[2])
        return geometric(total, drop, sorted(set(at)), run)
    if start is None:
        start = _first_layer(own.start, depth, run, vision)
    if count is None and own.layers is not None:
        count = min(own.layers, max(1, run - start))
    return even(drop, start, count, run, place)


def _first_layer(start: int | float, depth: int, run: int, vision: bool) -> int:
    if isinstance(start, int):
        return start if start >= 0 else run + start
    # Half of a tower is rounded down; a decoder's first layer has not seen the image's attention yet.
    return int(start * depth) if vision else max(1, round(start * depth))


def _check_drops(reduction: Reduction, place: Place, entering: tuple[int, ...]) -> None:
    """Raises ReductionError where a stage cannot drop as many tokens as a layer shall."""
    filter_, _, compress = reduction.stages(place)
    for layer, (before, after) in enumerate(pairwise(entering)):
        if before == after:
            continue
        dropped = tokens_dropped(compress, before - after)
        fresh = dropped - (before - after)
        if filter_ in HALVING and dropped > before // 2:
            raise ReductionError(
                f"filter={filter_} drops at most half of the tokens in a layer, and {place} layer {layer} "
                f"shall drop {before - after} of {before}: spread the drop over more layers, or keep more."
            )
        if after <= fresh:
            raise ReductionError(
                f"compress={compress} makes {fresh} of the {after} tokens that layer {layer} leaves: "
                f"keep {fresh + 1} at least."
            )


def window_counts(n_keep: int, grid: int) -> tuple[int, int]:
    """Rows and columns of windows, `n_keep` in all and as square as can be, that a grid of patches is cut into.

    Raises ReductionError where no such windows are at most twice as wide as high.
    """
    pairs = [(rows, n_keep // rows) for rows in range(isqrt(n_keep), 0, -1) if n_keep % rows == 0]
    rows, columns = pairs[0]
    if columns <= grid and columns <= 2 * rows:
        return rows, columns
    side = isqrt(n_keep)
    raise ReductionError(
        f"{n_keep} tokens cannot be left of a {grid} x {grid} grid by pooling, for lack of rows and columns that give "
        f"that many: keep {side * side}, or {min(grid, side + 1) ** 2}."
    )


def _check_projector(reduction: Reduction, shape: ModelShape, total: int, drop: int) -> None:
    if not drop:
        return
    if reduction.stages("projector")[0] == NEEDS_WINDOWS[0]:
        if shape.vision.keeps_cls:
            raise ReductionError("filter=windows needs the patches alone, and this model's decoder sees CLS as well.")
        window_counts(total - drop, shape.vision.grid)
    _check_drops(reduction, "projector", (total, total - drop))


def _vision_drops(reduction: Reduction, shape: ModelShape, drop: int) -> tuple[int, ...]:
    vision = shape.vision
    if drop and drop >= vision.patches:
        raise ReductionError(f"dropping {drop} of {vision.patches} patches leaves none in the encoder.")
    drops = _layer_drops(reduction, "vision", vision.patches, drop, vision.layers, vision.layers_run)
    if any(drops):
        _check_drops(reduction, "vision", lengths(vision.patches, drops))
        _, correlate, compress = reduction.stages("vision")
        if compress in FRESH and correlate in BY_CLS and not vision.has_cls:
            raise ReductionError(
                f"compress={compress} weighs patches by the attention of the CLS token, "
                "and this model's tower has none: use compress=prune."
            )
    return drops


@lru_cache(maxsize=256)
def plan(reduction: Reduction, shape: ModelShape) -> Plan:
    """The drops and lengths of `reduction` on a model of `shape`.

    Start layers and counts of layers that are None are the method's own (`methods.Schedule`): FiCoCo starts at half of
    the encoder's layers (12 of 24) and an eighth of the decoder's (4 of 32, at least 1), and reduces in all that run
    of the encoder and 4 of the decoder. FiCoCo-VL gives `split` of the drop, rounded, to the encoder.
    Raises ReductionError where the model has fewer tokens or layers than asked for, or a stage cannot do it.
    """
    if reduction.by_question:
        check_text_tower(reduction.method, reduction.stages("projector")[0], shape)
    total = shape.vision.visual_tokens
    drop = total - _kept(reduction, shape.vision) if reduction.places else 0
    share = _split_drop(reduction, drop)
    vision_drops = _vision_drops(reduction, shape, share.get("vision", 0))
    vision_lengths = lengths(shape.vision.patches, vision_drops)
    projected = vision_lengths[-1] + int(shape.vision.keeps_cls)
    projector_drop = share.get("projector", 0)
    _check_projector(reduction, shape, projected, projector_drop)
    entering, depth = projected - projector_drop, shape.decoder.layers
    decoder_drops = _layer_drops(reduction, "language", entering, share.get("language", 0), depth, depth)
    decoder_lengths = lengths(entering, decoder_drops)
    if any(decoder_drops):
        _check_drops(reduction, "language", decoder_lengths)
        if decoder_drops[-1] and reduction.schedule("language").by_next:
            raise ReductionError(f"{reduction.method} drops by the next layer's attention: the last layer has none.")
    chosen = Plan(
        vision_drops=vision_drops,
        decoder_drops=decoder_drops,
        vision_lengths=vision_lengths,
        decoder_visual_lengths=decoder_lengths[:-1],
        visual_tokens=entering,
        visual_tokens_left=decoder_lengths[-1],
        projector_drop=projector_drop,
        vision_after_mlp=any(vision_drops) and reduction.schedule("vision").after_mlp,
        decoder_after_mlp=any(decoder_drops) and reduction.schedule("language").after_mlp,
        decoder_by_next=any(decoder_drops) and reduction.schedule("language").by_next,
        adaptive=reduction.adaptive,
        by_question=projector_drop > 0 and reduction.by_question,
    )
    if reduction.adaptive:
        _check_adaptive(chosen)
    return chosen
