from __future__ import annotations

import torch

from customized_grpo.two_scale import world
from customized_grpo.two_scale.judging import TwoScaleJudges
from customized_grpo.two_scale.source import rows


def test_training_and_held_out_rows_share_no_toy_but_all_scenes_and_patterns() -> None:
    train = rows(held_out=False)
    held_out = rows(held_out=True)
    toys = [{row.subject for row in split} for split in (train, held_out)]
    assert [len(train), len(held_out)] == [294, 98]
    assert [len(names) for names in toys] == [42, 14]
    assert not toys[0] & toys[1]
    for split in (train, held_out):
        assert {row.meta["pattern"] for row in split} == set(range(1, 8))
        assert {row.meta["photographed"] for row in split} == set(range(8))
        assert all(row.meta["prompted"] != row.meta["photographed"] for row in split)


def test_the_judges_know_targets_copies_and_plain_toys() -> None:
    examples = rows(held_out=True)[:5]
    targets = torch.stack([row.target for row in examples if row.target is not None])
    references = torch.stack([row.references[0] for row in examples])
    prompted = torch.tensor([row.meta["prompted"] for row in examples])
    plain = world.enlarge(world.latents(prompted, torch.zeros(5, dtype=torch.long))) / 2 + 0.5
    expected = {"target": (1, 1, 0, 1, 0), "copy": (0, 1, 1, 0, 1), "plain": (1, 0, 0, 0, 0)}
    names = ("judge/prompt", "judge/identity", "monitor/copy_score", "mode/good", "mode/copied")
    for name, images in {"target": targets, "copy": references, "plain": plain}.items():
        columns = TwoScaleJudges().columns(images, examples)
        assert tuple(float(columns[column].mean()) for column in names) == expected[name], name
        modes = [values for column, values in columns.items() if column.startswith("mode/")]
        assert torch.stack(modes).sum(0).tolist() == [1.0] * 5
