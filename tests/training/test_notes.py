"""What a run says of its recipe before it begins."""

from __future__ import annotations

import pytest
import torch

from customized_grpo.algorithms.rules import RULES
from customized_grpo.config import load_config
from customized_grpo.training.notes import MEAN_LIMIT, idle_attention, mean_of_opposites


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


@pytest.mark.parametrize(
    ("overrides", "device", "said"),
    [
        (["train.attention_gradients=fp32", "model.precision=bf16"], "cpu", None),
        (["train.attention_gradients=fp32", "model.precision=bf16"], "cuda:0", "this runs on cuda:0"),
        (["train.attention_gradients=fp32", "model.precision=fp32"], "cpu", "model.precision=fp32 has it"),
        (["model.precision=fp32"], "cuda:0", None),
    ],
)
def test_attention_in_fp32_is_said_where_it_changes_nothing(
    overrides: list[str], device: str, said: str | None
) -> None:
    sentences = idle_attention(load_config("toybox", overrides), torch.device(device))
    assert len(sentences) == (said is not None)
    assert said is None or said in sentences[0]
