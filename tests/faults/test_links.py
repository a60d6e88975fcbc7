"""Links in the folder of a run that came from somebody else: none is written through."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from customized_grpo.errors import UserError
from customized_grpo.files import write_json
from customized_grpo.links import open_in_place
from customized_grpo.pages.page import write_page
from customized_grpo.reporting.metrics import MetricsWriter
from customized_grpo.runs.lock import RunLock


@pytest.mark.parametrize("name", ["metrics.jsonl", "lock", "report.html", "summary.json"])
def test_no_file_of_a_foreign_run_leads_elsewhere(name: str, tmp_path: Path) -> None:
    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.write_text("")
    run.mkdir()
    (run / name).symlink_to(victim)
    if name == "report.html":
        write_page(run / name, "page")
    elif name == "summary.json":
        write_json(run / name, {})
    elif name == "lock":
        with pytest.raises(UserError, match="symbolic link"):
            RunLock(run).acquire()
    else:
        with pytest.raises(UserError, match="symbolic link"):
            MetricsWriter(run / name)
    assert victim.read_text() == ""


def test_the_old_name_of_a_draft_is_nothing_special(tmp_path: Path) -> None:
    """Drafts once had names that could be known before: a link of that name was written through."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "report.html.tmp").symlink_to(victim)
    write_page(tmp_path / "report.html", "page")
    assert victim.read_text() == "precious" and (tmp_path / "report.html.tmp").is_symlink()


def test_no_folder_of_a_run_leads_out_of_it(tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    (run / "wandb" / "run-1").mkdir(parents=True)
    other.mkdir()
    (run / "wandb" / "latest-run").symlink_to("run-1")
    (tmp_path / "link").symlink_to(run)
    with RunLock(tmp_path / "link"):
        pass
    (run / "samples").symlink_to(other)
    with pytest.raises(UserError, match="samples is a symbolic link out of"):
        RunLock(run).acquire()


@pytest.mark.parametrize("kind", ["link to a file", "link to nothing", "pipe", "folder link"])
def test_a_file_that_is_written_in_place_is_a_plain_file(kind: str, tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "run" / "metrics.jsonl"
    path.parent.mkdir()
    victim.mkdir() if kind == "folder link" else victim.write_text("precious")
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / "none" if kind == "link to nothing" else victim)
    with pytest.raises((UserError, OSError)) as caught:
        open_in_place(path, os.O_WRONLY | os.O_APPEND)
    assert isinstance(caught.value, UserError) and str(path) in str(caught.value)
    assert not (tmp_path / "none").exists()


def test_a_plain_file_is_created_and_appended_to_in_place(tmp_path: Path) -> None:
    for _ in range(2):
        with os.fdopen(open_in_place(tmp_path / "x", os.O_WRONLY | os.O_APPEND), "ab") as file:
            file.write(b"line\n")
    assert (tmp_path / "x").read_text() == "line\nline\n"
