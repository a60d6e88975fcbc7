"""Arms: named changes to one recipe, whose runs are compared.

A file of arms is YAML: `arms:` with a list of `name`, `label`, `role`, `overrides` and so on, see `Arm`. Sets
that come with the package are named by the file, for example "full".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from customized_grpo.config.yaml_text import read_yaml
from customized_grpo.errors import UserError

Role = Literal["front", "method", "control", "rival"]


class Arm(BaseModel):
    """One way to train: the recipe with some settings replaced.

    Attributes:
        name: Name of its folder and its rows.
        label: Name on pages.
        role: "front": naive GRPO at one constant weight; these arms make the front that others have to leave.
            "method": Customized-GRPO or a part of it. "control": the same without the part in question.
            "rival": another answer to the same problem.
        note: One sentence: what it changes and why it is here.
        control: Name of the arm to compare it with; None for no such comparison.
        overrides: Settings of the recipe that it replaces, {"section.key": value}.
    """

    # forbid: a misspelt `control` would silently be no comparison
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
    label: Annotated[str, Field(min_length=1, max_length=60)]
    role: Role
    note: str = ""
    control: str | None = None
    overrides: Annotated[dict[str, JsonValue], Field(min_length=1)]

    def settings(self) -> list[str]:
        """Return the overrides as `load_config` takes them, `section.key=value`."""
        # JSON is YAML on one line.
        return [f"{key}={json.dumps(value)}" for key, value in self.overrides.items()]

    @property
    def needs_calibration(self) -> bool:
        """Return whether it trains with calibrated weights and does not say from which file."""
        return self.overrides.get("schedule.name") == "calibrated" and "schedule.path" not in self.overrides


def arm_set_names() -> list[str]:
    """Return the names of the sets of arms that come with the package."""
    files = [file.name for file in _shipped().iterdir()]
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def load_arms(source: str, only: Sequence[str] = ()) -> list[Arm]:
    """Read arms and check them.

    Args:
        source: Name of a set of the package, or path of a YAML file.
        only: Names of the arms to return; empty means all. An arm whose control is left out loses it.

    Raises:
        UserError: Lists everything that is wrong.
    """
    data, yaml_mistakes = read_yaml(_read(source))
    mistakes = [f"{mistake.path}: {mistake.text}" for mistake in yaml_mistakes]
    arms: list[Arm] = []
    if not mistakes:
        arms, mistakes = _parse(data)
    # After all arms are read: a control may come later in the file than its arm.
    mistakes += _reference_mistakes(arms)
    if mistakes:
        raise UserError(f"arms {source}:\n  " + "\n  ".join(mistakes))
    names = [arm.name for arm in arms]
    unknown = [name for name in only if name not in names]
    if unknown:
        raise UserError(f"no such arm: {', '.join(unknown)}", hint=f"There are {', '.join(names)}.")
    return _without_absent_controls([arm for arm in arms if not only or arm.name in only])


def calibrated(arms: Sequence[Arm], calibration: Path | None) -> tuple[list[Arm], list[str]]:
    """Give arms of calibrated weights their file.

    Args:
        arms: Of `load_arms`.
        calibration: File by `cgrpo doctor --calibrate`; None leaves out the arms that need one.

    Returns:
        The arms, and the names of those that were left out.

    Raises:
        UserError: None would be left.
    """
    if calibration is None:
        left_out = [arm.name for arm in arms if arm.needs_calibration]
        if len(left_out) == len(arms):
            raise UserError(
                f"{', '.join(left_out)}: no calibrated weights are given",
                hint="Measure them with `cgrpo doctor RECIPE --calibrate FILE`, and add --calibration FILE.",
            )
        return _without_absent_controls([arm for arm in arms if not arm.needs_calibration]), left_out
    path = str(calibration)
    with_file = []
    for arm in arms:
        overrides = {**arm.overrides, "schedule.path": path} if arm.needs_calibration else arm.overrides
        with_file.append(arm.model_copy(update={"overrides": overrides}))
    return with_file, []


def _reference_mistakes(arms: Sequence[Arm]) -> list[str]:
    """Return names that are given twice and controls that are no other arm."""
    names = [arm.name for arm in arms]
    twice = sorted({name for name in names if names.count(name) > 1})
    mistakes = [f"arm {name!r}: the name is given twice" for name in twice]
    for arm in arms:
        # An arm is no control of itself.
        if arm.control is not None and (arm.control not in names or arm.control == arm.name):
            mistakes.append(f"arm {arm.name!r}: its control {arm.control!r} is no other arm of the file")
    return mistakes


def _parse(data: Any) -> tuple[list[Arm], list[str]]:
    """Return the arms of a file, and what is wrong with it."""
    items = data.get("arms") if isinstance(data, dict) else None
    if not isinstance(items, list) or not items or set(data) != {"arms"}:
        return [], ['write "arms:" and under it a list of arms, and nothing else']
    arms: list[Arm] = []
    mistakes: list[str] = []
    for number, item in enumerate(items):
        try:
            arms.append(Arm.model_validate(item))
        except ValidationError as error:
            name = item.get("name", number) if isinstance(item, dict) else number
            for detail in error.errors():
                place = ".".join(map(str, detail["loc"])) or "arm"
                mistakes.append(f"arm {name!r}: {place}: {detail['msg']}")
    return arms, mistakes


def _without_absent_controls(arms: Sequence[Arm]) -> list[Arm]:
    # Without its control an arm is still trained, and compared with the front alone.
    names = {arm.name for arm in arms}
    return [arm if arm.control in names else arm.model_copy(update={"control": None}) for arm in arms]


def _read(source: str) -> str:
    shipped = _shipped() / f"{source}.yaml"
    path: Path | Traversable = shipped if source in arm_set_names() else Path(source)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read arms {source!r}: {error}",
            hint=f"Give a YAML file, or one of {', '.join(arm_set_names())}.",
        ) from error


def _shipped() -> Traversable:
    return resources.files("customized_grpo.comparison") / "arms"
