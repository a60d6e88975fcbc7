"""What a type and a range cannot say: rules about meaning, most of them over several fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from customized_grpo.config.names import ADVANTAGE_OPTIONS, SCHEDULE_OPTIONS


@dataclass(frozen=True)
class Mistake:
    """One thing wrong with a recipe."""

    path: str
    """Dotted path of the field to change, or a place in the text."""
    text: str
    """What is wrong and what would be right."""


@dataclass(frozen=True)
class Check:
    """A rule over fields, consulted only when each of them has a valid type and range."""

    fields: tuple[str, ...]
    """Dotted paths; a mistake is reported at the first."""
    problem: Callable[..., str | None]
    """Takes the values of `fields`; returns what is wrong, or None. A field under a null section is None."""


def cross_field_mistakes(values: Mapping[str, Any], broken: frozenset[str] = frozenset()) -> list[Mistake]:
    """Return every broken rule.

    Args:
        values: The whole config as nested mappings, defaults filled in where they could be.
        broken: Dotted paths already known to be wrong; rules that touch them are skipped.
    """
    mistakes = []
    for check in CHECKS:
        if any(_touches(field, path) for field in check.fields for path in broken):
            continue
        if text := check.problem(*(_value(values, field) for field in check.fields)):
            mistakes.append(Mistake(check.fields[0], text))
    return mistakes


def _touches(field: str, path: str) -> bool:
    return f"{field}.".startswith(f"{path}.")


def _value(values: Mapping[str, Any], path: str) -> Any:
    value: Any = values
    for key in path.split("."):
        if value is None:
            return None
        value = value[key]
    return value


def _folder_is_its_own(folder: Path) -> str | None:
    if folder.name not in ("", ".."):
        return None
    return f"{folder} would mix the run with other files; name a folder of its own"


def _updates_are_whole_groups(updates: int, prompts: int) -> str | None:
    if prompts % updates == 0:
        return None
    divisors = ", ".join(str(n) for n in range(1, prompts + 1) if prompts % n == 0)
    return (
        f"{updates} updates cannot share {prompts} groups (train.prompts_per_iteration) evenly; "
        f"use one of {divisors}"
    )


def _sampler_explores(sampler: str, eta: float) -> str | None:
    if sampler == "ode":
        return "'ode' draws no noise and leaves nothing to train; take a stochastic one, for example dance"
    if eta == 0:
        return f"{sampler!r} with rollout.eta=0 draws no noise and leaves nothing to train; set it above 0"
    if sampler in ("cps", "ddim") and eta > 1:
        return f"{sampler!r} needs rollout.eta of at most 1, got {eta:g}"
    return None


def _group_has_a_pull(name: str, group_size: int) -> str | None:
    if name != "sars_matched" or group_size >= 4:
        return None
    return f"'sars_matched' is known for groups of 4 and more, train.group_size is {group_size}"


def _window_fits(size: int | None, start: int | None, steps: int) -> str | None:
    if size is None or start is None or start + size <= steps - 1:
        return None
    return (
        f"a window of {size} steps from step {start} does not fit the {steps - 1} steps that can be trained "
        f"(rollout.steps={steps}, the last one draws no noise)"
    )


def _average_exists(use_ema: bool, decay: float | None) -> str | None:
    return (
        "there is no average to evaluate: set train.ema_decay, or this to false"
        if use_ema and not decay
        else None
    )


def _option_checks(section: str, options: Mapping[str, Mapping[str, float]]) -> Iterator[Check]:
    for option in sorted({option for has in options.values() for option in has}):
        users = [name for name, has in options.items() if option in has]

        def problem(value: float | None, name: str, users: list[str] = users) -> str | None:
            if value is None or name in users:
                return None
            return f"not used by {section}.name={name}, only by {', '.join(users)}; leave it out or null"

        yield Check((f"{section}.{option}", f"{section}.name"), problem)


CHECKS: tuple[Check, ...] = (
    Check(("run.dir",), _folder_is_its_own),
    Check(("train.updates_per_iteration", "train.prompts_per_iteration"), _updates_are_whole_groups),
    Check(("rollout.sampler", "rollout.eta"), _sampler_explores),
    Check(("advantage.name", "train.group_size"), _group_has_a_pull),
    Check(("rollout.sde_window.size", "rollout.sde_window.start", "rollout.steps"), _window_fits),
    Check(("evaluation.use_ema", "train.ema_decay"), _average_exists),
    *_option_checks("advantage", ADVANTAGE_OPTIONS),
    *_option_checks("schedule", SCHEDULE_OPTIONS),
)
"""Every rule."""
