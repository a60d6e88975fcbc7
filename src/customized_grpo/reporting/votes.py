"""A file of blind votes between the images of two runs: one JSON object a line, appended as people vote.

The first line says what is voted on. A vote names an item, a question, a voter and a choice. A voter who
votes again on the same question of the same item has changed their mind, and the later vote counts.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from customized_grpo.errors import UserError
from customized_grpo.files import sync_open
from customized_grpo.links import open_in_place

MAX_BYTES = 64 * 2**20

Question = Literal["identity", "prompt"]
Choice = Literal["a", "b", "tie"]

QUESTIONS: dict[Question, str] = {
    "identity": "Which one is more the subject of the reference?",
    "prompt": "Which one does more of what the prompt says?",
}


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Item(_Line):
    """One prompt for which both runs have drawn an image."""

    prompt: str
    subject: str


class Ballot(_Line):
    """What is voted on: the first line of the file."""

    kind: Literal["ballot"] = "ballot"
    a: str
    """Name of the first run."""
    b: str
    iterations: tuple[int, int]
    """After which the images of a and of b were drawn."""
    items: list[Item]
    images: str = ""
    """Digest of the pixels of all images, so that those of a run that was made again do not mix with them."""
    key: str
    """Random text, from which each voter's order of items and sides follows."""


class Vote(_Line):
    """One answer."""

    kind: Literal["vote"] = "vote"
    voter: str
    item: int
    question: Question
    choice: Choice
    left: Literal["a", "b"]
    """Which image was on the left, so that a preference for a side can be found."""
    time: str
    """When it was given, in UTC."""


class VoteFile:
    """A file of votes that is open for more; several threads may vote.

    Args:
        path: The file.
        ballot: What is voted on.
        votes: The votes that are in the file.
    """

    def __init__(self, path: Path, ballot: Ballot, votes: Sequence[Vote]) -> None:
        self.path = path
        self.ballot = ballot
        self._votes = list(votes)
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path, ballot: Ballot) -> VoteFile:
        """Open a file of votes, or begin it.

        Args:
            path: The file.
            ballot: What is voted on; that of an existing file must have the same runs and items.

        Raises:
            UserError: The file is damaged, of other runs, or cannot be written.
        """
        if path.exists():
            old, votes = read_votes(path)
            # A new ballot has a new random key, which is no difference; older files do not know their images.
            known = {"key": ballot.key, "images": old.images and ballot.images}
            if old.model_copy(update={"key": ballot.key}) != ballot.model_copy(update=known):
                raise UserError(
                    f"{path} has votes on other images: {old.a} against {old.b}",
                    hint="Name another file with --votes; votes on different images do not mix.",
                )
            return cls(path, old, votes)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _append(path, ballot)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from error
        return cls(path, ballot, [])

    def add(self, vote: Vote) -> None:
        """Append a vote; it is on the disk when this returns."""
        with self._lock:
            _append(self.path, vote)
            self._votes.append(vote)

    def votes(self) -> list[Vote]:
        """Return the votes that count, each voter's latest on every question of every item."""
        with self._lock:
            return latest(self._votes)


def latest(votes: Sequence[Vote]) -> list[Vote]:
    """Return each voter's latest vote on every question of every item."""
    # A later vote takes the place of an earlier one under the same key.
    found = {(vote.voter, vote.item, vote.question): vote for vote in votes}
    return list(found.values())


def read_votes(path: Path) -> tuple[Ballot, list[Vote]]:
    """Return what was voted on, and all votes in the order they were given.

    A last line that a crash has torn is left out.

    Raises:
        UserError: The file cannot be read, or is no file of votes; the message names the line.
    """
    try:
        with path.open("rb") as file:
            # One byte more than allowed tells a full file from one that is too large.
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise UserError(f"{path} has more than {MAX_BYTES:,} bytes, the limit of a file of votes")
    # What follows the last line feed was torn by a crash.
    lines = content.split(b"\n")[:-1]
    if not lines:
        raise UserError(f"{path} is no file of votes: it has no first line")
    try:
        ballot = Ballot.model_validate_json(lines[0])
    except ValidationError as error:
        raise UserError(f"{path}, line 1: this is no file of votes") from error
    votes = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            vote = Vote.model_validate_json(line)
        except ValidationError as error:
            raise UserError(f"{path}, line {number}: this is no vote") from error
        if not 0 <= vote.item < len(ballot.items):
            raise UserError(f"{path}, line {number}: there is no item {vote.item}")
        votes.append(vote)
    return ballot, votes


def _append(path: Path, line: Ballot | Vote) -> None:
    descriptor = open_in_place(path, os.O_RDWR | os.O_APPEND)
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        size = os.fstat(descriptor).st_size
        # a line that a crash has torn would swallow this one
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            content = os.pread(descriptor, size, 0)
            os.ftruncate(descriptor, content.rfind(b"\n") + 1)
        file.write(line.model_dump_json().encode() + b"\n")
        sync_open(descriptor)
