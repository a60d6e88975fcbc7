"""Calibrated weights: the file that the doctor writes, and the checks of a recipe that names one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from torch import Tensor

from customized_grpo import __version__
from customized_grpo.algorithms.calibration import KEY, Calibration
from customized_grpo.algorithms.schedules import Calibrated
from customized_grpo.config import config_hash
from customized_grpo.errors import UserError
from customized_grpo.evaluation.decisions import Decisions
from customized_grpo.evaluation.held_out import Judges
from customized_grpo.evaluation.judges import RewardJudges
from customized_grpo.kinds import PAIR
from customized_grpo.policies.base_files import fingerprint_base
from customized_grpo.policies.provenance import public_lora
from customized_grpo.training.parts import Parts

if TYPE_CHECKING:
    from customized_grpo.config import Config
    from customized_grpo.config.schema import ModelConfig
    from customized_grpo.data.examples import Example


def refuse_calibration(config: Config) -> None:
    """Refuse a recipe whose weights cannot be calibrated, before anything is loaded.

    Raises:
        UserError: Its noise window moves, as a measurement is of one window; or no step draws noise.
    """
    if config.rollout.eta == 0:
        raise UserError(
            "--calibrate: with rollout.eta=0 the steps draw no noise, so all continuations are the same",
            hint="Measure with a sampler that draws noise: rollout.sampler=dance rollout.eta=0.4.",
        )
    window = config.rollout.sde_window
    if window is not None and window.shift_every:
        raise UserError(
            "--calibrate: rollout.sde_window moves, and one measurement is of one window",
            hint="Measure with noise in all steps, rollout.sde_window=null: the file then fits this recipe.",
        )


def calibration_file(
    parts: Parts, recipe: str, decisions: Decisions, examples: Sequence[Example], judges: Judges | None
) -> dict[str, Any] | None:
    """Return the content of a file for the schedule `calibrated`; None where nothing could be calibrated.

    Args:
        parts: The parts of a run.
        recipe: The recipe with its overrides, in words.
        decisions: What was measured with them.
        examples: The prompts of which it was measured.
        judges: The judges with which it was measured.
    """
    calibrated = decisions.calibrated
    if calibrated is None:
        return None
    config = parts.config
    calibration = Calibration(
        prompt_weights=tuple(calibrated.weights),
        sampler=config.rollout.sampler,
        eta=config.rollout.eta,
        sigmas=tuple(decisions.sigmas),
        noisy_steps=tuple(decisions.noisy_steps),
        # One digest to compare with; the files one by one are in the provenance, for people.
        base=base_fingerprint(config.model),
        guidance=config.model.guidance,
    )
    scores = {kind: f"{calibrated.source}/{kind}" for kind in PAIR}
    return {
        KEY: calibration.model_dump(mode="json"),
        "interval": {"low": calibrated.low, "high": calibrated.high, "level": 0.95},
        "decisions": {kind: decisions.to_json()["curves"][score] for kind, score in scores.items()},
        "provenance": {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "customized_grpo": __version__,
            "recipe": recipe,
            "recipe_hash": config_hash(config),
            "base": {"family": config.model.family, "path": config.model.path, **_base_files(config.model)},
            "scores": scores,
            "judges": _judges(judges),
            "rewards": parts.scorer.fingerprints(),
            "seed": config.run.seed,
            "prompts": [example.id for example in examples],
            "continuations": decisions.continuations,
            "points": decisions.points,
        },
    }


def _base_files(model: ModelConfig) -> dict[str, Any]:
    loras = [public_lora(lora).model_dump() for lora in model.fuse_lora]
    return {"fuse_lora": loras, "guidance": model.guidance, "files": fingerprint_base(model)}


def _judges(judges: Judges | None) -> list[dict[str, Any]]:
    """Return the fingerprints of judges; those that a data source brings are named by their class."""
    if judges is None:
        return []
    if isinstance(judges, RewardJudges):
        return judges.fingerprints()
    return [{"name": f"{type(judges).__module__}.{type(judges).__qualname__}"}]


def base_fingerprint(model: ModelConfig) -> str | None:
    """Return one digest of all files of a base that has been loaded; None where they are not known."""
    files = fingerprint_base(model)
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest() if files else None


def check_calibration(config: Config, sigmas: Tensor) -> None:
    """Refuse measured weights of another shift, guidance or base; other schedules pass.

    What the recipe alone says (steps, sampler, eta) was compared when it was read.

    Args:
        config: The recipe, whose base has been loaded.
        sigmas: Noise levels of its rollouts [T + 1].

    Raises:
        UserError: Names what differs.
    """
    schedule = config.schedule.build()
    if not isinstance(schedule, Calibrated) or schedule.measured is None:
        return
    again = f"Measure them for this recipe: cgrpo doctor RECIPE schedule.name=tdw --calibrate {schedule.path}"
    # mu and the size of images move all levels: the measured steps would be at other noise.
    levels = schedule.measured.other_levels(sigmas.tolist())
    if levels is not None:
        raise UserError(
            f"schedule.path: the weights of {schedule.path} were measured with {levels}",
            hint=f"{again}, or set model.mu and the size of images as they were.",
        )
    guidance = schedule.measured.guidance
    if guidance is not None and guidance != config.model.guidance:
        raise UserError(
            f"schedule.path: the weights of {schedule.path} were measured with model.guidance {guidance:g}, "
            f"not {config.model.guidance:g}",
            hint=f"{again}.",
        )
    # None, where nothing is known, is no mistake: `calibration_notes` says it
    if schedule.any_base or other_base(schedule, config.model) is not True:
        return
    raise UserError(
        f"schedule.path: the weights of {schedule.path} were measured on another base",
        hint=f"{again}, or set schedule.any_base=true to use them all the same.",
    )


def other_base(schedule: Calibrated, model: ModelConfig) -> bool | None:
    """Return whether weights were measured on another base; None where the files of one are not known."""
    assert schedule.measured is not None, "read when it was validated"
    now = base_fingerprint(model)
    if now is None or schedule.measured.base is None:
        return None
    return now != schedule.measured.base


def calibration_notes(config: Config) -> list[tuple[str, str]]:
    """Return (name of the event, sentence) of what could not be compared, or differs and is allowed."""
    schedule = config.schedule.build()
    if not isinstance(schedule, Calibrated):
        return []
    other = other_base(schedule, config.model)
    if other is None:
        text = "whether they were measured on this base could not be checked: its files are not known"
    elif other:
        text = "they were measured on another base, as schedule.any_base allows"
    else:
        return []
    return [("calibration", f"the weights of {schedule.path}: {text}")]
