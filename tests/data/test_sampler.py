"""The rows of an iteration, and how often each is among them."""

from __future__ import annotations

import pytest

from customized_grpo.data.sampler import count_repeats, prompt_indices


def test_repeats_are_counted_within_the_iteration() -> None:
    assert count_repeats([4, 2, 4, 4, 2]) == [0, 0, 1, 2, 1]
    assert count_repeats([3, 1, 2]) == [0, 0, 0]


@pytest.mark.parametrize(("rows", "prompts"), [(2, 4), (25, 32), (10, 8)])
def test_every_group_of_an_iteration_has_a_number_of_its_own(rows: int, prompts: int) -> None:
    repeated = 0
    for iteration in range(20):
        indices = prompt_indices(rows, iteration * prompts, prompts, 0)
        groups = list(zip(indices, count_repeats(indices), strict=True))
        assert len(set(groups)) == prompts
        repeated += prompts - len(set(indices))
    assert repeated > 0, "the case never came up"
