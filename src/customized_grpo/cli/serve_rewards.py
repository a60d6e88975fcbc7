"""`cgrpo serve-rewards`: the rewards of a recipe for trainers on other machines."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from customized_grpo.cli.common import Trust
from customized_grpo.errors import UserError

if TYPE_CHECKING:
    from customized_grpo.config.schema import Config, RewardConfig
    from customized_grpo.rewards import Reward

MEGABYTE = 2**20


def serve_rewards(
    recipe: Annotated[str, typer.Argument(help="Preset, or path of a YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="SECTION.KEY=VALUE", help="Settings that replace the recipe's."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; any but loopback needs a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    token_env: Annotated[
        str, typer.Option(help="Environment variable with the token that clients must present.")
    ] = "CGRPO_TOKEN",
    max_body_mb: Annotated[int, typer.Option(min=1, help="Largest request, in MiB.")] = 64,
    max_pixels: Annotated[
        int, typer.Option(min=1, max=150_000_000, help="Most pixels of a request, over all its pictures.")
    ] = 64 * 1024**2,
    queue: Annotated[int, typer.Option(min=1, help="Requests taken at once; more are told to wait.")] = 16,
    reference_mb: Annotated[int, typer.Option(min=1, help="References kept, compressed, in MiB.")] = 512,
    workers: Annotated[int, typer.Option(min=1, help="Copies of each reward, each in a thread.")] = 1,
    merge: Annotated[
        int,
        typer.Option(
            min=0, help="Samples of several requests scored together; 0: none, scores repeat exactly."
        ),
    ] = 0,
    trust: Trust = None,
) -> None:
    """Score pictures for trainers elsewhere.

    Serves the recipe's rewards whose executor is http, or all if none is. The trainer uses the same recipe.

    For example: cgrpo serve-rewards my.yaml --host 0.0.0.0
    """
    from customized_grpo.config import load_config

    config = load_config(recipe, overrides or ())
    rewards = served_rewards(config)
    _check_installed()
    token = os.environ.get(token_env) or None

    from customized_grpo.rewards.service import server
    from customized_grpo.rewards.service.app import Limits

    server.check_access(host, token, token_env)
    with server.listen(host, port) as listener:
        copies = _build(config, rewards, workers)
        shown = f"[{host}]" if ":" in host else host
        print(f"serving {', '.join(copies)} at http://{shown}:{listener.getsockname()[1]}", flush=True)
        limits = Limits(max_body_mb * MEGABYTE, max_pixels, queue, reference_mb * MEGABYTE)
        server.serve(copies, listener, limits, token=token, merge=merge)


def served_rewards(config: Config) -> Sequence[RewardConfig]:
    """Return the rewards with executor http, or all if none has it.

    Raises:
        UserError: Two have the same name, by which requests ask for them.
    """
    remote = [reward for reward in config.rewards if reward.executor.kind == "http"]
    rewards = remote or list(config.rewards)
    names = [reward.name for reward in rewards]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(
            f"rewards: {', '.join(twice)} is there twice, and clients ask by name",
            "Serve each from a recipe of its own.",
        )
    return rewards


def _check_installed() -> None:
    for package in ("fastapi", "uvicorn"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(
                f"serve-rewards needs {package}, which is not installed",
                "Install it with: pip install 'customized-grpo[serve]'",
            ) from error


def _build(config: Config, rewards: Sequence[RewardConfig], workers: int) -> dict[str, list[Reward]]:
    from customized_grpo.policies.loading import pick_device
    from customized_grpo.rewards import build_reward

    device = pick_device(config.model.device)
    return {reward.name: [build_reward(reward, device) for _ in range(workers)] for reward in rewards}
