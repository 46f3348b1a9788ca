"""A token budget becomes drops per layer, and the lengths that every cost follows from.

The budget is what is left after the last reducing layer. Drops are spread evenly over the reducing layers, the larger
ones first: 576 -> 64 over 11 layers is six layers of 47 and five of 46 (FICOCO.md, section 8).
A layer drops between its attention residual and its MLP, so its attention runs at the length that enters it, its MLP
at the length that leaves it, and the decoder caches keys and values at the length that enters.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from reduction.errors import ReductionError
from reduction.settings import Reduction
from reduction.shapes import ModelShape

DEFAULT_LANGUAGE_LAYERS = 4
"""Few layers save more, many are gentler: 7B dropping to 64 costs 3.0 TFLOPs over 4 layers and 5.5 over all 28."""


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
    """Visual tokens handed to the projector and the decoder."""
    visual_tokens_left: int
    """Visual tokens left after the last reducing layer."""

    @property
    def reduces_vision(self) -> bool:
        return any(self.vision_drops)

    @property
    def reduces_language(self) -> bool:
        return any(self.decoder_drops)

    @property
    def reduces(self) -> bool:
        return self.reduces_vision or self.reduces_language

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


def spread(drop: int, layers: int) -> tuple[int, ...]:
    """`drop` tokens over `layers` layers as evenly as integers allow, the larger shares first."""
    share, extra = divmod(drop, layers)
    return (share + 1,) * extra + (share,) * (layers - extra)


def _drops(drop: int, start: int, layers: int | None, depth: int, place: str) -> tuple[int, ...]:
    """Drops for each of `depth` layers; `layers` None means all from `start` on."""
    count = depth - start if layers is None else layers
    if not 0 <= start < depth:
        raise ReductionError(f"{place} reduction cannot start at layer {start}: layers 0 to {depth - 1} run.")
    if count < 1 or start + count > depth:
        raise ReductionError(
            f"{place} reduction cannot use {count} layers from layer {start} on: layers 0 to {depth - 1} run."
        )
    return (0,) * start + spread(drop, count) + (0,) * (depth - start - count)


def _lengths(entering: int, drops: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(accumulate(drops, lambda length, drop: length - drop, initial=entering))


def _split_drop(reduction: Reduction, drop: int) -> tuple[int, int]:
    """The drop of the encoder and of the decoder."""
    if reduction.places == ("vision",):
        return drop, 0
    if reduction.places == ("language",):
        return 0, drop
    vision = round(reduction.split * drop)
    return vision, drop - vision


def _vision_drops(reduction: Reduction, shape: ModelShape, drop: int) -> tuple[int, ...]:
    vision = shape.vision
    if "vision" not in reduction.places:
        return (0,) * vision.layers_run
    if drop >= vision.patches:
        raise ReductionError(f"dropping {drop} of {vision.patches} patches leaves none in the encoder.")
    start = vision.layers // 2 if reduction.vision_start is None else reduction.vision_start
    return _drops(drop, start, reduction.vision_layers, vision.layers_run, "vision")


def _decoder_drops(reduction: Reduction, shape: ModelShape, drop: int) -> tuple[int, ...]:
    depth, count = shape.decoder.layers, reduction.language_layers
    if "language" not in reduction.places:
        return (0,) * depth
    start = max(1, round(depth / 8)) if reduction.language_start is None else reduction.language_start
    if count is None:
        count = min(DEFAULT_LANGUAGE_LAYERS, max(1, depth - start))
    return _drops(drop, start, count, depth, "language")


@lru_cache(maxsize=256)
def plan(reduction: Reduction, shape: ModelShape) -> Plan:
    """The drops and lengths of `reduction` on a model of `shape`.

    Start layers that are None scale with depth: half of the encoder's layers (12 of 24), an eighth of the decoder's
    (4 of 32, at least 1); counts of layers that are None mean all that run in the encoder, 4 in
    the decoder. FiCoCo-VL gives `split` of the drop, rounded, to the encoder and the rest to the decoder.
    Raises ReductionError where the model has fewer tokens or layers than asked for.
    """
    total = shape.vision.visual_tokens
    drop = total - kept_tokens(reduction.keep, total) if reduction.places else 0
    vision_drop, decoder_drop = _split_drop(reduction, drop)
    vision_drops = _vision_drops(reduction, shape, vision_drop)
    decoder_drops = _decoder_drops(reduction, shape, decoder_drop)
    vision_lengths = _lengths(shape.vision.patches, vision_drops)
    entering = vision_lengths[-1] + int(shape.vision.keeps_cls)
    decoder_lengths = _lengths(entering, decoder_drops)
    return Plan(
        vision_drops=vision_drops,
        decoder_drops=decoder_drops,
        vision_lengths=vision_lengths,
        decoder_visual_lengths=decoder_lengths[:-1],
        visual_tokens=entering,
        visual_tokens_left=decoder_lengths[-1],
    )
