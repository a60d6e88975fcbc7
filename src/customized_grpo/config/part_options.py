"""Options of parts in a recipe not yet checked: their short form, and which ones an override drops."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from customized_grpo import extensions
from customized_grpo.config.checks import Mistake
from customized_grpo.config.choice import options_class
from customized_grpo.config.data_sources import ManifestData, ToyboxData, TwoScaleData
from customized_grpo.config.reference import knobs
from customized_grpo.config.schema import AdvantageConfig, ModelConfig, ScheduleConfig
from customized_grpo.errors import UserError, nearest
from customized_grpo.fields import Section


@dataclass(frozen=True)
class ChoiceOfPart:
    """A section in which one field chooses a part that has options of its own.

    Attributes:
        kind: Key of `extensions.KINDS`.
        key: The field that chooses.
        section: The section's class.
    """

    kind: str
    key: str
    section: type[Section]

    def fields(self) -> set[str]:
        """Return the fields that the section has for every choice, `options` among them."""
        return set(self.section.model_fields)

    def options(self, name: Any) -> set[str]:
        """Return the names of a part's options; none for an unknown part, which is refused later."""
        try:
            return set(options_class(self.kind, str(name)).model_fields)
        except UserError:
            return set()

    def options_of_the_package(self) -> set[str]:
        """Return the options of all parts of this kind in the package."""
        names: set[str] = set()
        for name in extensions.registry(self.kind):
            names |= self.options(name)
        return names


CHOICES: Mapping[str, ChoiceOfPart] = {
    "model": ChoiceOfPart("family", "family", ModelConfig),
    "advantage": ChoiceOfPart("rule", "name", AdvantageConfig),
    "schedule": ChoiceOfPart("schedule", "name", ScheduleConfig),
}
"""Sections that choose a part with options of its own."""


OF_GRPO = {
    "train": ("clip_range", "ratio_normalisation", "trained_fraction"),
    "rollout": ("sde_window",),
}
"""Settings that only `train.algorithm=grpo` has, by section."""

ALGORITHM_SECTIONS = {"grpo": (), "nft": ("forward", "nft"), "awm": ("forward", "awm")}
"""Sections of `train` that belong to an algorithm."""


def gather_options(data: dict[str, Any], section: str) -> list[Mistake]:
    """Move keys that stand beside a choice into its `options`, where they are options.

    So `advantage.gamma=.4` is short for `advantage.options.gamma=.4`, and no table of such short forms is
    needed. Misspelt fields of the section stay, so that their message names the field.

    Args:
        data: The recipe; changed in place.
        section: A key of `CHOICES`.

    Returns:
        What is given in both forms, of which none is the later one.
    """
    values = data.get(section)
    if not isinstance(values, dict) or not isinstance(values.get("options", {}), dict):
        return []  # refused later, with its place
    mistakes = []
    choice = CHOICES[section]
    fields = choice.fields()
    # Those of other parts too: an option of the wrong part is then refused by its name.
    options = choice.options(values.get(choice.key)) | choice.options_of_the_package()
    # a key that another section has was put into the wrong one, and is no option
    elsewhere = {knob.path.rpartition(".")[2] for knob in knobs()}
    # a list, because the loop takes keys out of the mapping
    for key in [key for key in values if key not in fields]:
        is_misspelt = nearest(key, fields) is not None or key in elsewhere
        if key not in options and is_misspelt:
            continue
        inside = values.setdefault("options", {})
        if key in inside:
            text = f"is given twice, here and as {section}.options.{key}; leave one of them out"
            mistakes.append(Mistake(f"{section}.{key}", text))
        inside[key] = values.pop(key)
    return mistakes


def forget_other_form(data: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Drop an option as an earlier layer wrote it, when a later one writes it in the other form.

    `advantage.gamma` and `advantage.options.gamma` are one option, and the later one counts.

    Args:
        data: The earlier layers; changed in place.
        path: What the later layer sets.
        value: To which value.
    """
    section = data.get(path[0])
    if path[0] not in CHOICES or not isinstance(section, dict) or len(path) < 2:
        return
    fields = CHOICES[path[0]].fields()
    if path[1] not in fields:
        _drop(section.get("options"), [path[1]])
    elif path[1] == "options":
        names = path[2:3] or (value if isinstance(value, dict) else ())
        _drop(section, set(names) - fields)


def _drop(mapping: Any, keys: Iterable[str]) -> None:
    if not isinstance(mapping, dict):
        return
    for key in keys:
        mapping.pop(key, None)


def forget_options_of_old_choice(data: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Drop what belonged to the recipe's choice when an override makes another.

    `advantage.name=linear` on a recipe that sets gamma for sars must not need a second override to remove
    gamma. Options that both choices have stay. Those that are overrides themselves are written later, and
    so still refused if they do not apply.
    """
    section = data.get(path[0])
    if not isinstance(section, dict):
        return
    if path == ("train", "algorithm"):
        _forget_old_algorithm(data, value)
        return
    if path == ("data", "kind"):
        _keep(section, _fields_of_source(value))
        return
    choice = CHOICES.get(path[0])
    if choice is None or path[1:] != (choice.key,) or section.get(choice.key) == value:
        return
    # What the new choice has as well stays set.
    options = choice.options(value)
    _keep(section, choice.fields() | options)
    if isinstance(section.get("options"), dict):
        _keep(section["options"], options)


def _forget_old_algorithm(data: dict[str, Any], value: Any) -> None:
    """Drop what the recipe sets for another algorithm than the one that an override chooses."""
    if value not in ALGORITHM_SECTIONS or data["train"].get("algorithm", "grpo") == value:
        return
    for name in {"forward", "nft", "awm"} - set(ALGORITHM_SECTIONS[value]):
        data["train"].pop(name, None)
    if value == "grpo":
        return
    for section, names in OF_GRPO.items():
        for name in names:
            if isinstance(data.get(section), dict):
                data[section].pop(name, None)


def _keep(section: dict[str, Any], keys: Collection[str]) -> None:
    for key in set(section) - set(keys):
        del section[key]


def _fields_of_source(kind: Any) -> set[str]:
    """Return the fields of a data source; those of all sources for an unknown one, which is refused later."""
    sources: dict[Any, type[Section]] = {
        "toybox": ToyboxData,
        "two-scale": TwoScaleData,
        "manifest": ManifestData,
    }
    chosen = [sources[kind]] if isinstance(kind, str) and kind in sources else list(sources.values())
    return set().union(*(source.model_fields for source in chosen))
