"""Each stage by itself: linear forms against N x N forms, counts, ties, sets."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reduction.attention import (
    attention_weights,
    chosen_scores,
    concatenate_heads,
    masked_mean,
    mean_score,
    one_query_weights,
    raw_scores,
    score_scale,
    sum_groups,
    take,
)
from reduction.compress import chosen_targets, merging_weights, quantile_count, take_in
from reduction.correlate import from_weights, through_text
from reduction.filter import drop_highest, drop_random, drop_stride, keep_set, redundancy, scaled
from tests.reduction.counted import as_on_a_device

HEADS = st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)])


def random_heads(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def full_scores(queries: Tensor, keys: Tensor) -> Tensor:
    """(b, h, n, m) with each key head repeated for its group."""
    repeated = keys.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1)
    return queries @ repeated.transpose(2, 3) / math.sqrt(queries.shape[3])


@given(HEADS, st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_linear_forms_equal_the_full_map(heads: tuple[int, int], n: int, m: int, seed: int) -> None:
    queries = random_heads(2, heads[0], n, 5, seed=seed)
    keys = random_heads(2, heads[1], m, 5, seed=seed + 1)
    full = full_scores(queries, keys).mean(1)
    summed, joined = concatenate_heads(sum_groups(queries, heads[1])), concatenate_heads(keys)
    scale = score_scale(heads[0], 5)
    torch.testing.assert_close(raw_scores(summed, joined, scale), full)
    torch.testing.assert_close(mean_score(summed, masked_mean(joined), scale), full.mean(2))
    torch.testing.assert_close(mean_score(joined, masked_mean(summed), scale), full.mean(1))
    torch.testing.assert_close(attention_weights(queries, keys), full_scores(queries, keys).softmax(-1).mean(1))


def test_masked_tokens_count_in_no_mean() -> None:
    tokens = torch.arange(12.0).view(2, 3, 2)
    mask = torch.tensor([[True, False, True], [False, False, False]])
    assert masked_mean(tokens, mask).tolist() == [[2.0, 3.0], [0.0, 0.0]]
    assert masked_mean(tokens[:, :0]).tolist() == [[0.0, 0.0], [0.0, 0.0]]


@given(st.integers(1, 600), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 0.95, 0.99, 0.998, 0.999, 1.0]))
def test_quantile_count(count: int, epsilon: float) -> None:
    values = torch.arange(count, dtype=torch.float64)
    # Evenly spaced values: the quantile's rank is the quantile. The margin absorbs torch's own rounding.
    expected = int((values >= torch.quantile(values, epsilon) - 1e-6).sum())
    assert quantile_count(epsilon, count) == expected


def test_quantile_count_of_the_paper() -> None:
    assert quantile_count(0.998, 530) == 2


def test_all_tied_targets_are_chosen() -> None:
    chosen = chosen_targets(torch.tensor([[[3.0, 1.0, 3.0, 3.0]]]), 1.0)
    assert chosen.tolist() == [[[True, False, True, True]]]


def test_merge_by_hand() -> None:
    targets, sources = torch.tensor([[[2.0], [4.0], [8.0]]]), torch.tensor([[[10.0], [1.0]]])
    correlation = torch.tensor([[[3.0, 1.0, 0.5], [0.0, 0.2, 0.2]]])
    # ε = 0.5 chooses two of three: shares 3/4 and 1/4 of 10, then 1/2 and 1/2 of 1.
    merged = take_in(targets.clone(), sources, merging_weights(correlation, 0.5))
    expected = [(2 + 7.5) / 1.75, (4 + 2.5 + 0.5) / 1.75, (8 + 0.5) / 1.5]
    torch.testing.assert_close(merged[0, :, 0], torch.tensor(expected))
    mean = take_in(targets.clone(), sources, chosen_targets(correlation, 0.5).float())
    torch.testing.assert_close(mean[0, :, 0], torch.tensor([12 / 2, 15 / 3, 9 / 2]))


def test_nothing_correlated_merges_nowhere() -> None:
    targets, sources = torch.ones(1, 3, 2), torch.full((1, 2, 2), 9.0)
    weights = merging_weights(torch.zeros(1, 2, 3), 0.5)
    assert torch.equal(take_in(targets.clone(), sources, weights), targets)
    assert not from_weights(torch.zeros(1, 2, 3)).any()


@given(st.integers(1, 12), st.integers(1, 9), st.floats(0, 1), st.booleans(), st.integers(0, 99))
def test_only_what_takes_in_changes(count: int, dropped: int, share: float, behind: bool, seed: int) -> None:
    tokens, sources = random_heads(3, count + behind, 4, seed=seed), random_heads(3, dropped, 4, seed=seed + 1)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(3, dropped, count, generator=generator, dtype=torch.float64)
    weights *= torch.rand(weights.shape, generator=generator) < share
    targets, before = tokens[:, int(behind) :], tokens.clone()
    expected = (targets + weights.transpose(1, 2) @ sources) / (1 + weights.sum(1).unsqueeze(-1))
    with as_on_a_device():
        torch.testing.assert_close(take_in(targets, sources, weights), expected)
    assert torch.equal(tokens, before)
    assert take_in(targets, sources, weights) is targets
    torch.testing.assert_close(targets, expected)
    untouched = weights.sum(1) == 0
    assert torch.equal(targets[untouched], before[:, int(behind) :][untouched])
    assert torch.equal(tokens[:, : int(behind)], before[:, : int(behind)])


def test_merging_can_be_differentiated() -> None:
    targets, sources, scores = (random_heads(2, *shape, seed=shape[0]) for shape in ((5, 3), (2, 3), (2, 5)))
    weights = merging_weights(scores.exp(), 0.5)

    for chosen in [(targets, sources), (weights,)]:
        for tensor in chosen:
            tensor.requires_grad_()
        assert torch.autograd.gradcheck(lambda *_: take_in(targets, sources, weights), chosen)
        for tensor in chosen:
            tensor.requires_grad_(False)


@given(st.integers(1, 9), st.integers(0, 4), st.booleans(), st.integers(0, 99))
def test_scores_with_chosen_keys(count: int, chosen: int, behind: bool, seed: int) -> None:
    keys, queries = (random_heads(2, n, 6, seed=seed + n)[:, int(behind) :] for n in (count + behind, chosen + behind))
    kept = torch.stack([torch.randperm(count, generator=torch.Generator().manual_seed(seed + i)) for i in range(2)])
    got = chosen_scores(queries, keys, kept[:, : count // 2], 0.3)
    torch.testing.assert_close(got, raw_scores(queries, take(keys, kept[:, : count // 2]), 0.3))


@given(st.sampled_from([1, 2, 6]), st.integers(1, 9), st.integers(0, 99))
def test_weights_of_one_query(heads: int, count: int, seed: int) -> None:
    query, keys = random_heads(2, heads, 1, 5, seed=seed), random_heads(2, heads, count, 5, seed=seed + 1)
    got = one_query_weights(concatenate_heads(query)[:, 0], concatenate_heads(keys), heads)
    torch.testing.assert_close(got, full_scores(query, keys).softmax(-1).mean(1)[:, 0])


def test_merging_keeps_half_precision() -> None:
    weights = merging_weights(torch.rand(2, 3, 4), 0.5)
    assert take_in(torch.rand(2, 4, 5).bfloat16(), torch.rand(2, 3, 5).bfloat16(), weights).dtype == torch.bfloat16


def test_text_correlation_skips_padding() -> None:
    weights = torch.rand(1, 3, 6)
    text = torch.tensor([[True, True, False]])
    got = through_text(weights[..., :2], weights[..., 2:], text)
    torch.testing.assert_close(got, through_text(weights[:, :2, :2], weights[:, :2, 2:], None))


@given(st.integers(2, 20), st.integers(1, 5), st.integers(0, 99))
def test_highest_scores_go_and_order_stays(count: int, levels: int, seed: int) -> None:
    scores = torch.randint(levels, (3, count), generator=torch.Generator().manual_seed(seed)).float()
    n_drop = count // 2
    split = drop_highest(scores, n_drop)
    for row in range(3):
        first_highest = sorted(range(count), key=lambda index: (-scores[row, index].item(), index))[:n_drop]
        assert sorted(split.dropped[row].tolist()) == sorted(first_highest)
        assert split.kept[row].tolist() == sorted(set(range(count)) - set(first_highest))


def check_partition(kept: Tensor, dropped: Tensor, count: int) -> None:
    for stay, leave in zip(kept.tolist(), dropped.tolist(), strict=True):
        assert stay == sorted(stay)
        assert sorted(stay + leave) == list(range(count))


@given(st.integers(1, 40), st.integers(0, 39), st.integers(0, 5))
def test_sets_without_scores(count: int, n_drop: int, seed: int) -> None:
    n_drop = min(n_drop, count - 1)
    device = torch.device("cpu")
    random = drop_random(2, count, n_drop, seed, device)
    check_partition(random.kept, random.dropped, count)
    assert torch.equal(random.kept[0], random.kept[1])
    assert torch.equal(random.kept, drop_random(2, count, n_drop, seed, device).kept)
    stride = drop_stride(2, count, n_drop, device)
    check_partition(stride.kept, stride.dropped, count)
    gaps = stride.kept[0].diff()
    assert gaps.numel() == 0 or gaps.max() - gaps.min() <= 1


def test_random_sets_hang_on_the_seed() -> None:
    sets = {tuple(drop_random(1, 50, 25, seed, torch.device("cpu")).kept[0].tolist()) for seed in range(8)}
    assert len(sets) == 8


def test_a_given_set_is_kept() -> None:
    split = keep_set(torch.tensor([[0, 3], [1, 2]]), 4)
    assert split.kept.tolist() == [[0, 3], [1, 2]]
    assert split.dropped.tolist() == [[1, 2], [0, 3]]


def test_scales() -> None:
    scores = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert scaled(scores, "l2").tolist()[1] == [0.0, 0.0]
    torch.testing.assert_close(scaled(scores, "l2")[0], torch.tensor([0.6, 0.8]))
    torch.testing.assert_close(scaled(scores, "zscore")[0], torch.tensor([-1.0, 1.0]))
    assert torch.equal(scaled(scores, "none"), scores)


@pytest.mark.parametrize("how", ["l2", "zscore"])
def test_terms_of_any_magnitude_weigh_alike(how: str) -> None:
    visual, importance = torch.rand(2, 9, dtype=torch.float64), torch.rand(2, 9, dtype=torch.float64)
    expected = redundancy(visual, importance, 0.35, how)
    torch.testing.assert_close(redundancy(visual * 1e4, importance * 1e-4, 0.35, how), expected)
