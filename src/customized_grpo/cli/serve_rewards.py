"""`cgrpo serve-rewards`: the rewards of a recipe as a service for trainers on other machines."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from customized_grpo.cli.common import Overrides, Recipe, Trust, check_web
from customized_grpo.errors import UserError

if TYPE_CHECKING:
    from customized_grpo.config.schema import Config, RewardConfig
    from customized_grpo.rewards import Reward

MEGABYTE = 2**20


def serve_rewards(
    recipe: Recipe,
    overrides: Overrides = None,
    host: Annotated[str, typer.Option(help="Address to listen on; others than loopback need a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    token_env: Annotated[
        str, typer.Option(help="Environment variable with the token that clients must send.")
    ] = "CGRPO_TOKEN",
    max_body_mb: Annotated[int, typer.Option(min=1, help="Largest request, in MiB.")] = 64,
    max_pixels: Annotated[
        int,
        typer.Option(min=1, max=150_000_000, help="Most pixels of a request, in all its images."),
    ] = 64 * 1024**2,
    queue: Annotated[int, typer.Option(min=1, help="Requests accepted at once; more have to wait.")] = 16,
    reference_mb: Annotated[int, typer.Option(min=1, help="Memory for compressed references, in MiB.")] = 512,
    workers: Annotated[int, typer.Option(min=1, help="Copies of each reward, each in its own thread.")] = 1,
    merge: Annotated[
        int,
        typer.Option(
            min=0, help="Samples of several requests to score together; with 0 scores repeat exactly."
        ),
    ] = 0,
    score_s: Annotated[
        float, typer.Option(min=1, help="Seconds to score a request; after them the reward is said to hang.")
    ] = 300.0,
    trust: Trust = None,
) -> None:
    """Score images for trainers on other machines.

    Serves the recipe's rewards whose executor is http, or all if none is. The trainers use the same recipe.

    For example: cgrpo serve-rewards my.yaml --host 0.0.0.0
    """
    from customized_grpo.config import load_config

    config = load_config(recipe, overrides or ())
    rewards = served_rewards(config)
    check_web("serve-rewards")
    # an empty token is none: everybody could send it
    token = os.environ.get(token_env) or None

    from customized_grpo.rewards.registry import scoring_settings
    from customized_grpo.rewards.service import server
    from customized_grpo.rewards.service.app import Limits
    from customized_grpo.serving.access import check_access, listen

    check_access(host, token, token_env)
    # before the models are loaded, so that a port in use is said at once
    with listen(host, port) as listener:
        copies = _build(config, rewards, workers)
        address = f"[{host}]" if ":" in host else host  # IPv6 needs brackets before the port
        # the port of the socket, because --port 0 takes a free one; flushed for whoever waits for this line
        print(f"serving {', '.join(copies)} at http://{address}:{listener.getsockname()[1]}", flush=True)
        limits = Limits(max_body_mb * MEGABYTE, max_pixels, queue, reference_mb * MEGABYTE)
        settings = {reward.name: scoring_settings(reward) for reward in rewards}
        server.serve(copies, settings, listener, limits, token=token, merge=merge, score_s=score_s)


def served_rewards(config: Config) -> Sequence[RewardConfig]:
    """Return the rewards with executor http, or all if none has it.

    Raises:
        UserError: Two have the same name; requests name the reward they need.
    """
    remote = [reward for reward in config.rewards if reward.executor.kind == "http"]
    rewards = remote or list(config.rewards)
    names = [reward.name for reward in rewards]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise UserError(
            f"the recipe has several rewards {', '.join(duplicates)}, and clients ask for rewards by name",
            hint="Start one service for each of them, with a recipe of its own.",
        )
    return rewards


def _build(config: Config, rewards: Sequence[RewardConfig], workers: int) -> dict[str, list[Reward]]:
    from customized_grpo.policies.loading import pick_device
    from customized_grpo.rewards import build_reward

    device = pick_device(config.model.device)
    copies = {}
    for reward in rewards:
        # one for each thread: nothing promises that two may call a reward at once
        copies[reward.name] = [build_reward(reward, device) for _ in range(workers)]
    return copies
