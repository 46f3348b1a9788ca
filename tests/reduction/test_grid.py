"""The local penalty against loops over windows and cells."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from reduction.grid import local_penalty, window_highest


def penalty_by_loops(scores: list[float], cells: list[int], grid: int, window: int, factor: float) -> list[float]:
    result = list(scores)
    for top in range(0, grid, window):
        for left in range(0, grid, window):
            inside = [
                index
                for index, cell in enumerate(cells)
                if top <= cell // grid < top + window and left <= cell % grid < left + window
            ]
            if inside:
                # max() keeps the first of equal ones, and cells ascend.
                best = max(inside, key=lambda index: scores[index])
                result[best] = scores[best] * factor if scores[best] > 0 else scores[best] / factor
    return result


@given(
    grid=st.integers(1, 7),
    window=st.integers(1, 4),
    factor=st.sampled_from([1.0, 2.0, 4.0]),
    levels=st.integers(1, 50),
    seed=st.integers(0, 999),
)
def test_equals_loops(grid: int, window: int, factor: float, levels: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    left = int(torch.randint(1, grid * grid + 1, (), generator=generator))
    cells = torch.stack([torch.randperm(grid * grid, generator=generator)[:left].sort().values for _ in range(3)])
    # Few levels make ties, powers of two make the products exact.
    scores = torch.randint(-levels, levels + 1, (3, left), generator=generator) / 8
    got = local_penalty(scores, cells, grid, window, factor)
    for row in range(3):
        expected = penalty_by_loops(scores[row].tolist(), cells[row].tolist(), grid, window, factor)
        assert got[row].tolist() == expected


def test_only_one_token_of_a_tied_window_is_raised() -> None:
    chosen = window_highest(torch.zeros(1, 4), torch.arange(4)[None], 2, 2)
    assert chosen.tolist() == [[True, False, False, False]]
