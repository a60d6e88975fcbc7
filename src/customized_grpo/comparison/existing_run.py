"""`cgrpo compare RUN RUN`: read runs, compare them, and write results and page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from customized_grpo.comparison.existing import read_runs
from customized_grpo.comparison.existing_results import KIND, compare
from customized_grpo.comparison.existing_verdicts import verdicts
from customized_grpo.comparison.run import PAGE, RESULTS
from customized_grpo.disk import check_writable
from customized_grpo.errors import UserError
from customized_grpo.pages.runs_page import write_runs_page
from customized_grpo.runs.folder import RunFolder, is_unused


def compare_runs(folders: Sequence[Path], out: Path | None = None) -> tuple[dict[str, Any], Path]:
    """Compare runs that are there already; nothing is trained, and nothing is written into them.

    Args:
        folders: Run folders; the first is the one that the others are compared with.
        out: Folder for results.json and comparison.html; None means runs/compare-NAME--NAME. Only results of
            such a comparison are replaced there.

    Returns:
        The content of results.json, whose `verdicts` has it in sentences, and the page.

    Raises:
        UserError: The runs cannot be compared, or the folder holds something else or cannot be written.
    """
    runs = read_runs(folders)
    names = [run.name.replace("/", "_") for run in runs]
    folder = RunFolder(out or Path("runs") / f"compare-{'--'.join(names)}")
    _check_free(folder)
    results = compare(runs)
    results["verdicts"] = verdicts(results)
    folder.path.mkdir(parents=True, exist_ok=True)
    check_writable(folder.path)
    folder.write_json(RESULTS, results)
    page = write_runs_page(results, [run.data for run in runs], folder.path / PAGE)
    return results, page


def _check_free(folder: RunFolder) -> None:
    """Refuse a folder that holds something else, such as a comparison that trained its runs.

    Raises:
        UserError: It does.
    """
    if is_unused(folder.path):
        return
    before = folder.read_json(RESULTS) if folder.path.is_dir() else None
    if before is None or before.get("kind") != KIND:
        raise UserError(
            f"{folder.path} exists and holds no comparison of existing runs",
            hint="Choose another folder with --out.",
        )
