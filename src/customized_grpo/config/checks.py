"""What a type and a range cannot say: rules about meaning, most of them over several fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from customized_grpo import extensions
from customized_grpo.config.training import TrainConfig
from customized_grpo.fields import read_section


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
        values: The config as nested mappings, defaults filled in where they could be; sections without
            defaults may be left out, and then their rules are skipped.
        broken: Dotted paths already known to be wrong; rules that touch them are skipped.
    """
    mistakes = []
    for check in CHECKS:
        # A section that could not be read at all is not among the values.
        is_left_out = any(field.split(".")[0] not in values for field in check.fields)
        if is_left_out or _is_broken(check, broken):
            continue
        arguments = [_value(values, field) for field in check.fields]
        text = check.problem(*arguments)
        if text is not None:
            mistakes.append(Mistake(check.fields[0], text))
    return mistakes


def _is_broken(check: Check, broken: frozenset[str]) -> bool:
    """Return whether a field of the check, or a section it is in, is already known to be wrong."""
    for field in check.fields:
        # with the dot: `run.di` is no section of `run.dir`
        if any(f"{field}.".startswith(f"{path}.") for path in broken):
            return True
    return False


def _value(values: Mapping[str, Any], path: str) -> Any:
    value: Any = values
    for key in path.split("."):
        # a section that is null has no fields: the check gets None for each of them
        if value is None:
            return None
        value = value[key]
    return value


def _folder_is_its_own(folder: Path) -> str | None:
    # of `.`, `/` and `..`, the last part is no name of a folder
    if folder.name not in ("", ".."):
        return None
    return f"{folder} would mix the run with other files; name a folder of its own"


def _repeats(deterministic: bool, compiled: bool) -> str | None:
    if not (deterministic and compiled):
        return None
    return "compiled blocks choose their kernels by timing, so that runs differ; set model.compile=false"


def _updates_are_whole_groups(updates: int, prompts: int) -> str | None:
    if prompts % updates == 0:
        return None
    # what would do is named, so that nobody has to try
    divisors = ", ".join(str(n) for n in range(1, prompts + 1) if prompts % n == 0)
    return (
        f"{updates} updates cannot share {prompts} groups (train.prompts_per_iteration) evenly; "
        f"use one of {divisors}"
    )


def _sampler_explores(name: str, eta: float, algorithm: str, shared_noise: bool) -> str | None:
    sampler = extensions.load("sampler", name)
    # first: with the other message a user would set rollout.eta=0, only to be refused again
    if algorithm == "grpo" and sampler.max_eta == 0:
        return f"{name!r} draws no noise and leaves nothing to train; use a stochastic one, for example dance"
    if eta > sampler.max_eta:
        return f"{name!r} needs rollout.eta of at most {sampler.max_eta:g}, got {eta:g}"
    if algorithm != "grpo":
        return _samples_differ(name, eta, shared_noise)
    if eta == 0:
        return f"{name!r} with rollout.eta=0 draws no noise and leaves nothing to train; set it above 0"
    return None


def _sampler_works(name: str, eta: float) -> str | None:
    from customized_grpo.algorithms.samplers import Transition
    from customized_grpo.algorithms.trials import check_sampler

    sampler: Transition = extensions.load("sampler", name)
    if not 0 < eta <= sampler.max_eta:  # no noise is drawn, or that is said already
        return None
    try:
        check_sampler(sampler, eta)
    except ValueError as error:
        return f"{name!r} {error}"
    return None


def _samples_differ(name: str, eta: float, shared_noise: bool) -> str | None:
    """Return what is wrong where only the initial noise tells the samples of a group apart, and it is one."""
    if eta > 0 or not shared_noise:
        return None
    return (
        f"{name!r} with rollout.eta=0 draws no noise, and rollout.shared_noise gives a group one initial "
        "noise: its samples would be equal; set rollout.shared_noise=false"
    )


def _only_of(name: str, owners: str, instead: str) -> Check:
    """Return the check that a setting which other algorithms ignore is left alone under them.

    Args:
        name: Name of the setting in `train`.
        owners: The algorithms that use it, separated by a blank.
        instead: What the others have in its place.
    """
    default = TrainConfig().model_dump()[name]

    def problem(value: Any, algorithm: str) -> str | None:
        # A resolved recipe spells out every default: only a changed value is a mistake.
        if algorithm in owners.split() or value == default:
            return None
        users = owners.replace(" ", " or ")
        return f"has no effect with train.algorithm={algorithm}, only with {users}; {instead}"

    return Check((f"train.{name}", "train.algorithm"), problem)


def _window_has_steps(window: Any, algorithm: str) -> str | None:
    if window is None or algorithm == "grpo":
        return None
    return (
        f"has no effect with train.algorithm={algorithm}, which trains noise levels and no steps; "
        "set it to null"
    )


def _old_policy_exists(reference: str, algorithm: str) -> str | None:
    if reference != "old" or algorithm != "grpo":
        return None
    return "grpo has no old policy, only nft and awm have; use base or start"


def _groups_may_differ(dynamic_sampling: Any, shard: bool) -> str | None:
    if dynamic_sampling is None or not shard:
        return None
    return (
        "some processes would draw more groups than others, and with model.shard=true all must call the "
        "model equally often; set it to null, or model.shard=false"
    )


def _rule_works(name: str, options: Mapping[str, Any], group_size: int) -> str | None:
    from customized_grpo.algorithms.rules import Rule
    from customized_grpo.algorithms.trials import check_rule

    try:
        rule: type[Rule] = extensions.load("rule", name)
        check_rule(read_section(rule, options), group_size)
    except ValueError as error:
        return f"{name!r} {error}"
    return None


def _schedule_works(
    name: str,
    options: Mapping[str, Any],
    steps: int,
    sampler: str,
    eta: float,
    window: Mapping[str, int] | None,
) -> str | None:
    from customized_grpo.algorithms.schedules import Schedule
    from customized_grpo.algorithms.trials import check_schedule

    try:
        schedule_class: type[Schedule] = extensions.load("schedule", name)
        schedule = read_section(schedule_class, options)
        schedule.check_rollout(steps, sampler, eta, _ever_noisy(steps, window))
        check_schedule(schedule, steps)
    except ValueError as error:
        return f"{name!r} {error} (rollout.steps={steps})"
    return None


def _ever_noisy(steps: int, window: Mapping[str, int] | None) -> range:
    """Return the steps that draw noise at some time of a training, however long."""
    if window is None:
        # the last step never draws noise
        return range(steps - 1)
    # A window that moves reaches every step in the end.
    last = steps - 1 if window["shift_every"] else window["start"] + window["size"]
    return range(window["start"], min(last, steps - 1))


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


def _average_is_warmed(warmup: bool, decay: float | None) -> str | None:
    return "there is no average: set train.ema_decay, or this to false" if warmup and not decay else None


def _reference_is_another(reference: str, start: str | None, weight: float) -> str | None:
    if reference == "base":
        return None
    if reference == "start" and start is None:
        return "training starts from the base itself: set model.start_lora, or this to base"
    if weight == 0:
        return "there is no KL divergence to measure from it: set train.kl_weight, or this to base"
    return None


def _drawn_images_have_masks(
    rewards: Sequence[Mapping[str, Any]], segmenter: Mapping[str, Any] | None
) -> str | None:
    names = [reward["name"] for reward in rewards if _looks_for_subjects(reward)]
    if not names or segmenter is not None:
        return None
    return (
        f"segment: both or options.match ({', '.join(names)}) needs masks of the images that are drawn: set "
        "segmenter={}, which finds subjects by words; or use segment: reference, as Customized-GRPO does"
    )


def _looks_for_subjects(reward: Mapping[str, Any]) -> bool:
    return bool(reward["segment"] == "both" or reward["options"].get("match"))


def _masks_are_used(
    segmenter: Mapping[str, Any] | None, rewards: Sequence[Any], judges: Sequence[Any]
) -> str | None:
    if segmenter is None or any(map(_looks_for_subjects, (*rewards, *judges))):
        return None
    return "no reward or judge has segment: both or options.match, which need it; leave it out"


def _prompts_are_needed(prompts: Path | None, data: Mapping[str, Any]) -> str | None:
    if prompts is None:
        return None
    if data["kind"] != "manifest":
        return f"data.kind={data['kind']} holds out rows of its own; leave this out"
    if data["held_out"] is not None:
        return "data.held_out has rows to evaluate on already: add yours to that file, or set it to null"
    return None


def _best_is_measured(best: str | None, prompts: Path | None, data: Mapping[str, Any]) -> str | None:
    if best is None or data["kind"] != "manifest" or data["held_out"] is not None or prompts is not None:
        return None
    return "nothing is evaluated that could be best: set data.held_out or evaluation.prompts"


def _judges_have_rows(judges: Sequence[Any], prompts: Path | None, data: Mapping[str, Any]) -> str | None:
    has_rows = data["kind"] != "manifest" or data["held_out"] is not None or prompts is not None
    if not judges or has_rows:
        return None
    return "there are no rows to judge: set data.held_out or evaluation.prompts, or leave the judges out"


CHECKS: tuple[Check, ...] = (
    Check(("run.dir",), _folder_is_its_own),
    Check(("run.deterministic", "model.compile"), _repeats),
    Check(("train.updates_per_iteration", "train.prompts_per_iteration"), _updates_are_whole_groups),
    Check(("rollout.sampler", "rollout.eta", "train.algorithm", "rollout.shared_noise"), _sampler_explores),
    Check(("rollout.sampler", "rollout.eta"), _sampler_works),
    _only_of("clip_range", "grpo", "awm has train.awm.clip_range, nft clips no ratio"),
    _only_of("ratio_normalisation", "grpo", "leave it out"),
    _only_of("trained_fraction", "grpo", "train.forward.levels says how much is trained"),
    _only_of("forward", "nft awm", "leave it out"),
    _only_of("nft", "nft", "leave it out"),
    _only_of("awm", "awm", "leave it out"),
    Check(("rollout.sde_window", "train.algorithm"), _window_has_steps),
    Check(("train.kl_reference", "train.algorithm"), _old_policy_exists),
    Check(("train.dynamic_sampling", "model.shard"), _groups_may_differ),
    Check(("advantage.name", "advantage.options", "train.group_size"), _rule_works),
    Check(
        (
            "schedule.name",
            "schedule.options",
            "rollout.steps",
            "rollout.sampler",
            "rollout.eta",
            "rollout.sde_window",
        ),
        _schedule_works,
    ),
    Check(("rollout.sde_window.size", "rollout.sde_window.start", "rollout.steps"), _window_fits),
    Check(("evaluation.use_ema", "train.ema_decay"), _average_exists),
    Check(("train.ema_warmup", "train.ema_decay"), _average_is_warmed),
    Check(("train.kl_reference", "model.start_lora", "train.kl_weight"), _reference_is_another),
    Check(("rewards", "segmenter"), _drawn_images_have_masks),
    Check(("evaluation.judges", "segmenter"), _drawn_images_have_masks),
    Check(("segmenter", "rewards", "evaluation.judges"), _masks_are_used),
    Check(("evaluation.judges", "evaluation.prompts", "data"), _judges_have_rows),
    Check(("evaluation.prompts", "data"), _prompts_are_needed),
    Check(("checkpoint.best", "evaluation.prompts", "data"), _best_is_measured),
)
"""Every rule."""
