"""`cgrpo compare`: check the recipe, train the missing runs, write results and page after each of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from customized_grpo.comparison.analysis import analyse
from customized_grpo.comparison.definitions import DEFINITIONS
from customized_grpo.comparison.joined import read_joined
from customized_grpo.comparison.plan import Plan, adopt, union_of_arms, write_arms
from customized_grpo.comparison.results import collect
from customized_grpo.comparison.runner import Runner, slots
from customized_grpo.comparison.verdicts import verdicts
from customized_grpo.config import dump_config
from customized_grpo.engine.interrupts import Interrupted, StopFlag
from customized_grpo.errors import UserError
from customized_grpo.files import write_text
from customized_grpo.links import check_folders_stay_inside
from customized_grpo.pages.comparison_page import write_comparison_page
from customized_grpo.pages.votes import votes_of_comparison
from customized_grpo.policies.loading import pick_device
from customized_grpo.reporting.lines import fitted
from customized_grpo.runs.folder import RunFolder

RESULTS = "results.json"
PAGE = "comparison.html"
DOCTOR = "doctor.json"


def run_comparison(
    plan: Plan, *, jobs: int | None, examine: bool, train: bool, also: Sequence[Path] = ()
) -> int:
    """Run a plan and return the exit status: 0, or 128 plus the number of a signal.

    Args:
        plan: The runs to do; its folder may hold more arms and seeds, and all of them are reported.
        jobs: Runs side by side; None means one per GPU, or as many as the cores have room for.
        examine: Whether `cgrpo doctor` examines the recipe first, unless it already has.
        train: False trains nothing and writes the page of the runs that are there.
        also: results.json of other comparisons of the recipe; their runs count as done.

    Raises:
        UserError: The folder belongs to another comparison, results of `also` do not fit, the recipe is not
            healthy, or runs failed.
    """
    joined = read_joined(plan.folder, also)
    joined.check(plan)
    # `plan` is what this call trains; `whole` also what the folder held before.
    plan = replace(plan, elsewhere=joined.done)
    whole = replace(adopt(plan), elsewhere=joined.done)
    joined.check(whole)  # with arms of earlier calls
    # The copies let a later call, and the page, do without the files of --also.
    joined.keep(plan.folder)
    write_arms(plan.folder, union_of_arms(whole.arms, joined.arms))
    if train:
        check_folders_stay_inside(plan.folder)
        environments = _environments(plan, jobs)
        if examine and not (plan.folder / DOCTOR).is_file():
            _examine(plan, environments[0])
        with StopFlag() as stop:
            try:
                # The page is written again after every run: it is worth reading before the last one ends.
                Runner(plan, environments, on_message=_print, on_finished=lambda: write(whole)).run(stop)
            except Interrupted as signal:
                _print("interrupted; call the same command to go on")
                return signal.status
    results = write(whole)
    print(fitted("\n".join(results["analysis"]["verdicts"])))
    print(f"page: {plan.folder / PAGE}")
    return 0


def write(plan: Plan) -> dict[str, Any]:
    """Write results.json and the page from the run folders and joined results, and return the results."""
    folder = RunFolder(plan.folder)
    results = collect(plan, read_joined(plan.folder))
    analysis = analyse(results["arms"], results["runs"])
    results["definitions"] = list(DEFINITIONS)
    results["analysis"] = {**analysis, "verdicts": verdicts(results["arms"], results["runs"], analysis)}
    examination = folder.read_json(DOCTOR)
    if examination is not None:
        try:
            results["decisions"] = examination["decisions"]
        except KeyError as error:
            raise UserError(
                f"{plan.folder / DOCTOR} is damaged: {error!r}", hint="Remove it; it is made again."
            ) from error
    results["votes"] = votes_of_comparison(plan.folder)
    folder.write_json(RESULTS, results)
    folders = {(run.arm, run.seed): run.folder.path for run in plan.runs()}
    write_comparison_page(results, plan.folder / PAGE, folders)
    return results


def _examine(plan: Plan, environment: Mapping[str, str]) -> None:
    """Examine the recipe with `cgrpo doctor` once, before hours are spent on it.

    Raises:
        UserError: The doctor found a problem and printed it.
    """
    recipe = plan.folder / "recipes" / "base.yaml"
    recipe.parent.mkdir(exist_ok=True)
    write_text(recipe, dump_config(plan.base))
    command = [sys.executable, "-m", "customized_grpo", "doctor", str(recipe)]
    # a process of its own, because the number of threads is read when torch is imported
    done = subprocess.run(
        [*command, "--json", str(plan.folder / DOCTOR)], env={**os.environ, **environment}, check=False
    )
    if done.returncode:
        raise UserError(
            "the recipe is not healthy, see above; nothing was trained",
            hint="Change the recipe, or skip the examination with --no-doctor.",
        )


def _environments(plan: Plan, jobs: int | None) -> list[dict[str, str]]:
    """Return the environment of every slot, for the device of the recipe."""
    if pick_device(plan.base.model.device).type == "cuda":
        import torch

        gpus = torch.cuda.device_count()
        return slots(jobs or gpus, plan.threads, gpus)
    # what this process may use; in a container cpu_count is that of the machine
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return slots(jobs or max(1, cores // plan.threads), plan.threads, 0)


def _print(line: str) -> None:
    print(f"{datetime.now():%H:%M:%S} {line}", flush=True)
