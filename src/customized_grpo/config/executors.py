"""Where a reward runs: the choices under `rewards[].executor`."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from customized_grpo.fields import Count, CountOrZero, NonNegative, Positive, Section, Text


def _service_url(value: str) -> str:
    try:
        url = urlsplit(value)
        # read here, because it raises for a number that is no port
        port = url.port
    except ValueError as error:
        raise ValueError(f"not a URL: {error}") from error
    if url.scheme not in ("http", "https") or not url.hostname or port == 0:
        raise ValueError("a service is written http://HOST:PORT or https://HOST")
    if url.username is not None or url.password is not None:
        raise ValueError("a URL must not hold credentials; name an environment variable in token_env")
    if url.query or url.fragment or ".." in PurePosixPath(url.path).parts:
        raise ValueError("a service URL has neither ?query nor #fragment nor .. in it")
    return value.rstrip("/")


EnvironmentName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
ServiceUrl = Annotated[str, AfterValidator(_service_url)]


class InlineExecution(Section):
    """In the trainer's own thread."""

    kind: Literal["inline"]
    """Where the reward runs: inline (waits for it), thread, ray (actors) or http (a reward service)."""


class ThreadExecution(Section):
    """In a thread of the trainer, beside the next rollout batch."""

    kind: Literal["thread"]
    """Where the reward runs: inline (waits for it), thread, ray (actors) or http (a reward service)."""


class RayExecution(Section):
    """In actors of a Ray cluster, on other GPUs or machines, each with an environment of its own."""

    kind: Literal["ray"]
    """Where the reward runs: inline (waits for it), thread, ray (actors) or http (a reward service)."""
    address: Text | None = None
    """Cluster to join, with `--trust ray`; null means that of RAY_ADDRESS, else a local one for this run."""
    actors: Count = 1
    """Copies of the reward; each scores whole rollout batches."""
    gpus_per_actor: NonNegative = 0.0
    """GPUs of an actor, a fraction to share one; 0 runs the reward on the CPU."""
    cpus_per_actor: Count = 1
    """CPU cores reserved for an actor, and threads of its arithmetic."""
    pip: Annotated[tuple[Text, ...], Field(strict=False)] = ()
    """Requirements that Ray installs for this reward alone, with `--trust pip`."""
    env: dict[EnvironmentName, str] = {}
    """Variables of the actors: CGRPO_..., or in CGRPO_KEYS; secrets belong into the workers' environment."""


class HttpExecution(Section):
    """Behind `cgrpo serve-rewards` on this or another machine."""

    kind: Literal["http"]
    """Where the reward runs: inline (waits for it), thread, ray (actors) or http (a reward service)."""
    url: ServiceUrl
    """Address of the service, http://HOST:PORT or https://HOST."""
    token_env: EnvironmentName | None = None
    """Environment variable with the service's token: CGRPO_..., or one in CGRPO_KEYS; null sends none."""
    timeout_s: Positive = 120.0
    """Longest wait for the service to take or answer a request, in seconds; a timeout is not tried again."""
    retries: CountOrZero = 5
    """Further attempts after a lost connection or a busy or failing service (408, 429, 5xx)."""
    connections: Count = 2
    """Rollout batches that may be under way to the service at once."""


ExecutorConfig = Annotated[
    InlineExecution | ThreadExecution | RayExecution | HttpExecution, Field(discriminator="kind")
]
