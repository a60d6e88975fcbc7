"""What a run says of its recipe before it begins."""

from __future__ import annotations

import pytest

from customized_grpo.algorithms.rules import RULES
from customized_grpo.training.notes import MEAN_LIMIT, mean_of_opposites


@pytest.mark.parametrize(
    ("rule", "is_centred"),
    [
        ("sars", False),
        ("min", False),
        ("max", False),
        ("linear", True),
        ("sars_recentred", True),
        ("gdpo", True),
    ],
)
def test_rules_whose_groups_have_a_mean_are_known(rule: str, is_centred: bool) -> None:
    mean = mean_of_opposites(RULES[rule](), 12)
    assert (abs(mean) < MEAN_LIMIT) == is_centred
    assert mean < -0.1 or rule != "sars", "conflict is penalised, so all of the group is"
