"""`http`: the reward runs behind `cgrpo serve-rewards`, on this machine or another.

All requests of a reward run on one event loop in a thread of its own, so that an interrupted run can give
them up at once instead of waiting for answers.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor

from customized_grpo import keys
from customized_grpo.config.executors import HttpExecution
from customized_grpo.config.schema import RewardConfig
from customized_grpo.errors import UserError
from customized_grpo.rewards.base import Kind, Reward, ScoringBatch, naming
from customized_grpo.rewards.executors.connection import Connection
from customized_grpo.rewards.executors.upload import Upload, encode
from customized_grpo.rewards.http_client import HttpError
from customized_grpo.rewards.registry import scoring_settings
from customized_grpo.rewards.service.protocol import (
    PROTOCOL,
    Info,
    Problem,
    References,
    RewardInfo,
    ScoreAnswer,
)

UPLOADS = 3  # attempts to have all references stored at once, if other clients keep pushing them out

Result = TypeVar("Result")


class HttpExecutor:
    """Executor that asks a service.

    Args:
        config: The reward, as the service's recipe names it.
        place: Where the service is.

    Raises:
        UserError: The service cannot be reached, refuses, or has no such reward.
    """

    def __init__(self, config: RewardConfig, place: HttpExecution) -> None:
        self._connection = Connection(place, read_token(place))
        self._slots = asyncio.Semaphore(place.connections)
        # A loop in a thread of its own: the trainer is not asynchronous, and scoring goes on while it draws.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name=f"reward {config.name}", daemon=True
        )
        self._thread.start()
        try:
            self._info = self._start(self._connect(config, place)).result()
        except BaseException:
            self.close()
            raise

    @property
    def name(self) -> str:
        """Name of the reward."""
        return self._info.label

    @property
    def kind(self) -> Kind:
        """What the reward measures."""
        return self._info.kind

    @property
    def groupwise(self) -> bool:
        """Whether the reward needs whole groups."""
        return self._info.groupwise

    @property
    def local_reward(self) -> Reward | None:
        """None: it is in the service."""
        return None

    def submit(self, batch: ScoringBatch) -> Future[Tensor]:
        """Send the batch and return at once."""
        return self._start(self._score(batch))

    def fingerprint(self) -> dict[str, Any]:
        """Return the fingerprint of the reward in the service; every request repeats its digest."""
        return self._info.fingerprint

    def close(self) -> None:
        """Cancel requests under way and close the connections."""
        if self._loop.is_closed():
            return
        self._start(self._give_up()).result()
        # a loop may only be stopped by its own thread
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _start(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _connect(self, config: RewardConfig, place: HttpExecution) -> RewardInfo:
        try:
            answer = await self._connection.ask("GET", "/v1/info")
            info = Info.model_validate_json(answer.body)
        except HttpError as error:
            raise UserError(
                f"reward {config.name!r}: {error}", hint="Start the service with: cgrpo serve-rewards RECIPE."
            ) from error
        except ValidationError as error:
            raise UserError(
                f"reward {config.name!r}: {place.url} is not a reward service",
                hint="Set executor.url to the address that `cgrpo serve-rewards` prints.",
            ) from error
        return find_reward(info, config, place.url)

    async def _score(self, batch: ScoringBatch) -> Tensor:
        with naming(self.name, batch):
            async with self._slots:
                # compressing takes a while, and would hold up all other requests of the loop
                upload = await asyncio.to_thread(encode, batch, self._info.name, self._info.digest)
                return await self._answered(upload, len(batch))

    async def _answered(self, upload: Upload, samples: int) -> Tensor:
        """Bring the missing references and ask for the scores."""
        ask = self._connection.ask
        # Hashes first, files only where they are missing: a reference travels once, not with every batch.
        names = References(sha256=list(upload.files)).model_dump_json().encode()
        answer = await ask("POST", "/v1/references/missing", names)
        missing = _read(References, answer.body).sha256
        for _ in range(UPLOADS):
            for sha256 in missing:
                await ask("PUT", f"/v1/references/{sha256}", upload.files[sha256], "image/png")
            answer = await ask("POST", "/v1/score", upload.body)
            # 409: other clients have pushed some of the references out in the meantime.
            if answer.status != 409:
                scores = _read(ScoreAnswer, answer.body).scores
                if len(scores) != samples:
                    raise HttpError(f"{len(scores)} scores for {samples} samples")
                return torch.tensor([float("nan") if s is None else s for s in scores], dtype=torch.float32)
            missing = _read(Problem, answer.body).missing
        raise HttpError("the service cannot hold the references of one batch (raise its --reference-mb)")

    async def _give_up(self) -> None:
        # a loop that stops with tasks under way would leave their futures waiting for ever
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._connection.close()
        await self._loop.shutdown_default_executor()


AnyMessage = TypeVar("AnyMessage", References, ScoreAnswer, Problem)


def _read(message: type[AnyMessage], body: bytes) -> AnyMessage:
    try:
        return message.model_validate_json(body)
    except ValidationError as error:
        raise HttpError(f"the answer is no {message.__name__}") from error


def read_token(place: HttpExecution) -> str | None:
    """Read the service's token from the environment; None if the recipe names no variable.

    Raises:
        UserError: See `keys.read_key`.
    """
    if place.token_env is None:
        return None
    return keys.read_key(place.token_env, place.url, "executor.token_env")


def find_reward(info: Info, config: RewardConfig, url: str) -> RewardInfo:
    """Return the service's reward that the recipe asks for.

    Raises:
        UserError: There is none, or it does not score as the recipe says.
    """
    if info.protocol != PROTOCOL:
        raise UserError(
            f"{url} speaks protocol {info.protocol}, this version {PROTOCOL}",
            hint="Run the same version of customized-grpo on both sides.",
        )
    reward = next((reward for reward in info.rewards if reward.name == config.name), None)
    if reward is None:
        names = ", ".join(reward.name for reward in info.rewards)
        raise UserError(
            f"{url} has no reward {config.name!r}, only {names}",
            hint="Start the service with a recipe that has this reward.",
        )
    expected = scoring_settings(config)
    for key in sorted(expected.keys() | reward.settings.keys()):
        theirs, ours = reward.settings.get(key), expected.get(key)
        if theirs != ours:
            raise UserError(
                f"reward {config.name!r}: {url} scores with {_difference(key, theirs, ours)}",
                hint="Start the service with the same recipe, or write its settings into yours.",
            )
    return reward


def _difference(key: str, theirs: str | None, ours: str | None) -> str:
    """Return in words how a setting differs; values of options are hashes and say nothing."""
    is_option = key.startswith("options.")
    if is_option and theirs is not None and ours is not None:
        return f"another {key} than the recipe says"
    words = []
    for value in (theirs, ours):
        words.append(f"no {key}" if value is None else key if is_option else f"{key}: {value}")
    return f"{words[0]}, the recipe says {words[1]}"
