"""`with install(model, ...)`: a plain Hugging Face LLaVA generates with fewer visual tokens; leaving restores it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlavaForConditionalGeneration
from transformers.generation.configuration_utils import GenerationMode
from transformers.models.llava.modeling_llava import LlavaModelOutputWithPast

from reduction.cache import NO_ASSISTANCE, ReducedCache
from reduction.decoder import prefill, step
from reduction.layout import Layout
from reduction.schedule import Plan, plan
from reduction.settings import Reduction, ReductionError
from reduction.shapes import from_config
from reduction.tensors import Float
from reduction.text_checkpoint import load_text_tower
from reduction.text_tower import Asked, TextTower
from reduction.vision import encode_images, real_tokens

_UNSUPPORTED = ("output_hidden_states", "output_attentions", "mm_encoder_outputs", "image_sizes")


@contextmanager
def install(
    model: LlavaForConditionalGeneration, reduction: Reduction | str, *, text_tower: TextTower | str | None = None
) -> Iterator[Plan]:
    """Reduces visual tokens in every forward pass of `model` inside the `with` block; gives the plan.

    `forward` and `generate` take what the processor makes, all image placeholders included, and return the usual
    shapes: one image per row, rows padded on either side. Logits at a dropped token's position are those of the last
    token before it that is left. Only the prompt is reduced, in the pass that carries `pixel_values`; without a cache
    that is every pass, with all text so far as the question. A reduction that drops nothing changes nothing.
    Methods that choose by the question need CLIP's text tower, loaded or as hub id or folder, and the questions as
    text: `ask` them before each batch.
    Raises ReductionError where the model or, later, an input cannot be reduced.
    """
    if not isinstance(model, LlavaForConditionalGeneration):
        raise ReductionError(
            f"cannot install a reduction in a {type(model).__name__}: give a LlavaForConditionalGeneration."
        )
    if isinstance(reduction, str):
        reduction = Reduction.parse(reduction)
    if not isinstance(reduction, Reduction):
        raise ReductionError(f"cannot install {reduction!r}: give a reduction such as 'ficoco-v:64' or 'dense'.")
    tower = None
    if reduction.by_question and text_tower is not None:
        weight = model.lm_head.weight
        tower = load_text_tower(text_tower, weight.device, weight.dtype) if isinstance(text_tower, str) else text_tower
    chosen = plan(reduction, from_config(model.config, text_tower=tower.shape if tower else None))
    attention = model.model.language_model.config._attn_implementation
    if attention not in ("sdpa", "eager"):
        raise ReductionError(f"the model attends with {attention!r}: load it with attn_implementation='sdpa'.")
    with ExitStack() as stack:
        if chosen.reduces:
            forward = ReducedForward(model.model, chosen, reduction, tower)
            stack.enter_context(_replaced(model.model, "forward", forward))
            # generate would encode the images ahead, and count their features against the placeholders.
            stack.enter_context(_replaced(model, "_maybe_prepare_encoder_kwargs_for_generation", _keep_pixels))
            checked = _refuse_assistance(model)
            stack.enter_context(_replaced(model, "_validate_generation_mode", checked))
        yield chosen


def _keep_pixels(inputs_tensor: Tensor, model_kwargs: dict[str, Any], *rest: Any, **more: Any) -> dict[str, Any]:
    return model_kwargs


def _refuse_assistance(model: Any) -> Callable[..., None]:
    """A check of what `generate` is about to do: candidates would come with the prompt, and be taken back."""

    check = model._validate_generation_mode

    def checked(mode: GenerationMode, *rest: Any, **more: Any) -> None:
        if mode == GenerationMode.ASSISTED_GENERATION:
            raise ReductionError(NO_ASSISTANCE)
        check(mode, *rest, **more)

    return checked


@contextmanager
def _replaced(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    """An attribute of the instance, put back as it was, or taken away where there was none."""
    own = vars(module)
    before = own.get(name, _replaced)
    own[name] = value
    try:
        yield
    finally:
        if before is _replaced:
            del own[name]
        else:
            own[name] = before


def ask(model: LlavaForConditionalGeneration, texts: Sequence[str]) -> None:
    """Says which questions the next batch asks, one for each row, inside `install`'s block.

    They hold for the `pixel_values` that come next, through every pass of one `generate`, and for no others: another
    batch must be asked anew. Reductions that know the image alone, or read the prompt, have no use for them.
    Raises ReductionError where no reduction is installed.
    """
    forward = vars(model.model).get("forward")
    if not isinstance(forward, ReducedForward):
        raise ReductionError("no reduction is installed that could be asked: call ask inside install's block.")
    if isinstance(texts, str):
        texts = [texts]
    forward.questions = Questions(forward.tower.embed(texts), None) if forward.tower else None


@dataclass
class Questions:
    """What `ask` was given."""

    texts: Float[Tensor, "q p"]
    pixels: weakref.ref[Tensor] | None
    """The images that they were first used with."""


class ReducedForward:
    """Stands in for `LlavaModel.forward`."""

    def __init__(self, core: Any, plan: Plan, reduction: Reduction, tower: TextTower | None = None) -> None:
        self.core, self.plan, self.reduction, self.tower = core, plan, reduction, tower
        self.questions: Questions | None = None

    def __call__(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **options: Any,
    ) -> LlavaModelOutputWithPast | tuple[Any, ...]:
        self._check(attention_mask, past_key_values, options)
        if inputs_embeds is None:
            inputs_embeds = self.core.get_input_embeddings()(input_ids)
        if isinstance(past_key_values, ReducedCache):
            output = self._step(inputs_embeds, attention_mask, past_key_values)
        else:
            if use_cache is None:
                use_cache = past_key_values is not None or bool(self.core.config.text_config.use_cache)
            output = self._prefill(input_ids, inputs_embeds, pixel_values, attention_mask, position_ids, use_cache)
        return output.to_tuple() if return_dict is False else output

    def _check(self, attention_mask: Tensor | None, cache: Any, options: dict[str, Any]) -> None:
        for name in _UNSUPPORTED:
            if options.get(name):
                raise ReductionError(f"{name} is not available under a reduction: leave it out.")
        for name in ("vision_feature_layer", "vision_feature_select_strategy"):
            if options.get(name) not in (None, getattr(self.core.config, name)):
                raise ReductionError(f"{name} must be the model's own under a reduction: set it in the config.")
        if attention_mask is not None and attention_mask.ndim != 2:
            raise ReductionError(
                f"the attention mask has {attention_mask.ndim} dimensions: under a reduction give it as (rows, tokens)."
            )
        if cache is None or isinstance(cache, ReducedCache):
            return
        if type(cache) is not DynamicCache:
            raise ReductionError(
                f"a {type(cache).__name__} cannot hold a reduced prompt: use the default dynamic cache."
            )
        if cache.get_seq_length():
            raise ReductionError("the cache holds an unreduced prompt: start a reduction with an empty cache.")

    def _layout(self, input_ids: Tensor | None, embeds: Tensor, attention_mask: Tensor | None) -> Layout:
        token = self.core.config.image_token_id
        if input_ids is None:
            image = self.core.get_input_embeddings()(torch.tensor(token, device=embeds.device))
            placeholders = (embeds == image).all(-1)
        else:
            placeholders = input_ids == token
        real = torch.ones_like(placeholders) if attention_mask is None else attention_mask.bool()
        return Layout.of(placeholders & real, real, self.plan.full_visual_tokens)

    def _asked(self, pixel_values: Tensor) -> Asked | None:
        if not self.plan.by_question or self.tower is None:
            return None
        asked = self.questions
        if asked is None or (asked.pixels is not None and asked.pixels() is not pixel_values):
            raise ReductionError(
                f"{self.reduction} chooses by the questions, and these images come without: call "
                "reduction.ask(model, texts) before each batch, with one text for each row."
            )
        if len(asked.texts) != len(pixel_values):
            raise ReductionError(
                f"{len(asked.texts)} questions were asked for {len(pixel_values)} rows: give reduction.ask one text "
                "for each row (under beam search, each as often as there are beams)."
            )
        asked.pixels = weakref.ref(pixel_values)
        return Asked(self.tower, asked.texts)

    def _prefill(
        self,
        input_ids: Tensor | None,
        embeds: Tensor,
        pixel_values: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        use_cache: bool,
    ) -> LlavaModelOutputWithPast:
        if pixel_values is None:
            raise ReductionError("the prompt comes without pixel_values: a reduction needs one image per row.")
        if len(pixel_values) != len(embeds):
            raise ReductionError(
                f"{len(pixel_values)} images for {len(embeds)} rows: a reduction needs one image per row."
            )
        layout = self._layout(input_ids, embeds, attention_mask)
        if position_ids is None:
            real = (
                torch.ones_like(embeds[..., 0], dtype=torch.long) if attention_mask is None else attention_mask.long()
            )
            position_ids = (real.cumsum(1) - 1).clamp_min(0)
        position_ids = position_ids.expand(len(embeds), -1)
        asked = self._asked(pixel_values)
        features, kept = encode_images(self.core, pixel_values, self.plan, self.reduction, asked)
        decoder = self.core.language_model
        lengths = self.plan.decoder_visual_lengths
        if self.plan.adaptive:
            layout = layout.with_visual(real_tokens(kept, layout.full))
            lengths = (kept.shape[1],) * len(lengths)
        cache = ReducedCache(decoder.config, layout, lengths) if use_cache else None
        hidden = layout.arrange(embeds, features.to(embeds.dtype))
        hidden, kept = prefill(decoder, hidden, kept, layout, position_ids, self.plan, self.reduction, cache)
        if cache is not None:
            cache.next_position = position_ids.amax(1, keepdim=True) + 1
        return LlavaModelOutputWithPast(
            last_hidden_state=layout.spread(hidden, kept), past_key_values=cache, image_hidden_states=features
        )

    def _step(self, embeds: Tensor, attention_mask: Tensor | None, cache: ReducedCache) -> LlavaModelOutputWithPast:
        # Position ids are the cache's: those that generate passes on are wrong after prompts padded on the right.
        count, real = embeds.shape[1], None
        if attention_mask is not None:
            expected = cache.get_seq_length() + count
            if attention_mask.shape[1] != expected:
                raise ReductionError(
                    f"the attention mask covers {attention_mask.shape[1]} tokens instead of the {expected} "
                    "of the unreduced prompt and what follows it."
                )
            real = attention_mask[:, cache.prompt_length :].bool()
        position_ids = cache.next_position + torch.arange(count, device=embeds.device)
        hidden = step(self.core.language_model, embeds, real, position_ids, self.reduction, cache)
        cache.generated += count
        cache.next_position = position_ids[:, -1:] + 1
        return LlavaModelOutputWithPast(last_hidden_state=hidden, past_key_values=cache)
