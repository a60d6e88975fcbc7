"""Train, resume, evaluate, generate and compare from Python.

Each function checks its arguments as the command line does and raises `UserError`, whose message says what to
change. They work in a notebook, in a thread, beside a running event loop, and several times in one process.
In the main thread Ctrl-C saves the run and ends the call, as on the command line; in another thread no signal
arrives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from customized_grpo.api.report import Report
from customized_grpo.api.settings import overrides as as_overrides
from customized_grpo.config import load_config
from customized_grpo.errors import UserError
from customized_grpo.libraries import quiet_imports, undisturbed_imports
from customized_grpo.runs.folder import is_run_folder


def train(recipe: str | Path, /, **settings: Any) -> Report:
    """Train a new run, and return its report.

    For example: `train("toybox", train={"iterations": 3}, run={"dir": "runs/first"})`, or with dotted keys,
    `train("toybox", **{"train.iterations": 3})`.

    Args:
        recipe: Preset, or path of a YAML file.
        settings: Settings that replace the recipe's, by dotted key or by section.

    Returns:
        The report; `is_finished` is False if Ctrl-C or a signal stopped the run, which is then saved.

    Raises:
        UserError: A mistake that the user can fix; nothing is lost.
    """
    config = load_config(str(recipe), as_overrides(settings))
    with quiet_imports(), undisturbed_imports():
        from customized_grpo.training.trainer import train as run

    run(config)
    return Report(config.run.dir)


def resume(
    run: str | Path, /, *, step: int | None = None, allow_change: Sequence[str] = (), **settings: Any
) -> Report:
    """Continue a run exactly where it stopped, or for longer, and return its report.

    Args:
        run: Folder of the run.
        step: Iteration to go back to; later checkpoints are set aside. None: the newest.
        allow_change: Keys or sections that may differ from the checkpoint.
        settings: As in `train`, such as `train={"iterations": 400}`.

    Raises:
        UserError: There is nothing to continue, or it is not the same run any more.
    """
    folder = _run_folder(run)
    changes = as_overrides(settings)
    with quiet_imports(), undisturbed_imports():
        from customized_grpo.training.trainer import resume as continue_run

    continue_run(folder, step, overrides=changes, allowed=allow_change)
    return Report(folder)


def evaluate(
    run: str | Path, /, *, samples_per_prompt: int | None = None, seed: int | None = None
) -> dict[str, dict[str, dict[str, float]]]:
    """Judge base and tuned model on a run's held-out prompts, from the same noise.

    Args:
        run: Folder of the run.
        samples_per_prompt: Images of each prompt; None: the recipe's number.
        seed: Seed of the initial noise; None: the recipe's.

    Returns:
        {"base", "tuned", "difference"}, each {measure: {"mean", "low", "high"}} with 95 % intervals clustered
        by subject. The run's folder gets evaluation.json.

    Raises:
        UserError: The folder has no checkpoint, or its recipe holds out no rows.
    """
    folder = _run_folder(run)
    with quiet_imports(), undisturbed_imports():
        from customized_grpo.training.evaluate import evaluate as evaluate_run
        from customized_grpo.training.evaluate import write_evaluation

    result = evaluate_run(folder, samples_per_prompt=samples_per_prompt, seed=seed)
    write_evaluation(folder, result)
    return result


def generate(
    source: str | Path,
    prompts: str | Sequence[str],
    references: str | Path | Sequence[str | Path],
    *,
    masks: Sequence[str | Path] = (),
    count: int = 1,
    seed: int = 0,
    lora: str | Path | None = None,
    base: bool = False,
    checkpoint: int | Literal["best"] | None = None,
    grid: bool = False,
    out: str | Path = "generated",
    **settings: Any,
) -> list[Path]:
    """Draw images of a subject, and return their files.

    Args:
        source: Folder of a run, "toybox", a folder in diffusers' layout, or a hub id.
        prompts: One or several.
        references: Images of the subject, one or several.
        masks: One for each reference, white on the subject; or none.
        count: Images of each prompt.
        seed: Image i of a prompt depends on the seed, the prompt and i alone.
        lora: Adapter to put on a model that is not a run.
        base: Whether to draw with a run's model before tuning.
        checkpoint: Iteration of a run's checkpoint, or "best"; None: the newest.
        grid: Whether to write one labelled image of all as well, beside the base's.
        out: Folder for the images; nothing in it is overwritten.
        settings: `steps=28`, or settings of the model, `model={"height": 768, "width": 768}`.

    Returns:
        PNG files, prompt by prompt; then those of the base; then the grid.

    Raises:
        UserError: An argument is wrong, or a file cannot be written.
    """
    # a text is a sequence as well, of letters
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    files = [references] if isinstance(references, str | Path) else list(references)
    changes = as_overrides(settings)
    with quiet_imports(), undisturbed_imports():
        from customized_grpo.generation.generate import Request
        from customized_grpo.generation.generate import generate as draw

    request = Request(texts, [Path(file) for file in files], [Path(file) for file in masks], count, seed)
    return draw(
        str(source),
        request,
        out=Path(out),
        settings=changes,
        lora=None if lora is None else Path(lora),
        base=base,
        step=checkpoint,
        grid=grid,
        on_note=print,
    )


def compare(
    recipe: str | Path,
    /,
    *,
    arms: str = "core",
    only: Sequence[str] = (),
    seeds: int | Sequence[int] = 5,
    out: str | Path | None = None,
    jobs: int | None = None,
    threads: int = 1,
    calibration: str | Path | None = None,
    also: Sequence[str | Path] = (),
    doctor: bool = True,
    **settings: Any,
) -> Mapping[str, Any]:
    """Train arms x seeds of a recipe as processes of their own, and return the results.

    Args:
        recipe: Preset, or path of a YAML file.
        arms: "core", "full", or a YAML file of arms.
        only: Names of the arms to run; empty: all.
        seeds: How many, from 0 on, or which.
        out: Folder; None: runs/compare-RECIPE. Call it again to go on.
        jobs: Runs side by side; None: one per core or GPU.
        threads: Threads of each run on a CPU.
        calibration: Weights of calibrated TDW; None leaves those arms out.
        also: results.json of other comparisons of this recipe.
        doctor: Whether the recipe is examined before the first run.
        settings: As in `train`.

    Returns:
        The content of results.json; `["analysis"]["verdicts"]` has it in sentences.

    Raises:
        UserError: The recipe or an arm is wrong, or runs failed.
        KeyboardInterrupt: It was interrupted; the runs are saved.
    """
    from customized_grpo.comparison.arms import calibrated, load_arms
    from customized_grpo.comparison.plan import make_plan
    from customized_grpo.comparison.run import run_comparison
    from customized_grpo.runs.folder import RunFolder

    chosen, _ = calibrated(load_arms(arms, only), None if calibration is None else Path(calibration))
    plan = make_plan(
        str(recipe),
        as_overrides(settings),
        chosen,
        range(seeds) if isinstance(seeds, int) else list(seeds),
        folder=None if out is None else Path(out),
        threads=threads,
    )
    status = run_comparison(plan, jobs=jobs, examine=doctor, train=True, also=[Path(file) for file in also])
    if status:
        # the status is for a shell; Python code expects the exception of Ctrl-C
        raise KeyboardInterrupt("interrupted; call it again to go on")
    results: dict[str, Any] | None = RunFolder(plan.folder).read_json("results.json")
    assert results is not None  # it was written a moment ago
    return results


def compare_runs(
    first: str | Path, /, *others: str | Path, out: str | Path | None = None
) -> Mapping[str, Any]:
    """Compare runs that are there already; nothing is trained, and nothing is written into them.

    Args:
        first: Folder of the run that the others are compared with.
        others: Folders of the other runs, one or more.
        out: Folder for results.json and the page; None: runs/compare-NAME--NAME.

    Returns:
        The content of results.json; `["verdicts"]` has it in sentences, `["pairs"]` the differences that are
        paired by image, with 95 % intervals clustered by subject and Holm's p-values.

    Raises:
        UserError: They were judged on other held-out images or by other judges, or the folder is taken.
    """
    from customized_grpo.comparison.existing_run import compare_runs as compare_folders

    folders = [_run_folder(run) for run in (first, *others)]
    results, _ = compare_folders(folders, None if out is None else Path(out))
    return results


def _run_folder(run: str | Path) -> Path:
    folder = Path(run)
    if not is_run_folder(folder):
        raise UserError(
            f"{folder} is not the folder of a run",
            hint="Give the folder that `cgrpo train` wrote: it has a config.yaml.",
        )
    return folder
