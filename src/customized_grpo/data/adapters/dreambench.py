"""DreamBench: the DreamBooth photos, 30 subjects with 25 prompts each.

Layout, from github.com/google/dreambooth (`dataset/`, CC BY 4.0): a folder of photos per subject and
`prompts_and_classes.txt`, which lists `subject,class` and two Python lists of prompts with a unique token
and the class, for objects and for live subjects (cats and dogs). The token (`sks` and the like) belongs to
DreamBooth's own training and is dropped; `data/dreambench.py` reads it all, also for the benchmark.

The file does not fix which photo is the reference; by default it is the first, and the target the one after
it (see `subject_photos.py`). A list such as UNO's `dreambench_singleip.json` does, and is taken as
`--reference that.json`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from customized_grpo.data.adapters.base import (
    Bad,
    Draft,
    Item,
    Layout,
    Options,
    read_json_list,
    source_folder,
)
from customized_grpo.data.adapters.subject_photos import SubjectPhotos
from customized_grpo.data.adapters.uno import reference_paths
from customized_grpo.data.dreambench import dreambench_folder, read_dreambench
from customized_grpo.data.row_checks import RowProblem
from customized_grpo.errors import UserError


def read(source: Path, options: Options) -> Iterator[Item]:
    """Yield 25 rows per subject; a subject without photos is one bad row.

    Raises:
        UserError: The folder has no readable `prompts_and_classes.txt`.
    """
    folder = source_folder(dreambench_folder(source))
    benchmark = read_dreambench(folder, require_photos=False)
    choice = options.reference or "first"
    given = _given_references(Path(choice)) if choice.endswith(".json") else None
    number = 1
    for subject in benchmark.subjects:
        if not (folder / subject.name).is_dir():
            yield Bad(number, f"subject {subject.name!r} has no folder")
            number += 1
            continue
        photos = SubjectPhotos(folder, folder / subject.name)
        for note in photos.notes(number):
            # a bad file is reported like a row and takes a number; an ignored file is only counted
            number += isinstance(note, Bad)
            yield note
        for index, (prompt, prompt_type) in enumerate(benchmark.prompts(subject)):
            try:
                if given is None:
                    views = photos.views(index, choice)
                elif subject.name in given:
                    views = photos.views_of([folder / subject.name / name for name in given[subject.name]])
                else:
                    raise RowProblem(f"{choice} names no photo of subject {subject.name!r}")
            except RowProblem as problem:
                yield Bad(number, str(problem))
                number += 1
                break  # it is the same for every prompt
            yield Draft(
                number=number,
                id=f"{subject.name}-{index:02d}",
                prompt=prompt,
                references=views.references,
                subject=subject.name,
                masks=views.masks,
                target=views.target,
                meta={
                    "class": subject.noun,
                    "category": "live" if subject.is_live else "object",
                    "prompt_type": prompt_type,
                    "prompt_index": index,
                },
            )
            number += 1


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
        # UNO's list has a row per prompt, so every subject comes 25 times
        if given.setdefault(subject, names) != names:
            raise UserError(f"{file}, row {number}: another reference of {subject!r} than in rows before")
    return given


LAYOUT = Layout(
    name="dreambench",
    title="DreamBench: DreamBooth's photos with prompts_and_classes.txt",
    licence="CC BY 4.0; credits are in its references_and_licenses.txt",
    takes=frozenset({"reference"}),
    read=read,
)
