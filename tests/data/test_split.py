"""The promises of the held-out split."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from customized_grpo.data.manifest import Row
from customized_grpo.data.split import HeldOut, split_by_subject, subject_of
from customized_grpo.errors import UserError


def rows(subjects: int, each: int = 3) -> list[Row]:
    return [
        Row(f"{subject}-{n}", "p", (Path("a.png"),), subject=f"s{subject}")
        for n in range(each)
        for subject in range(subjects)
    ]


@given(st.integers(3, 40), st.integers(2, 39), st.integers(0, 5))
def test_parts_are_disjoint_in_subjects_and_lose_nothing(subjects: int, count: int, seed: int) -> None:
    count = min(count, subjects - 1)
    everything = rows(subjects)
    train, held_out = split_by_subject(everything, HeldOut(count, is_percent=False), seed)
    assert {subject_of(row) for row in train}.isdisjoint({subject_of(row) for row in held_out})
    assert len({subject_of(row) for row in held_out}) == count
    assert sorted(row.id for row in (*train, *held_out)) == sorted(row.id for row in everything)
    assert train == [row for row in everything if row in train]  # in their order


def test_the_seed_decides_and_the_order_of_rows_does_not() -> None:
    chosen = [
        {subject_of(row) for row in split_by_subject(part, HeldOut.parse("5"), seed)[1]}
        for part, seed in ((rows(30), 0), (rows(30)[::-1], 0), (rows(30), 1))
    ]
    assert chosen[0] == chosen[1] != chosen[2]


def test_a_new_subject_moves_at_most_one_other() -> None:
    before = {subject_of(row) for row in split_by_subject(rows(30), HeldOut.parse("5"), 0)[1]}
    after = {subject_of(row) for row in split_by_subject(rows(31), HeldOut.parse("5"), 0)[1]}
    assert len(before - after) <= 1


def test_shares_are_rounded_up() -> None:
    assert HeldOut.parse("10%").count(25) == 3
    assert HeldOut.parse("12.5%").count(16) == 2
    assert HeldOut.parse(" 8 ").count(30) == 8


@pytest.mark.parametrize("text", ["", "some", "-1", "0.1", "0%", "100%", "8 %", "1e3"])
def test_what_is_neither_number_nor_share_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--held-out"):
        HeldOut.parse(text)


@pytest.mark.parametrize("text", ["0", "1", "10", "11", "5%"])
def test_two_subjects_are_held_out_at_least_and_one_is_left(text: str) -> None:
    with pytest.raises(UserError, match="of 10 subjects"):
        HeldOut.parse(text).count(10)


def test_rows_without_subject_are_subjects_of_their_own() -> None:
    nameless = [Row(str(n), "p", (Path("a.png"),)) for n in range(4)]
    train, held_out = split_by_subject(nameless, HeldOut.parse("2"), 0)
    assert len(train) == len(held_out) == 2
