"""DreamBench: the photos of DreamBooth (github.com/google/dreambooth) and the prompts that go with them.

    dataset/prompts_and_classes.txt   "subject,class" lines, then two Python lists of prompts: objects, live
    dataset/SUBJECT/*.jpg             4 to 6 photos of each of 30 subjects

The prompts are read from the text, never executed. The unique token ("{0}") is dropped, because a
subject-driven generator gets a photo in its place: "a {0} {1} in the snow" becomes "a dog in the snow".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from customized_grpo.data.subject_folder import find_photos
from customized_grpo.errors import UserError

FILE_NAME = "prompts_and_classes.txt"
LIVE_CLASSES = frozenset({"cat", "dog"})

PromptType = Literal["recontext", "accessory", "property"]

# such as: 'a {0} {1} in the jungle'.format(unique_token, class_token), with either kind of quotes
_PROMPT = re.compile(r"""^(['"])(a .*)\1\.format\(unique_token, class_token\)""")


@dataclass(frozen=True)
class Subject:
    """One of the subjects.

    Attributes:
        name: Name of its folder, such as "dog6".
        noun: Its class, the noun of its prompts, such as "dog".
        photos: Its photos in the order of their names.
    """

    name: str
    noun: str
    photos: tuple[Path, ...]

    @property
    def is_live(self) -> bool:
        """Return whether it is an animal, which gets the prompts with outfits."""
        return self.noun in LIVE_CLASSES


@dataclass(frozen=True)
class DreamBench:
    """The parsed benchmark.

    Attributes:
        subjects: In the order of the file.
        object_prompts: Templates for objects, "a {} in the jungle".
        live_prompts: Templates for animals.
    """

    subjects: tuple[Subject, ...]
    object_prompts: tuple[str, ...]
    live_prompts: tuple[str, ...]

    def prompts(self, subject: Subject) -> list[tuple[str, PromptType]]:
        """Return the prompts of a subject, each with its type."""
        templates = self.live_prompts if subject.is_live else self.object_prompts
        return [(template.format(subject.noun), prompt_type(template)) for template in templates]


def dreambench_folder(folder: Path) -> Path:
    """Return the folder of the photos: the one given, or the `dataset` in it."""
    return folder / "dataset" if (folder / "dataset" / FILE_NAME).is_file() else folder


def read_dreambench(folder: Path, *, require_photos: bool = True) -> DreamBench:
    """Read DreamBench.

    Args:
        folder: The repository, or its folder `dataset`.
        require_photos: Whether a subject without photos is an error.

    Raises:
        UserError: The file of prompts is missing or of another form, or subjects lack photos; lists them all.
    """
    root = dreambench_folder(folder)
    file = root / FILE_NAME
    try:
        # utf-8-sig: an editor may have put a BOM before the first line.
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
        lines = [line for line in lines if not line.startswith("#")]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file}: cannot be read, so {folder} is not DreamBench",
            hint="Name the folder of github.com/google/dreambooth, or its folder `dataset`.",
        ) from error
    prompts = [_templates(file, lines, heading) for heading in ("Object Prompts", "Live Subject Prompts")]
    pairs = _classes(lines)
    if not pairs or not all(prompts):
        raise UserError(
            f"{file}: {len(pairs)} subjects, {len(prompts[0])} object prompts and {len(prompts[1])} prompts "
            "for live subjects were found; each must be at least one",
            hint="Use the file as it is in github.com/google/dreambooth.",
        )
    subjects = [Subject(name, noun, find_photos(root / name)) for name, noun in pairs]
    bare = [subject.name for subject in subjects if not subject.photos]
    if bare and require_photos:
        raise UserError(f"{root}: no photo of {', '.join(bare)}", hint="Fetch the whole folder `dataset`.")
    return DreamBench(tuple(subjects), prompts[0], prompts[1])


def prompt_type(template: str) -> PromptType:
    """Return the type of a template such as "a {} in the snow" or "a red {}".

    property: the subject itself is changed (colour, material, shape); accessory: it wears something;
    recontext: it is put elsewhere.
    """
    before, _, after = template.partition("{}")
    # A template that ends with the subject and says more than "a" before it changes the subject itself.
    if not after and before.strip() != "a":
        return "property"
    return "accessory" if "wearing" in after or after.endswith("outfit") else "recontext"


def _classes(lines: list[str]) -> list[tuple[str, str]]:
    """Return (subject, class) of the lines under "subject_name,class", up to the first empty one."""
    header = "subject_name,class"
    if header not in lines:
        return []
    pairs = []
    for line in lines[lines.index(header) + 1 :]:
        name, comma, noun = line.partition("#")[0].partition(",")
        if not comma:
            break
        pairs.append((name.strip(), noun.strip()))
    return pairs


def _templates(file: Path, lines: list[str], heading: str) -> tuple[str, ...]:
    """Return the prompts of the list under a heading, up to its closing bracket.

    Raises:
        UserError: A line of the list is no prompt.
    """
    if heading not in lines:
        return ()
    templates = []
    for line in lines[lines.index(heading) + 1 :]:
        if line.startswith("]"):
            break
        if not line or line.endswith("["):
            continue
        match = _PROMPT.match(line)
        if match is None:
            raise UserError(
                f"{file}: {line!r}, under {heading}, is no prompt with a token and a class",
                hint="Use the file as it is in github.com/google/dreambooth.",
            )
        templates.append(match[2].replace("{0} {1}", "{}"))
    return tuple(templates)
