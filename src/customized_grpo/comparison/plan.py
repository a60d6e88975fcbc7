"""The runs of a comparison: every arm with every seed, each in a run folder of its own.

FOLDER/plan.json                 the plan, which a later call in the same folder must agree with
FOLDER/arms.yaml                 its arms, as `cgrpo compare --arms` reads them
FOLDER/recipes/ARM_seed_N.yaml   the recipe of each run
FOLDER/runs/ARM/seed_N/          its run folder, like any other
FOLDER/logs/ARM_seed_N.log       its output
FOLDER/votes/*.jsonl              blind votes of `cgrpo studio --vote`, if there were any
FOLDER/doctor.json, results.json, comparison.html
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from customized_grpo.comparison.arms import Arm
from customized_grpo.config import Config, diff_configs, load_config
from customized_grpo.config.yaml_text import write_yaml
from customized_grpo.errors import UserError
from customized_grpo.files import write_text
from customized_grpo.runs.folder import RunFolder, is_unused

PLAN = "plan.json"
ARMS = "arms.yaml"


@dataclass(frozen=True)
class PlannedRun:
    """One arm with one seed.

    Attributes:
        arm: Name of the arm.
        seed: Its run.seed. It decides prompts, initial noise and the noise of the steps, so the runs of one
            seed are paired over all arms.
        config: The whole recipe.
    """

    arm: str
    seed: int
    config: Config

    @property
    def name(self) -> str:
        """Return the name of its files."""
        return f"{self.arm}_seed_{self.seed}"

    @property
    def folder(self) -> RunFolder:
        """Return its run folder."""
        return RunFolder(self.config.run.dir)

    def summary(self) -> dict[str, Any] | None:
        """Return the summary of the finished run; None while it is not finished."""
        summary: dict[str, Any] | None = self.folder.read_json("summary.json")
        return summary if summary and summary.get("finished") else None


@dataclass(frozen=True)
class Plan:
    """A comparison.

    Attributes:
        recipe: Preset or file.
        overrides: Settings for all arms, "section.key=value".
        folder: Folder of the whole comparison.
        base: The recipe without an arm.
        arms: The arms to compare.
        configs: The recipe of each arm, by its name.
        seeds: Values of run.seed.
        threads: Of every run on a CPU. They change the last bits of a sum, so they belong to the plan.
        elsewhere: Arm and seed of the runs that another comparison has trained, see `joined`.
    """

    recipe: str
    overrides: Sequence[str]
    folder: Path
    base: Config
    arms: Sequence[Arm]
    configs: dict[str, Config]
    seeds: Sequence[int]
    threads: int
    elsewhere: frozenset[tuple[str, int]] = frozenset()

    @property
    def name(self) -> str:
        """Return the name of the comparison, which is the recipe's."""
        return Path(self.recipe).stem

    def runs(self) -> list[PlannedRun]:
        """Return the runs to train here, every arm of a seed before the next seed.

        So the arms can be compared as soon as the first seed is done. A run that has begun here stays in the
        list when another comparison has trained it too.
        """
        runs = []
        for seed in self.seeds:
            for arm in self.arms:
                run = self._run(arm.name, seed)
                # A run that was begun here is finished here, even if a joined file has it too.
                if (arm.name, seed) not in self.elsewhere or run.folder.path.exists():
                    runs.append(run)
        return runs

    def _run(self, arm: str, seed: int) -> PlannedRun:
        config = self.configs[arm]
        # A run that is there already is resumed; overwriting it would lose hours.
        where = {"dir": self.folder / "runs" / arm / f"seed_{seed}", "seed": seed, "overwrite": False}
        run = config.run.model_copy(update=where)
        return PlannedRun(arm, seed, config.model_copy(update={"run": run}))

    def to_json(self) -> dict[str, Any]:
        """Return the content of plan.json."""
        return {
            "name": self.name,
            "recipe": self.recipe,
            "overrides": list(self.overrides),
            "config": self.base.model_dump(mode="json"),
            "arms": [arm.model_dump(mode="json") for arm in self.arms],
            "arms_file": str(self.folder / ARMS),
            "seeds": list(self.seeds),
            "threads_per_run": self.threads,
        }


def make_plan(
    recipe: str,
    overrides: Sequence[str],
    arms: Sequence[Arm],
    seeds: Sequence[int],
    *,
    folder: Path | None,
    threads: int,
) -> Plan:
    """Resolve the recipe of every arm.

    Args:
        recipe: Preset or file.
        overrides: Settings for all arms.
        arms: The arms to compare.
        seeds: Values of run.seed.
        folder: Folder of the comparison; None means runs/compare-NAME.
        threads: Of every run on a CPU.

    Raises:
        UserError: The recipe, or one with an arm, is not valid; all bad arms are listed.
    """
    # Without any arm: what the runs of a folder must have in common.
    base = load_config(recipe, overrides)
    configs: dict[str, Config] = {}
    mistakes: list[str] = []
    for arm in arms:
        try:
            configs[arm.name] = load_config(recipe, [*overrides, *arm.settings()])
        except UserError as error:
            mistakes.append(f"arm {arm.name!r}: {error.message}")
    if mistakes:
        raise UserError("\n".join(mistakes))
    folder = folder or Path("runs") / f"compare-{Path(recipe).stem}"
    return Plan(recipe, overrides, folder, base, arms, configs, seeds, threads)


def adopt(plan: Plan) -> Plan:
    """Write the plan into its folder, together with the arms and seeds that are planned there already.

    Returns:
        The plan of all of them, which the results are about.

    Raises:
        UserError: The folder holds something else, or runs with other settings; nothing was changed.
    """
    folder = RunFolder(plan.folder)
    before = folder.read_json(PLAN)
    if before is None and not is_unused(plan.folder):
        raise UserError(
            f"{plan.folder} exists and holds no comparison", hint="Choose another folder with --out."
        )
    whole = plan if before is None else _merge(before, plan)
    folder.write_json(PLAN, whole.to_json())
    write_arms(plan.folder, whole.arms)
    return whole


def write_arms(folder: Path, arms: Sequence[Arm]) -> None:
    """Write the arms of a comparison as `cgrpo compare --arms` reads them."""
    entries = [arm.model_dump(mode="json", exclude_none=True) for arm in arms]
    write_text(folder / ARMS, write_yaml({"arms": entries}))


class _PlanFile(BaseModel):
    """What is read of plan.json."""

    config: Config
    arms: list[Arm]
    seeds: list[int]
    threads_per_run: int


def _read_plan(content: dict[str, Any], file: Path) -> _PlanFile:
    """Return a plan that was written before.

    Raises:
        UserError: It is damaged, or of a version with other settings.
    """
    try:
        # as JSON, where a strict model takes a list for a tuple and a text for a path
        return _PlanFile.model_validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{file} is damaged or of another version: {place}: {first['msg']}",
            hint="Restore it from a copy, or choose another folder with --out.",
        ) from error


def _merge(before: dict[str, Any], plan: Plan) -> Plan:
    """Return the plan with the arms and seeds of `before` added.

    Raises:
        UserError: Recipe, threads or the overrides of an arm differ.
    """
    planned_before = _read_plan(before, plan.folder / PLAN)
    # Of the folder, which may hold arms that this call does not name.
    planned_arms = planned_before.arms
    changed = different_settings(planned_before.config, planned_arms, planned_before.threads_per_run, plan)
    if changed:
        raise UserError(
            f"{plan.folder} holds a comparison with other settings:\n  " + "\n  ".join(changed),
            hint="Its runs and new ones could not be compared; choose another folder with --out.",
        )
    return make_plan(
        plan.recipe,
        plan.overrides,
        union_of_arms(planned_arms, plan.arms),
        # sorted, so that the order of the runs does not depend on that of the calls
        sorted({*planned_before.seeds, *plan.seeds}),
        folder=plan.folder,
        threads=plan.threads,
    )


def different_settings(config: Config, arms: Sequence[Arm], threads: int, plan: Plan) -> list[str]:
    """Return what keeps the runs of an earlier comparison from being compared with those of a plan.

    Args:
        config: Its recipe without an arm.
        arms: Its arms.
        threads: Of each of its runs on a CPU.
        plan: The plan.

    Returns:
        A line for each setting: what it is there, and what it is now.
    """
    changed = [
        f"{path}: {old} there, {new} now"
        for path, old, new in diff_configs(config, plan.base)
        # folder and seed of a run are the plan's
        if not path.startswith("run.")
    ]
    if threads != plan.threads:
        changed.append(f"threads of a run: {threads} there, {plan.threads} now")
    earlier = {arm.name: arm for arm in arms}
    for arm in plan.arms:
        other = earlier.get(arm.name)
        # Only arms of one name are compared: new ones may join at any time.
        if other is not None and other.overrides != arm.overrides:
            changed.append(f"arm {arm.name!r}: {other.overrides} there, {arm.overrides} now")
    return changed


def union_of_arms(earlier: Sequence[Arm], later: Sequence[Arm]) -> list[Arm]:
    """Return all arms, the earlier ones first.

    An arm loses its control when it was chosen without it (`--only`); a later call may give it back.
    """
    now = {arm.name: arm for arm in later}
    names = {arm.name for arm in earlier}
    with_controls = [arm if arm.control is not None else now.get(arm.name, arm) for arm in earlier]
    return [*with_controls, *(arm for arm in later if arm.name not in names)]
