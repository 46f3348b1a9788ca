"""The stages of FiCoCo as plain loops over the attention maps of one image and one prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from reduction.settings import Reduction

Matrix = list[list[float]]


def quantile(values: Sequence[float], epsilon: float) -> float:
    """The linear-interpolation quantile, its rank in exact arithmetic."""
    ordered = sorted(values)
    rank = Fraction(str(epsilon)) * (len(ordered) - 1)
    low = math.floor(rank)
    part = float(rank - low)
    return ordered[low] if part == 0 else ordered[low] + part * (ordered[low + 1] - ordered[low])


def scale(values: list[float], how: str) -> list[float]:
    if how == "l2":
        length = math.sqrt(sum(value**2 for value in values))
        return [value / max(length, 1e-12) for value in values]
    if how == "zscore":
        mean = sum(values) / len(values)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
        return [(value - mean) / max(deviation, 1e-12) for value in values]
    return values


def mix_terms(visual: list[float], importance: list[float], weight: float, how: str) -> list[float]:
    return [weight * a - (1 - weight) * b for a, b in zip(scale(visual, how), scale(importance, how), strict=True)]


def penalise(scores: list[float], cells: list[int], grid: int, window: int, factor: float) -> list[float]:
    windows: dict[tuple[int, int], list[int]] = {}
    for index, cell in enumerate(cells):
        windows.setdefault((cell // grid // window, cell % grid // window), []).append(index)
    result = list(scores)
    for members in windows.values():
        best = max(members, key=lambda index: scores[index])
        result[best] = scores[best] * factor if scores[best] > 0 else scores[best] / factor
    return result


def split(scores: list[float], n_drop: int) -> tuple[list[int], list[int]]:
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    return sorted(order[n_drop:]), sorted(order[:n_drop])


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    weights = [math.exp(value - top) for value in row]
    return [weight / sum(weights) for weight in weights]


def sum_to_one(row: list[float]) -> list[float]:
    total = sum(row)
    return [value / total for value in row] if total > 0 else row


def compress(tokens: Tensor, kept: list[int], dropped: list[int], rows: Matrix, reduction: Reduction) -> Tensor:
    """Eq. 2; `rows[a][b]` correlates dropped token a with kept token b."""
    result = []
    how = reduction.compress or "merge"
    shares = []
    for row in rows:
        threshold = quantile(row, reduction.epsilon)
        chosen = [value >= threshold for value in row]
        total = sum(value for value, inside in zip(row, chosen, strict=True) if inside)
        shares.append(
            [
                0.0 if not inside else 1.0 if how == "mean" else value / total if total > 0 else 0.0
                for value, inside in zip(row, chosen, strict=True)
            ]
        )
    for column, target in enumerate(kept):
        token, weight = tokens[target].clone(), 1.0
        if how != "prune":
            for index, source in enumerate(dropped):
                token = token + shares[index][column] * tokens[source]
                weight += shares[index][column]
        result.append(token / weight)
    return torch.stack(result)


def vision_stages(
    raw: Tensor,
    weights: Tensor,
    keys: Tensor,
    cells: list[int],
    first: int,
    grid: int,
    n_drop: int,
    reduction: Reduction,
) -> tuple[list[int], Matrix, list[int]]:
    """Filter and correlate from the maps (heads, tokens, tokens) of one layer."""
    count = len(cells)
    among = (raw if reduction.patch_scores == "raw" else weights).mean(0)[first:, first:].tolist()
    visual = [sum(row) / count for row in among]
    if first == 0 or reduction.cls_scores == "keys":
        head_mean = keys.mean(0)[first:]
        middle = head_mean.sum(0) / count
        importance = [
            -float((key * middle).sum() / (key.square().sum().sqrt() * middle.square().sum().sqrt()))
            for key in head_mean
        ]
    else:
        importance = (raw if reduction.cls_scores == "raw" else weights).mean(0)[0, 1:].tolist()
    scores = mix_terms(visual, importance, reduction.lam, reduction.normalise)
    if reduction.local_penalty:
        scores = penalise(scores, cells, grid, reduction.window, reduction.penalty)
    kept, dropped = split(scores, n_drop)
    rows = [[among[i][j] for j in kept] for i in dropped]
    return kept, [softmax(row) if reduction.patch_scores == "raw" else sum_to_one(row) for row in rows], dropped


def language_stages(
    raw: Tensor, weights: Tensor, start: int, count: int, n_drop: int, reduction: Reduction
) -> tuple[list[int], Matrix, list[int]]:
    """Filter and correlate from the maps (heads, tokens, tokens) of one layer."""
    visual, words = range(start, start + count), range(start + count, raw.shape[1])
    scores_map, weights_map, open_map = raw.mean(0).tolist(), weights.mean(0).tolist(), raw.softmax(-1).mean(0).tolist()
    among = scores_map if reduction.patch_scores == "raw" else weights_map
    paid = scores_map if reduction.text_scores == "raw" else weights_map
    asked = scores_map if reduction.text_scores == "raw" else open_map
    upward = reduction.text_direction == "text_to_vision"

    def between(i: int, k: int) -> float:
        return paid[k][i] if upward else asked[i][k]

    visual_term = [sum(among[i][j] for j in visual) / count for i in visual]
    text_term = [sum(between(i, k) for k in words) / len(words) for i in visual]
    scores = mix_terms(visual_term, text_term, reduction.beta, reduction.normalise)
    kept, dropped = split(scores, n_drop)
    rows = []
    for i in dropped:
        direct = [among[start + i][start + j] for j in kept]
        direct = softmax(direct) if reduction.patch_scores == "raw" else sum_to_one(direct)
        via = [sum(between(start + i, k) * paid[k][start + j] for k in words) / len(words) for j in kept]
        via = softmax(via) if reduction.text_scores == "raw" else sum_to_one(via)
        rows.append([reduction.gamma * a + (1 - reduction.gamma) * b for a, b in zip(direct, via, strict=True)])
    return kept, rows, dropped
