"""CLIP's text tower, which a LLaVA checkpoint does not carry, beside a LLaVA: questions and patches in one space.

The patches are those of the layer that LLaVA reads: CLIP's own projection, made for the states behind its last layer,
is applied to them as CDPruner and TRIM do, so the tower's last layer need not run.
Shapes: i images, q questions, n visual tokens, m tokens of a text, v width of the vision tower, p of the common space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from reduction.errors import ReductionError
from reduction.matching import unit
from reduction.tensors import Float, Int
from reduction.text_shape import TextShape
from reduction.views import AskedFeatures, Features


class TextTower:
    """Embeds questions, and the patches that they are compared with."""

    def __init__(
        self, text: Any, norm: nn.LayerNorm, projection: nn.Linear, tokenizer: Any, shape: TextShape, scale: float
    ) -> None:
        """Args:
            text: a `CLIPTextModelWithProjection`.
            norm, projection: CLIP's `post_layernorm` and `visual_projection`.
            tokenizer: a Hugging Face tokenizer that ends every text with the token that CLIP reads it at.
            scale: what CLIP multiplies cosines by.

        Raises:
            ReductionError: the tokenizer ends texts otherwise, or knows tokens that the tower does not.
        """
        self.text, self.norm, self.projection, self.tokenizer = text.eval(), norm, projection, tokenizer
        self.shape, self.scale = shape, scale
        known = text.config.vocab_size
        if len(tokenizer) > known:
            raise ReductionError(
                f"the text tower's tokenizer knows {len(tokenizer)} tokens, and the tower has {known}: "
                "take tokenizer and weights from one CLIP checkpoint."
            )
        (ids,) = self.tokenise(["a"])
        end = text.config.eos_token_id
        # 2 is how older configurations say: the token of the highest id.
        if not ids or ids[-1] != (max(ids) if end == 2 else end) or ids.index(ids[-1]) != len(ids) - 1:
            raise ReductionError(
                f"the text tower's tokenizer does not end a text with the token {end} that the tower reads it at: "
                "take tokenizer and weights from one CLIP checkpoint."
            )

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, cut to the tower's length, its ends included."""
        if not texts:
            return []
        ids: list[list[int]] = self.tokenizer(
            list(texts), truncation=True, max_length=self.shape.positions, padding=False
        )["input_ids"]
        return ids

    def embed(self, texts: Sequence[str]) -> Float[Tensor, "q p"]:
        """Where each text lies in the common space, of any length."""
        return self.embed_ids(self.tokenise(texts))

    @torch.no_grad()
    def embed_ids(self, ids: Sequence[Sequence[int]]) -> Float[Tensor, "q p"]:
        """`embed` for texts that are tokens already."""
        longest = max(map(len, ids))
        # Behind its end a text is never looked at: attention is causal, and CLIP reads the first end token.
        padded = [[*row, *[row[-1]] * (longest - len(row))] for row in ids]
        device = self.projection.weight.device
        found: Tensor = self.text(input_ids=torch.tensor(padded, device=device)).text_embeds
        return found

    def embed_patches(self, states: Float[Tensor, "i n v"]) -> Float[Tensor, "i n p"]:
        """Where each patch lies in the common space, of any length."""
        embedded: Tensor = self.projection(self.norm(states.to(self.projection.weight.dtype)))
        return embedded


class Asked(NamedTuple):
    """Questions about a batch of images."""

    tower: TextTower
    texts: Float[Tensor, "q p"]
    """What `TextTower.embed` gives."""
    image: Int[Tensor, " q"] | None = None
    """The image that each question is about; None: the one of its own number."""

    def view(self, features: Features, states: Float[Tensor, "i n v"]) -> AskedFeatures:
        """What stages may look at: features at the projector's output and the tower's states that they come from."""
        images, patches = features.states, unit(self.tower.embed_patches(states))
        if self.image is not None:
            patches = patches.index_select(0, self.image)
        relevance = torch.bmm(patches, functional.normalize(self.texts.to(patches.dtype), dim=-1).unsqueeze(2))
        return AskedFeatures(
            images if self.image is None else images.index_select(0, self.image),
            features.grid,
            relevance=relevance.squeeze(2),
            logit_scale=self.tower.scale,
            images=images,
            image=self.image,
        )
