from __future__ import annotations

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

from customized_grpo.errors import UserError
from customized_grpo.policies.noise_levels import shifted_levels

LEVELS = np.linspace(1.0, 0.25, 4)


def test_levels_are_shifted_by_the_odds_and_end_in_0() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    sigmas = shifted_levels(scheduler, LEVELS, np.log(3.0))
    # odds of 3/4, 1/2 and 1/4 times 3: 9, 3 and 1
    assert sigmas.tolist() == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])


@pytest.mark.parametrize("mu", [30.0, 1000.0, -1000.0])
def test_a_shift_that_leaves_no_levels_is_refused(mu: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    with pytest.raises(UserError, match=f"model.mu={mu:g} is too large a shift"):
        shifted_levels(scheduler, LEVELS, mu)
