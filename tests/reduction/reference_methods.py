"""ToMe, EViT and FastV straight from their papers: one image, one prompt, loops, full attention maps.

Nothing of `reduction` is used, nor its idea of stages; of the model its weights and small modules are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.reduction.reference import decoder_layer_inputs, heads_of, repeat

Step = Callable[[Tensor, Tensor, Tensor], Tensor]


def tower_layer(layer: Any, hidden: Tensor, bias: Tensor | None, step: Step) -> Tensor:
    """One encoder layer on (t, w); `step` (states, weights by head, keys by head) stands before the MLP."""
    attention, normed = layer.self_attn, layer.layer_norm1(hidden)
    queries, keys, values = (
        heads_of(project(normed), attention.num_heads)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    raw = queries @ keys.transpose(1, 2) / math.sqrt(attention.head_dim)
    weights = (raw if bias is None else raw + bias).softmax(-1)
    hidden = hidden + attention.out_proj((weights @ values).transpose(0, 1).flatten(1))
    hidden = step(hidden, weights, keys)
    return hidden + layer.mlp(layer.layer_norm2(hidden))


def embedded(model: Any, image: Tensor) -> Tensor:
    tower = model.model.vision_tower
    tower = getattr(tower, "vision_model", tower)
    return tower.pre_layrnorm(tower.embeddings(image[None]))[0]


def layers_of(model: Any) -> Any:
    tower = model.model.vision_tower
    return getattr(tower, "vision_model", tower).encoder.layers


def by_raster(model: Any, hidden: Tensor, cells: list[int]) -> tuple[Tensor, list[int]]:
    order = sorted(range(len(cells)), key=cells.__getitem__)
    return model.model.multi_modal_projector(hidden[1:][order]), sorted(cells)


def tome(model: Any, image: Tensor, drops: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Bolya et al. 2023, section 3, on a tower with CLS: r tokens merged in each block, proportional attention."""
    hidden, cells = embedded(model, image), list(range(-1, model.config.image_seq_length))
    sizes = [1.0] * len(cells)
    for layer, r in zip(layers_of(model), drops, strict=False):

        def merge(states: Tensor, weights: Tensor, keys: Tensor, r: int = r) -> Tensor:
            nonlocal cells, sizes
            if not r:
                return states
            metric = keys.mean(0)
            a, b = list(range(0, len(cells), 2)), list(range(1, len(cells), 2))
            edges = []
            for i in a[1:]:  # the class token is a[0]
                cosines = [float(metric[i] @ metric[j] / (metric[i].norm() * metric[j].norm())) for j in b]
                best = max(range(len(b)), key=cosines.__getitem__)
                edges.append((cosines[best], i, b[best]))
            merged = sorted(edges, reverse=True)[:r]
            total = {j: states[j] * sizes[j] for j in b}
            weight = {j: sizes[j] for j in b}
            for _, i, j in merged:
                total[j] = total[j] + states[i] * sizes[i]
                weight[j] += sizes[i]
            gone = {i for _, i, _ in merged}
            left = [i for i in a if i not in gone]
            new = torch.stack([*(states[i] for i in left), *(total[j] / weight[j] for j in b)])
            cells = [cells[i] for i in [*left, *b]]
            sizes = [*(sizes[i] for i in left), *(weight[j] for j in b)]
            return new

        hidden = tower_layer(layer, hidden, torch.tensor(sizes, dtype=hidden.dtype).log(), merge)
    return by_raster(model, hidden, cells[1:])


def evit(model: Any, image: Tensor, drops: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Liang et al. 2022, section 3: the attentive tokens stay, the others become one token, weighted by attention.

    The token made so is listed under the patch with the largest weight in it.
    """
    hidden, cells = embedded(model, image), list(range(model.config.image_seq_length))
    for layer, drop in zip(layers_of(model), drops, strict=False):

        def reorganise(states: Tensor, weights: Tensor, keys: Tensor, drop: int = drop) -> Tensor:
            nonlocal cells
            if not drop:
                return states
            attentive = weights[:, 0, 1:].mean(0).tolist()
            order = sorted(range(len(cells)), key=lambda i: -attentive[i])
            stay, go = order[: len(cells) - drop - 1], order[len(cells) - drop - 1 :]
            fused = sum(attentive[i] * states[1 + i] for i in go)
            cells = [cells[i] for i in [*stay, go[0]]]
            return torch.stack([states[0], *(states[1 + i] for i in stay), fused])

        hidden = tower_layer(layer, hidden, None, reorganise)
    return by_raster(model, hidden, cells)


def fastv(
    model: Any, prefix: list[int], features: Tensor, suffix: list[int], k: int, keep: int
) -> tuple[Tensor, list[int]]:
    """Chen et al. 2024: before layer K the image tokens that the last token attended least in layer K - 1 are cut.

    `features` (n, w) are the projected visual tokens. Returns the logits of every token left, and the visual ones.
    """
    decoder = model.model.language_model
    theta = float(decoder.config.rope_parameters["rope_theta"])
    start, count = len(prefix), len(features)
    hidden = torch.cat(
        [decoder.embed_tokens(torch.tensor(prefix)), features, decoder.embed_tokens(torch.tensor(suffix))]
    )
    positions, kept, received = list(range(len(hidden))), list(range(count)), None
    for index, layer in enumerate(decoder.layers):
        if index == k:
            assert received is not None
            score = received.tolist()
            kept = sorted(sorted(range(count), key=lambda i: -score[start + i])[:keep])
            left = [*range(start), *(start + i for i in kept), *range(start + count, len(hidden))]
            hidden, positions = hidden[left], [positions[i] for i in left]
        queries, keys, values = decoder_layer_inputs(layer, hidden, positions, theta)
        raw = queries @ repeat(keys, len(queries)).transpose(1, 2) / math.sqrt(queries.shape[-1])
        causal = torch.ones(len(hidden), len(hidden), dtype=torch.bool).tril()
        weights = raw.masked_fill(~causal, -math.inf).softmax(-1)
        received = weights.mean(0)[-1]
        mixed = (weights @ repeat(values, len(queries))).transpose(0, 1).flatten(1)
        hidden = hidden + layer.self_attn.o_proj(mixed)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return model.lm_head(decoder.norm(hidden)), kept
