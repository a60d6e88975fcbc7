"""Exchanges between two real processes; and how prompts are partitioned, as pure functions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from customized_grpo.engine.partition import Partition, padded_block
from customized_grpo.errors import UserError
from processes import HELPERS, finish, torchrun

COUNTS = st.integers(1, 5)


@pytest.mark.slow
def test_every_exchange_between_two_processes() -> None:
    status, printed = finish(torchrun(2, HELPERS / "engine_child.py"))
    assert status == 0, printed
    assert "process 0 is done" in printed and "process 1 is done" in printed


@given(world_size=COUNTS, steps=COUNTS, groups=COUNTS)
def test_shares_are_whole_groups_that_make_up_the_iteration_step_by_step(
    world_size: int, steps: int, groups: int
) -> None:
    total = world_size * steps * groups
    partitions = [Partition(rank, world_size, steps) for rank in range(world_size)]
    prompts = [partition.own_prompts(total) for partition in partitions]
    assert sorted(number for mine in prompts for number in mine) == list(range(total))
    for step in range(steps):
        of_step = [number for mine in prompts for number in mine[step * groups : (step + 1) * groups]]
        assert sorted(of_step) == list(range(step * total // steps, (step + 1) * total // steps))


@given(world_size=COUNTS, steps=COUNTS, groups=COUNTS, group_size=COUNTS)
def test_own_rows_of_an_update_are_the_samples_of_own_prompts(
    world_size: int, steps: int, groups: int, group_size: int
) -> None:
    total = world_size * steps * groups
    everyone = [[prompt, sample] for prompt in range(total) for sample in range(group_size)]
    first_update = everyone[: len(everyone) // steps]
    for rank in range(world_size):
        partition = Partition(rank, world_size, steps)
        own = partition.own_prompts(total)
        mine = [[prompt, sample] for prompt in own for sample in range(group_size)]
        assert first_update[partition.own_rows(len(first_update))] == mine[: len(mine) // steps]


@given(total=st.integers(1, 30), world_size=st.integers(1, 7))
def test_blocks_have_one_length_and_are_the_items_in_order(total: int, world_size: int) -> None:
    blocks = [padded_block(total, rank, world_size) for rank in range(world_size)]
    assert len({len(block) for block in blocks}) == 1
    assert [item for block in blocks for item in block][:total] == list(range(total))
    assert all(0 <= item < total for block in blocks for item in block)


def test_groups_that_cannot_be_shared_evenly_are_refused_with_the_number_that_can() -> None:
    Partition(0, 2, 2).check(8)
    with pytest.raises(UserError, match=r"prompts_per_iteration=6 .* 2 processes in 2 updates") as refused:
        Partition(0, 2, 2).check(6)
    assert refused.value.hint == "Use a multiple of 4."
