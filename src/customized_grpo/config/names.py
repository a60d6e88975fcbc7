"""The names a recipe may use for rules, schedules and samplers, and the options each of them has.

Written down here rather than read from the algorithms, so that a misspelt name is refused before torch is
imported; a test holds the lists equal to the registries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

AdvantageName = Literal[
    "linear", "sum_then_normalise", "sars", "sars_no_flip", "sars_recentred", "sars_matched",
    "gdpo", "gd2po_hard", "gd2po_snr", "min", "max", "harmonic", "softplus_product", "identity_gate",
]  # fmt: skip
ScheduleName = Literal["tdw", "constant", "inverse_tdw", "shuffled_tdw", "linear", "tdw_mean"]
SamplerName = Literal["ode", "dance", "flow", "cps", "ddim", "dance_exact", "flow_exact"]

ADVANTAGE_NAMES: tuple[str, ...] = get_args(AdvantageName)
SCHEDULE_NAMES: tuple[str, ...] = get_args(ScheduleName)
SAMPLER_NAMES: tuple[str, ...] = get_args(SamplerName)

ADVANTAGE_OPTIONS: Mapping[str, Mapping[str, float]] = {
    "sars": {"gamma": 0.4},
    "sars_no_flip": {"gamma": 0.4},
    "sars_recentred": {"gamma": 0.4},
    "sars_matched": {"gamma": 0.4, "correlation": 0.0},
    "gd2po_snr": {"snr_threshold": 0.2},
    "identity_gate": {"tau": 0.7},
}
"""The options a rule has, with the defaults they get when the recipe does not say."""

RULE_ARGUMENTS: Mapping[str, str] = {"snr_threshold": "threshold"}
"""What the rule calls an option, where the config's name says more."""

SCHEDULE_OPTIONS: Mapping[str, Mapping[str, float]] = {
    "constant": {"prompt_weight": 0.5},
    "linear": {"start": 0.7, "end": 0.3},
}
"""The options a schedule has, with the defaults they get when the recipe does not say."""
