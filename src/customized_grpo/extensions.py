"""Parts of a run by name: the package's own, those of installed packages, and yours by dotted path.

A part is a combination rule, a schedule, a sampler, a family of generators, a reward or a data adapter. A
recipe names it in one of three ways:

* `sars`: a part of this package, from the registry of its room;
* `half_sars`: a part that an installed package registers as an entry point, in the group of its kind;
* `my_rules:HalfSars`: `package.module:Name`, code of yours.

A recipe or run folder may come from anybody, so a dotted path alone runs nothing: its module is imported only
if the user has allowed it, with `--trust MODULE` or in the environment variable CGRPO_TRUST. Allowing a
package allows the modules in it. An installed entry point needs no such word: installing it was one.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from customized_grpo.errors import UserError, nearest, origin
from customized_grpo.files import file_sha256

TRUST = "CGRPO_TRUST"
"""Environment variable with the modules that recipes may name, separated by commas.

The environment, because processes that a command starts (runs of a comparison, Ray actors) inherit it.
"""


@dataclass(frozen=True)
class Kind:
    """A kind of part.

    Attributes:
        noun: What messages call it.
        registry: Import path of the room's registry, a mapping from name to part. A path, not the mapping:
            a registry is imported when a name is looked up, and with it torch and the like.
        base: Import path of the class that a part must be an instance or a subclass of; None: anything.
        is_class: Whether a part is a subclass of `base`, to be built with its options.
        group: Group of entry points of installed packages.
    """

    noun: str
    registry: str
    base: str | None
    is_class: bool
    group: str


KINDS: Mapping[str, Kind] = {
    "rule": Kind(
        "combination rule",
        "customized_grpo.algorithms.rules:RULES",
        "customized_grpo.algorithms.rules:Rule",
        is_class=True,
        group="customized_grpo.rules",
    ),
    "schedule": Kind(
        "schedule",
        "customized_grpo.algorithms.schedules:SCHEDULES",
        "customized_grpo.algorithms.schedules:Schedule",
        is_class=True,
        group="customized_grpo.schedules",
    ),
    "sampler": Kind(
        "sampler",
        "customized_grpo.algorithms.samplers:SAMPLERS",
        "customized_grpo.algorithms.samplers:Transition",
        is_class=False,
        group="customized_grpo.samplers",
    ),
    "family": Kind(
        "family of generators",
        "customized_grpo.policies.families:FAMILIES",
        "customized_grpo.policies.families:Family",
        is_class=False,
        group="customized_grpo.families",
    ),
    "reward": Kind(
        "reward",
        "customized_grpo.rewards.registry:REWARDS",
        base=None,
        is_class=False,
        group="customized_grpo.rewards",
    ),
    "adapter": Kind(
        "data adapter",
        "customized_grpo.data.adapters.registry:LAYOUTS",
        base="customized_grpo.data.adapters.base:Layout",
        is_class=False,
        group="customized_grpo.adapters",
    ),
}
"""Every kind of part that can come from outside."""


def is_dotted(name: str) -> bool:
    """Return whether a name is a dotted path, "package.module:Name", and so no name of a registry."""
    return ":" in name


def load(kind: str, name: str) -> Any:
    """Return a part by its name.

    Args:
        kind: A key of `KINDS`.
        name: Of the package's registry, of an entry point, or a dotted path.

    Raises:
        UserError: The name is unknown, its module is not trusted or cannot be imported, or it names
            something that is not such a part.
    """
    if is_dotted(name):
        part = _import_trusted(KINDS[kind].noun, name)
    elif name in registry(kind):
        part = registry(kind)[name]
    elif name in _installed(KINDS[kind].group):
        part = _load_installed(KINDS[kind], name)
    else:
        raise _unknown(kind, name)
    _check_base(KINDS[kind], name, part)
    return part


def names(kind: str) -> list[str]:
    """Return the names that need no dotted path: the registry's in its order, then installed ones."""
    own = list(registry(kind))
    return own + [name for name in _installed(KINDS[kind].group) if name not in own]


def registry(kind: str) -> Mapping[str, Any]:
    """Return the package's own parts of a kind by name; imports the room they are in."""
    parts: Mapping[str, Any] = _resolve(KINDS[kind].registry)
    return parts


def trust(modules: Iterable[str]) -> None:
    """Allow recipes to name these modules, in this process and in those that it starts."""
    os.environ[TRUST] = ",".join([*trusted_modules(), *modules])


def trusted_modules() -> list[str]:
    """Return the modules that the user has allowed."""
    listed = os.environ.get(TRUST, "").split(",")
    return [module.strip() for module in listed if module.strip()]


def is_trusted(module: str) -> bool:
    """Return whether the user has allowed a module, or a package that it is in."""
    # with the dot: allowing `rules` must not allow `rules_of_a_stranger`
    return any(module == allowed or module.startswith(f"{allowed}.") for allowed in trusted_modules())


def code_fingerprints(names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of the file of every module that a dotted path names, by module.

    What such a module imports is not followed. Names that are no dotted paths are passed over.

    Args:
        names: Of parts that have been loaded.
    """
    digests = {}
    for name in names:
        module = name.partition(":")[0]
        # as it was imported: a search now could find another file of that name
        file = getattr(sys.modules.get(module), "__file__", None)
        if is_dotted(name) and file is not None:
            digests[module] = file_sha256(Path(file))
    return digests


def _import_trusted(noun: str, path: str) -> Any:
    module, _, attribute = path.partition(":")
    if not module or not attribute:
        raise UserError(
            f"{path!r} names no {noun}", hint="A part of your own is written package.module:Name."
        )
    if not is_trusted(module):
        raise UserError(
            f"{path!r} is code outside this package, and {module!r} is not trusted",
            hint=f"If you know the code, allow it with --trust {module} or {TRUST}={module}.",
        )
    try:
        value: Any = importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{path!r}: {module!r} could not be imported: {error}",
            hint="Install the package, or set PYTHONPATH to the folder that holds it.",
        ) from error
    except Exception as error:  # foreign code: whatever it raises is the user's to read, not a bug here
        reason = f"{type(error).__name__}: {error}{origin(error)}"
        raise UserError(f"{path!r}: importing {module!r} failed: {reason}") from error
    for name in attribute.split("."):
        if not hasattr(value, name):
            close = nearest(name, vars(value))
            suggestion = "" if close is None else f"; did you mean {close}?"
            raise UserError(f"{path!r}: {module!r} has no {attribute!r}{suggestion}")
        value = getattr(value, name)
    return value


def _installed(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}


def _load_installed(kind: Kind, name: str) -> Any:
    point = _installed(kind.group)[name]
    try:
        return point.load()
    except Exception as error:  # as above: the code of another package
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"{kind.noun} {name!r} of an installed package could not be loaded: {reason}",
            hint=f"It is registered as {point.value} in the group {kind.group}.",
        ) from error


def _check_base(kind: Kind, name: str, part: Any) -> None:
    if kind.base is None:
        return
    base = _resolve(kind.base)
    fits = inspect.isclass(part) and issubclass(part, base) if kind.is_class else isinstance(part, base)
    if not fits:
        expected = f"a subclass of {base.__name__}" if kind.is_class else f"an instance of {base.__name__}"
        what = part.__name__ if inspect.isclass(part) else type(part).__name__
        raise UserError(
            f"{name!r} is no {kind.noun}: it is {what}",
            hint=f"It must be {expected} ({base.__module__}); see docs/extending.md.",
        )


def _unknown(kind: str, name: str) -> UserError:
    known = names(kind)
    close = nearest(name, known)
    suggestion = "" if close is None else f" (did you mean {close}?)"
    return UserError(
        f"there is no {KINDS[kind].noun} {name!r}{suggestion}; known: {', '.join(known)}",
        hint="One of your own is written module:Name." if "." in name else None,
    )


def _resolve(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)
