from __future__ import annotations

import pytest
import torch

from customized_grpo.toybox.prompts import to_prompt
from customized_grpo.toybox.render import render
from customized_grpo.toybox.source import ToyBoxSource
from toybox_grammar import attributes, parse_prompt


def test_a_row_is_a_function_of_seed_split_and_index() -> None:
    first, again = ToyBoxSource(4, 3, 7, "train")[5], ToyBoxSource(4, 3, 7, "train")[5]
    assert (first.id, first.prompt, first.subject) == (again.id, again.prompt, again.subject)
    assert first.target is not None and again.target is not None and first.masks and again.masks
    assert torch.equal(first.references[0], again.references[0])
    assert torch.equal(first.target, again.target) and torch.equal(first.masks[0], again.masks[0])
    assert not torch.equal(first.references[0], ToyBoxSource(4, 3, 8, "train")[5].references[0])


@pytest.mark.parametrize("other", [ToyBoxSource(500, 4, 0, "held-out"), ToyBoxSource(500, 4, 1, "train")])
def test_splits_and_worlds_share_no_subject_and_no_scene(other: ToyBoxSource) -> None:
    train = ToyBoxSource(500, 4, 0, "train")
    toys = [{source.toy(i) for i in range(500)} for source in (train, other)]
    scenes = [{scene for i in range(2000) for scene in source.scenes(i)} for source in (train, other)]
    assert [len(part) for part in (*toys, *scenes)] == [500, 500, 6000, 6000]
    assert not toys[0] & toys[1]
    assert not scenes[0] & scenes[1]


def test_consecutive_rows_are_about_different_subjects_each_asked_equally_often() -> None:
    source = ToyBoxSource(5, 3, 0, "train")
    rows = [source.toy(i) for i in range(len(source))]
    assert len(rows) == 15
    assert all(rows[i] != rows[i + 1] for i in range(14))
    assert {rows.count(toy) for toy in rows} == {3}
    assert source[2].subject == source[7].subject != source[3].subject
    assert len({source[i].id for i in range(15)}) == 15


def test_a_row_shows_one_toy_as_its_scenes_and_prompt_say() -> None:
    source = ToyBoxSource(3, 2, 0, "train")
    row, toy = source[4], source.toy(4)
    drawn, masks = render([(toy, row.meta["reference_scene"]), (toy, row.meta["scene"])])
    assert row.target is not None and row.masks is not None
    torch.testing.assert_close(row.references[0], torch.from_numpy(drawn[0]), rtol=0, atol=0)
    torch.testing.assert_close(row.masks[0], torch.from_numpy(masks[0]), rtol=0, atol=0)
    torch.testing.assert_close(row.target, torch.from_numpy(drawn[1]), rtol=0, atol=0)
    assert attributes(parse_prompt(row.prompt)) == attributes(row.meta["scene"])
    assert row.meta["emblem"] == toy.emblem
    assert not torch.equal(row.meta["other_view"], row.target)


def test_the_prompt_asks_for_another_scene_than_the_references() -> None:
    source = ToyBoxSource(50, 1, 0, "train")
    for index in range(50):
        reference, prompted, _ = source.scenes(index)
        for name in ("prop", "prop_colour", "floor_colour", "sky"):
            assert getattr(reference, name) != getattr(prompted, name)


def test_prompts_are_worded_in_many_ways() -> None:
    source = ToyBoxSource(40, 1, 0, "train")
    canonical = [to_prompt(source.scenes(i)[1]) == source[i].prompt for i in range(40)]
    assert sum(canonical) < 10


@pytest.mark.parametrize("index", [-1, 6])
def test_a_row_that_is_not_there_is_an_index_error(index: int) -> None:
    with pytest.raises(IndexError):
        ToyBoxSource(3, 2, 0, "train")[index]
