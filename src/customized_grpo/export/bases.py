"""What is known of published base models: their licences, and what registries of adapters call them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from customized_grpo.config.schema import ModelConfig
from customized_grpo.hub import is_hub_id
from customized_grpo.policies.loading import TOYBOX

HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Licence:
    """A licence as the hub's front matter writes it.

    Attributes:
        identifier: Of the hub's list; "other" for one that is not in it.
        name: Its own name then.
        link: Where its text is then.
    """

    identifier: str
    name: str | None = None
    link: str | None = None

    @property
    def title(self) -> str:
        """The name by which it is looked up."""
        return self.name or self.identifier


def _non_commercial(name: str, repository: str, file: str = "LICENSE.md") -> Licence:
    return Licence("other", name, f"{HUB}/{repository}/blob/main/{file}")


_APACHE = Licence("apache-2.0")
_FLUX1 = "flux-1-dev-non-commercial-license"

LICENCES: dict[str, Licence] = {
    TOYBOX: _APACHE,
    "black-forest-labs/FLUX.1-dev": _non_commercial(_FLUX1, "black-forest-labs/FLUX.1-dev"),
    "black-forest-labs/FLUX.1-Kontext-dev": _non_commercial(_FLUX1, "black-forest-labs/FLUX.1-Kontext-dev"),
    "black-forest-labs/FLUX.2-klein-4B": _APACHE,
    "black-forest-labs/FLUX.2-klein-base-4B": _APACHE,
    "black-forest-labs/FLUX.2-dev": _non_commercial(
        "flux-dev-non-commercial-license", "black-forest-labs/FLUX.2-dev", "LICENSE.txt"
    ),
    "Qwen/Qwen-Image-Edit-2509": _APACHE,
    "Qwen/Qwen-Image-Edit-2511": _APACHE,
}
"""By hub id, as their model cards say."""

_ARCHITECTURES = {
    "black-forest-labs/FLUX.2-dev": "Flux.2-dev",
    "black-forest-labs/FLUX.2-klein-4B": "Flux.2-klein-4b",
    "black-forest-labs/FLUX.2-klein-base-4B": "Flux.2-klein-4b",
    "Qwen/Qwen-Image-Edit-2511": "Qwen-Image-Edit-2511",
}
_FAMILY_ARCHITECTURES = {"flux1": "flux-1-dev", "flux2": "flux-2", "qwen_edit": "Qwen-Image-Edit-Plus"}


def architecture(model: ModelConfig) -> str:
    """Return `modelspec.architecture` of an adapter, by the names that sd-scripts and musubi-tuner write."""
    return f"{_ARCHITECTURES.get(model.path, _FAMILY_ARCHITECTURES[model.family])}/lora"


def public_name(path: str) -> str:
    """Return what to call a model or file in public: a hub id, or the last part of a path of this machine."""
    repository, colon, _ = path.partition(":")
    return path if is_hub_id(repository if colon else path) else Path(path).name
