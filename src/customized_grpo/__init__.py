"""Customized-GRPO: online reinforcement learning for subject-driven image generators.

    import customized_grpo as cg

    report = cg.train("toybox", train={"iterations": 3}, run={"dir": "runs/first"})
    cg.generate("runs/first", "our toy by day", "toy.png")

A name of `__all__` is imported when it is first used, so importing the package costs nothing.
"""

import importlib
from typing import Any

__version__ = "0.2.0"

_HOMES = {
    "train": "api.verbs",
    "resume": "api.verbs",
    "evaluate": "api.verbs",
    "generate": "api.verbs",
    "compare": "api.verbs",
    "compare_runs": "api.verbs",
    "Report": "api.report",
    "load_config": "config.loading",
    "preset_names": "config.loading",
    "UserError": "errors",
    "trust": "extensions",
    "group_advantages": "algorithms.advantages",
    "valid_samples": "algorithms.advantages",
    "combine": "algorithms.rules",
    "Rule": "algorithms.rules",
    "Linear": "algorithms.rules",
    "Sars": "algorithms.rules",
    "sars_bonus": "algorithms.sars",
    "Schedule": "algorithms.schedules",
    "Tdw": "algorithms.schedules",
    "prompt_weights": "algorithms.schedules",
    "SAMPLERS": "algorithms.samplers",
    "log_prob": "algorithms.samplers",
    "policy_loss": "algorithms.objective",
}
"""The module of each public name."""

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    # kept, so that the next use does not come here again
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, also those that were not used yet."""
    return sorted({*globals(), *__all__})
