"""The names in the config are written twice, so that it need not import torch; here they are held equal."""

from __future__ import annotations

import inspect

import pytest

from customized_grpo.algorithms.advantages import RULES
from customized_grpo.algorithms.samplers import SAMPLERS
from customized_grpo.algorithms.schedules import SCHEDULES
from customized_grpo.config.names import (
    ADVANTAGE_NAMES,
    ADVANTAGE_OPTIONS,
    RULE_ARGUMENTS,
    SAMPLER_NAMES,
    SCHEDULE_NAMES,
    SCHEDULE_OPTIONS,
)


def test_names_are_those_of_the_registries() -> None:
    assert set(ADVANTAGE_NAMES) == set(RULES)
    assert set(SCHEDULE_NAMES) == set(SCHEDULES)
    assert set(SAMPLER_NAMES) == set(SAMPLERS)


@pytest.mark.parametrize("name", ADVANTAGE_OPTIONS)
def test_options_of_rules_exist_there_with_the_same_default(name: str) -> None:
    parameters = inspect.signature(RULES[name]).parameters
    for option, default in ADVANTAGE_OPTIONS[name].items():
        assert parameters[RULE_ARGUMENTS.get(option, option)].default == default


@pytest.mark.parametrize("name", SCHEDULE_OPTIONS)
def test_options_of_schedules_exist_there_with_the_same_default(name: str) -> None:
    parameters = inspect.signature(SCHEDULES[name]).parameters
    for option, default in SCHEDULE_OPTIONS[name].items():
        assert parameters[option].default == default
