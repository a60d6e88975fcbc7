"""`cgrpo studio`: runs and comparisons in a browser, while they train."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Annotated

import typer

from customized_grpo.cli.common import check_web
from customized_grpo.errors import UserError


def studio(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FOLDER]...", help="Folders of runs or comparisons, or of folders of them."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; others than loopback need a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8321,
    token_env: Annotated[
        str, typer.Option(help="Environment variable with the token that browsers must show.")
    ] = "CGRPO_TOKEN",
    control: Annotated[
        bool, typer.Option("--control", help="Also start, stop and resume runs; needs a token, or makes one.")
    ] = False,
    vote: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--vote", metavar="A B", help="Blind vote between the images of two runs, instead."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Vote on the prompts of this file alone, one in each line.")
    ] = None,
    votes: Annotated[
        Path | None, typer.Option(help="File of the votes; by default with the comparison, or here.")
    ] = None,
) -> None:
    """Show runs in a browser while they train.

    Live curves, samples, alarms, recipes, several runs side by side. Without a FOLDER
    it shows those in runs/. It reads what runs write, and writes nothing into them.

    For example: cgrpo studio runs

    Blind vote: cgrpo studio --vote runs/naive runs/ours
    """
    _check_vote(folders, control, vote, prompts, votes)
    # a voter sees the images of the vote, and not whose they are
    places = [] if vote else _existing(folders or [Path("runs")])
    check_web("studio")
    # an empty token is none: everybody could show it
    token = os.environ.get(token_env) or None
    link = ""

    from customized_grpo.serving.access import check_access, is_loopback, listen
    from customized_grpo.studio.app import Studio
    from customized_grpo.studio.booth import Booth
    from customized_grpo.studio.control import Control
    from customized_grpo.studio.guard import rules_for
    from customized_grpo.studio.library import Library
    from customized_grpo.studio.server import serve

    check_access(host, token, token_env)
    booth = Booth(*vote, _lines(prompts), votes) if vote else None
    if control and token is None:
        # on loopback too: whoever can start a run can run code as this user
        token = secrets.token_urlsafe(24)
        link = f"/#token={token}"
    with listen(host, port) as listener:
        address = f"[{host}]" if ":" in host else host  # IPv6 needs brackets before the port
        # flushed for whoever waits for this line; what is behind # never leaves the browser
        print(f"studio at http://{address}:{listener.getsockname()[1]}{link}", flush=True)
        rules = rules_for(host, token, is_loopback=is_loopback(host))
        library = Library(places)
        serve(Studio(library, rules, Control(library) if control else None, booth), listener)


def _existing(folders: list[Path]) -> list[Path]:
    """Return the folders.

    Raises:
        UserError: Some are none; all are listed.
    """
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing:
        raise UserError(
            f"no such folder: {', '.join(missing)}",
            hint="Name the folder that your runs are in, or start one with `cgrpo train toybox`.",
        )
    return folders


def _check_vote(
    folders: list[Path] | None,
    control: bool,
    vote: tuple[Path, Path] | None,
    prompts: Path | None,
    votes: Path | None,
) -> None:
    """Refuse options that do not go together.

    Raises:
        UserError: Says which.
    """
    if vote and (folders or control):
        raise UserError(
            "--vote cannot be used with FOLDER or --control: a voter must not see which run drew an image",
            hint="Start a second studio for the runs, on another --port.",
        )
    if not vote and (prompts or votes):
        raise UserError("--prompts and --votes need a vote", hint="Name the two runs: --vote A B.")


def _lines(file: Path | None) -> list[str] | None:
    """Return the lines of a file that hold something; None without a file.

    Raises:
        UserError: It cannot be read, or is empty.
    """
    if file is None:
        return None
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--prompts {file} cannot be read: {error}",
            hint="Give a text file in UTF-8, one prompt in each line.",
        ) from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"--prompts {file} has no prompt", hint="Write one prompt in each line.")
    return lines
