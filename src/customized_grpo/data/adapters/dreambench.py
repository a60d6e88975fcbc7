"""DreamBench: the DreamBooth photos, 30 subjects with 25 prompts each.

Layout, from github.com/google/dreambooth (`dataset/`, CC BY 4.0): a folder of photos per subject and
`prompts_and_classes.txt`, which lists `subject,class` and two Python lists of prompts with a unique token
and the class, for objects and for live subjects (cats and dogs). The token (`sks` and the like) belongs to
DreamBooth's own training and is dropped. The DreamBooth paper (arXiv 2208.12242) gives the types: 20
recontextualisations and 5 property modifications for objects; 10 recontextualisations, 10 accessories and 5
property modifications for live subjects, which is the order of the file.

The file does not fix which photo is the reference; by default it is the first. A list such as UNO's
`dreambench_singleip.json` does, and is taken as `--reference that.json`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from customized_grpo.data.adapters.base import (
    Bad,
    Draft,
    Item,
    Layout,
    Options,
    Picture,
    picture,
    read_json_list,
    read_lines,
    source_folder,
)
from customized_grpo.data.adapters.folder import choose_references
from customized_grpo.data.adapters.names import LayoutName
from customized_grpo.data.adapters.uno import reference_paths
from customized_grpo.data.manifest import RowProblem
from customized_grpo.errors import UserError

PROMPTS_FILE = "prompts_and_classes.txt"
LIVE_CLASSES = frozenset({"cat", "dog"})
PROMPT_TYPES = {
    "object": ("recontext",) * 20 + ("property",) * 5,
    "live": ("recontext",) * 10 + ("accessory",) * 10 + ("property",) * 5,
}
_TITLES = {"Object Prompts": "object", "Live Subject Prompts": "live"}
_PROMPT = re.compile(r"'(?P<prompt>[^']*\{1\}[^']*)'\.format\(unique_token, class_token\),?")
_CLASS = re.compile(r"(?P<subject>\w+),(?P<name>[\w ]+)")


@dataclass(frozen=True)
class PromptsAndClasses:
    """The content of `prompts_and_classes.txt`.

    Attributes:
        classes: Class by subject, in the order of the file.
        prompts: 25 prompts by kind of subject ("object", "live"), `{}` standing for the class.
    """

    classes: dict[str, str]
    prompts: dict[str, list[str]]


def read(source: Path, options: Options) -> Iterator[Item]:
    """Yield 25 rows per subject; a subject without photos is one bad row.

    Raises:
        UserError: The folder has no readable `prompts_and_classes.txt`.
    """
    folder = source_folder(source)
    content = read_prompts_and_classes(folder / PROMPTS_FILE)
    choice = options.reference or "first"
    given = _given_references(Path(choice)) if choice.endswith(".json") else None
    number = 0
    for subject, name in content.classes.items():
        try:
            references = _references(folder, subject, choice, given)
        except RowProblem as problem:
            number += 1
            yield Bad(number, str(problem))
            continue
        kind = "live" if name in LIVE_CLASSES else "object"
        for index, prompt in enumerate(content.prompts[kind]):
            number += 1
            yield Draft(
                number=number,
                id=f"{subject}-{index:02d}",
                prompt=prompt.replace("{}", name),
                references=references,
                subject=subject,
                meta={
                    "class": name,
                    "category": kind,
                    "prompt_type": PROMPT_TYPES[kind][index],
                    "prompt_index": index,
                },
            )


def read_prompts_and_classes(file: Path) -> PromptsAndClasses:
    """Parse `prompts_and_classes.txt`.

    Raises:
        UserError: It cannot be read, lists no subject, or does not have 25 prompts of each kind.
    """
    classes: dict[str, str] = {}
    prompts: dict[str, list[str]] = {"object": [], "live": []}
    kind = None
    for line in read_lines(file):
        kind = _TITLES.get(line, kind)
        if kind is None:
            found = _CLASS.fullmatch(line)
            if found and line != "subject_name,class":
                classes[found["subject"]] = found["name"]
        elif match := _PROMPT.fullmatch(line):
            prompts[kind].append(match["prompt"].replace("{0} ", "").replace("{1}", "{}"))
    counts = {kind: len(found) for kind, found in prompts.items()}
    if not classes or counts != {kind: len(types) for kind, types in PROMPT_TYPES.items()}:
        raise UserError(
            f"{file} lists {len(classes)} subjects, {counts['object']} prompts for objects and "
            f"{counts['live']} for live subjects; the published file has 30, 25 and 25",
            "Take it unchanged from github.com/google/dreambooth.",
        )
    return PromptsAndClasses(classes, prompts)


def _references(
    folder: Path, subject: str, choice: str, given: dict[str, list[str]] | None
) -> tuple[Picture, ...]:
    if not (folder / subject).is_dir():
        raise RowProblem(f"subject {subject!r} has no folder")
    if given is None:
        return choose_references(folder, folder / subject, choice)
    if subject not in given:
        raise RowProblem(f"{choice} names no photo of subject {subject!r}")
    return tuple(picture(folder, "reference", f"{subject}/{name}") for name in given[subject])


def _given_references(file: Path) -> dict[str, list[str]]:
    """Return the names of the reference photos by subject, the folder they are in, from a list of UNO's."""
    given: dict[str, list[str]] = {}
    for number, item in enumerate(read_json_list(file), 1):
        try:
            paths = [PurePosixPath(path) for path in reference_paths(item)]
        except RowProblem as problem:
            raise UserError(f"{file}, row {number}: {problem}") from problem
        names = [path.name for path in paths]
        subject = paths[0].parent.name
        if given.setdefault(subject, names) != names:
            raise UserError(f"{file}, row {number}: another reference of {subject!r} than in rows before")
    return given


LAYOUT = Layout(
    name=LayoutName.dreambench,
    title="DreamBench: DreamBooth's photos with prompts_and_classes.txt",
    licence="CC BY 4.0; credits are in its references_and_licenses.txt",
    takes=frozenset({"reference"}),
    read=read,
)
