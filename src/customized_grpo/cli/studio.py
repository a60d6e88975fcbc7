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
) -> None:
    """Show runs in a browser while they train.

    Live curves, samples, alarms, recipes, several runs side by side. Without a FOLDER
    it shows those in runs/. It reads what runs write, and writes nothing into them.

    For example: cgrpo studio runs
    """
    places = _existing(folders or [Path("runs")])
    check_web("studio")
    token = os.environ.get(token_env) or None
    link = ""

    from customized_grpo.serving.access import check_access, is_loopback, listen
    from customized_grpo.studio.app import Studio
    from customized_grpo.studio.control import Control
    from customized_grpo.studio.guard import rules_for
    from customized_grpo.studio.library import Library
    from customized_grpo.studio.server import serve

    check_access(host, token, token_env)
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
        serve(Studio(library, rules, Control(library) if control else None), listener)


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
