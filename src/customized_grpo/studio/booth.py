"""A blind vote between the images of two runs: who sees what on which side, and what they prefer.

Voters see a reference, a prompt, and the newest image of each run for it, in an order of their own. No
address and no answer says which image is whose before somebody asks for the results.
"""

from __future__ import annotations

import hashlib
import random
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from customized_grpo.errors import UserError
from customized_grpo.pages.sample_images import Samples, read_png
from customized_grpo.pages.votes import FOLDER, vote_results, votes_csv
from customized_grpo.reporting.tail import MetricsTail
from customized_grpo.reporting.votes import QUESTIONS, Ballot, Item, Question, Vote, VoteFile
from customized_grpo.runs.folder import is_run_folder
from customized_grpo.studio.library import PLAN, Run, folder_id
from customized_grpo.studio.views import image_png, run_samples

MAX_NAME = 40

Side = Literal["left", "right"]
OTHER: dict[str, Literal["a", "b"]] = {"a": "b", "b": "a"}


class BoothView(BaseModel):
    """What is voted on."""

    is_on: bool
    questions: dict[Question, str] = {}
    items: int = 0


class ItemView(BaseModel):
    """An item as a voter sees it."""

    number: int
    prompt: str
    questions: list[Question]
    """Without a reference nobody can say whose subject it is."""
    answers: dict[str, Literal["left", "right", "tie"]]


class Answer(BaseModel):
    """What a voter sends."""

    voter: str
    number: int
    question: Question
    choice: Literal["left", "right", "tie"]


class ResultsView(BaseModel):
    """The results, which end the blindness of whoever reads them."""

    a: str
    b: str
    iterations: tuple[int, int]
    file: str
    results: list[dict[str, Any]]


class Booth:
    """A vote.

    Args:
        first: Folder of a run, called a.
        second: Folder of the other, b.
        prompts: Only these prompts are voted on; None: all that both runs draw.
        file: Where votes are kept; None: see `default_file`.

    Raises:
        UserError: A folder is no run, the runs have no image in common, or the file is of another vote.
    """

    def __init__(self, first: Path, second: Path, prompts: list[str] | None, file: Path | None) -> None:
        self.a = _run(first)
        self.b = _run(second)
        self._samples = {"a": _samples(self.a), "b": _samples(self.b)}
        self._rows = _shared_rows(self._samples["a"], self._samples["b"], prompts)
        # Names are kept in the file of votes and shown with the results only.
        names = _names(self.a, self.b)
        ballot = Ballot(
            a=names[0],
            b=names[1],
            iterations=(max(self._samples["a"].iterations), max(self._samples["b"].iterations)),
            items=[_item(self._samples["a"], row) for row, _ in self._rows],
            images=_digest(self._samples["a"], self._samples["b"], self._rows),
            key=secrets.token_hex(16),
        )
        self.votes = VoteFile.open(file or default_file(self.a.folder, self.b.folder, names), ballot)
        # The file's own ballot, whose random key the orders of earlier voters follow from.
        self.ballot = self.votes.ballot

    def view(self) -> BoothView:
        """Return what is voted on."""
        return BoothView(is_on=True, questions=QUESTIONS, items=len(self._rows))

    def items(self, voter: str) -> list[ItemView]:
        """Return the items in the order of a voter, with what they have answered.

        Raises:
            UserError: That is no name; so for all below.
        """
        answers: dict[int, dict[str, Literal["left", "right", "tie"]]] = {}
        for vote in self.votes.votes():
            if vote.voter == checked_name(voter):
                # run -> side, as this voter saw it
                side: Side = "left" if vote.choice == vote.left else "right"
                answers.setdefault(vote.item, {})[vote.question] = "tie" if vote.choice == "tie" else side
        views = []
        for number, (item, _) in enumerate(self._order(voter)):
            views.append(
                ItemView(
                    number=number,
                    prompt=self.ballot.items[item].prompt,
                    questions=self._questions(item),
                    answers=answers.get(item, {}),
                )
            )
        return views

    def image(self, voter: str, number: int, which: str) -> bytes:
        """Return an image of an item as PNG: the "reference", or that on the "left" or "right"."""
        item, left = self._at(voter, number)
        row_of_a, row_of_b = self._rows[item]
        if which == "reference":
            return image_png(self.a, row_of_a, "reference", None)
        if which not in ("left", "right"):
            raise UserError(f"there is no image {which!r}")
        shown = left if which == "left" else OTHER[left]
        run = self.a if shown == "a" else self.b
        row = row_of_a if shown == "a" else row_of_b
        iteration = self.ballot.iterations[0 if shown == "a" else 1]
        return image_png(run, row, str(iteration), None)

    def vote(self, answer: Answer) -> None:
        """Keep an answer."""
        item, left = self._at(answer.voter, answer.number)
        if answer.question not in self._questions(item):
            raise UserError("without a reference there is no question of identity")
        # side -> run: what is stored must not depend on where an image was shown
        sides: dict[str, Literal["a", "b", "tie"]] = {"left": left, "right": OTHER[left], "tie": "tie"}
        self.votes.add(
            Vote(
                voter=checked_name(answer.voter),
                item=item,
                question=answer.question,
                choice=sides[answer.choice],
                left=left,
                time=datetime.now(UTC).isoformat(timespec="seconds"),
            )
        )

    def results(self) -> ResultsView:
        """Return win rates and agreement, with the names of the runs."""
        return ResultsView(
            a=self.ballot.a,
            b=self.ballot.b,
            iterations=self.ballot.iterations,
            file=str(self.votes.path),
            results=vote_results(self.ballot, self.votes.votes()),
        )

    def csv(self) -> str:
        """Return the votes that count as CSV."""
        return votes_csv(self.ballot, self.votes.votes())

    def _questions(self, item: int) -> list[Question]:
        row_of_a, _ = self._rows[item]
        has_reference = self._samples["a"].rows[row_of_a].get("reference") is not None
        return [question for question in QUESTIONS if has_reference or question != "identity"]

    def _order(self, voter: str) -> list[tuple[int, Literal["a", "b"]]]:
        """Return (item, run on the left) in the order of a voter: the same whenever they come back.

        Each run is on the left for half of the items, so that a voter who prefers a side prefers no run.
        """
        name = checked_name(voter)
        # Nothing is stored: name and key give the same order at every visit.
        chance = random.Random(hashlib.sha256(f"{self.ballot.key} {name}".encode()).digest())
        count = len(self._rows)
        # Each run is on the left in half of the items, and chance decides in which.
        lefts: list[Literal["a", "b"]] = ["a" if place % 2 else "b" for place in range(count)]
        chance.shuffle(lefts)
        items = list(range(count))
        chance.shuffle(items)
        return list(zip(items, lefts, strict=True))

    def _at(self, voter: str, number: int) -> tuple[int, Literal["a", "b"]]:
        order = self._order(voter)
        if not 0 <= number < len(order):
            raise UserError(f"there is no item {number}")
        return order[number]


def checked_name(voter: str) -> str:
    """Return the name of a voter without blanks around it.

    Raises:
        UserError: It is empty, long, or has control characters.
    """
    name = voter.strip()
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise UserError(f"a voter's name has 1 to {MAX_NAME} printable characters")
    return name


def default_file(first: Path, second: Path, names: tuple[str, str]) -> Path:
    """Return where votes are kept: with the comparison of both runs, else in the working directory."""
    file = f"{names[0]}--{names[1]}.jsonl".replace("/", "_")
    comparison = _comparison(first)
    if comparison is not None and comparison == _comparison(second):
        return comparison / FOLDER / file
    return Path(f"votes_{file}")


def _comparison(run: Path) -> Path | None:
    """Return the folder of the comparison that a run belongs to: FOLDER/runs/ARM/seed_N."""
    parents = run.resolve().parents
    return parents[2] if len(parents) > 2 and (parents[2] / PLAN).is_file() else None


def _names(first: Run, second: Run) -> tuple[str, str]:
    """Return a name for each run, as short as tells them apart."""
    short = []
    for run in (first, second):
        folder = run.folder.resolve()
        short.append(f"{folder.parent.name}/{folder.name}" if _comparison(folder) else folder.name)
    if short[0] == short[1]:
        return str(first.folder.resolve()), str(second.folder.resolve())
    return short[0], short[1]


def _run(folder: Path) -> Run:
    if not is_run_folder(folder):
        raise UserError(
            f"{folder} is not the folder of a run", hint="A vote is between two runs: --vote A B."
        )
    path = folder.absolute()
    return Run(folder_id(path), path, path.name, None, MetricsTail(path / "metrics.jsonl"))


def _samples(run: Run) -> Samples:
    samples = run_samples(run)
    if samples is None or not samples.iterations or not samples.rows:
        raise UserError(f"{run.folder} has no sample images yet", hint="They come with the first evaluation.")
    return samples


def _shared_rows(first: Samples, second: Samples, prompts: list[str] | None) -> list[tuple[int, int]]:
    """Return (row of first, row of second) of every prompt that both draw for the same reference."""
    rows: dict[tuple[Any, Any], int] = {}
    for number, row in enumerate(second.rows):
        # A prompt that was drawn twice counts once, by its first row.
        rows.setdefault((row.get("prompt"), row.get("subject")), number)
    shared = []
    for number, row in enumerate(first.rows):
        other = rows.get((row.get("prompt"), row.get("subject")))
        if other is None or (prompts is not None and row.get("prompt") not in prompts):
            continue
        # of prompts alone there is none, in both or in one
        if _pixels(first.reference_path(number)) == _pixels(second.reference_path(other)):
            shared.append((number, other))
    if not shared:
        raise UserError(
            "the two runs have drawn no prompt of --prompts for the same reference"
            if prompts is not None
            else "the two runs have drawn no prompt for the same reference",
            hint="Compare runs whose recipes have the same section `data`, with the same data.seed.",
        )
    return shared


def _digest(first: Samples, second: Samples, rows: list[tuple[int, int]]) -> str:
    """Return the digest of the pixels of what is voted on, the newest images of both runs."""
    digest = hashlib.sha256()
    for row, other in rows:
        for samples, number in ((first, row), (second, other)):
            digest.update(_pixels(samples.drawn_path(number, max(samples.iterations))) or b"")
    return digest.hexdigest()


def _pixels(path: Path | None) -> bytes | None:
    return None if path is None else read_png(path).tobytes()


def _item(samples: Samples, row: int) -> Item:
    entry = samples.rows[row]
    # rows without a subject are their own cluster
    return Item(prompt=entry.get("prompt") or "", subject=entry.get("subject") or f"row {row}")
