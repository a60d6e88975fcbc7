"""The file of votes: what is kept, what counts, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from customized_grpo.errors import UserError
from customized_grpo.reporting.votes import Ballot, Item, Vote, VoteFile, read_votes

ITEMS = [Item(prompt="a toy", subject="bear"), Item(prompt="a hat", subject="cat")]
BALLOT = Ballot(a="ours", b="naive", iterations=(6, 6), items=ITEMS, key="1")


def vote(choice: str = "a", *, voter: str = "Ann", item: int = 0, question: str = "prompt") -> Vote:
    fields = {"voter": voter, "item": item, "question": question, "choice": choice}
    return Vote.model_validate({**fields, "left": "a", "time": "2026-01-01T00:00:00+00:00"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "votes" / "one.jsonl"


def test_votes_are_kept_and_the_latest_of_a_voter_counts(path: Path) -> None:
    file = VoteFile.open(path, BALLOT)
    for given in (vote("a"), vote("b", voter="Bo"), vote("tie"), vote("b", question="identity")):
        file.add(given)
    expected = [vote("tie"), vote("b", voter="Bo"), vote("b", question="identity")]
    assert file.votes() == expected
    again = VoteFile.open(path, BALLOT.model_copy(update={"key": "2"}))
    assert again.votes() == expected and again.ballot.key == "1"
    assert len(read_votes(path)[1]) == 4


@pytest.mark.parametrize("changes", [{"a": "theirs"}, {"iterations": (6, 9)}, {"items": ITEMS[:1]}])
def test_votes_on_other_images_do_not_mix(path: Path, changes: dict[str, object]) -> None:
    VoteFile.open(path, BALLOT)
    with pytest.raises(UserError, match="has votes on other images: ours against naive"):
        VoteFile.open(path, BALLOT.model_copy(update=changes))


def test_a_line_torn_by_a_crash_is_left_out_and_swallows_nothing(path: Path) -> None:
    file = VoteFile.open(path, BALLOT)
    file.add(vote("a"))
    with path.open("a") as torn:
        torn.write('{"kind": "vo')
    assert len(read_votes(path)[1]) == 1
    VoteFile.open(path, BALLOT).add(vote("b", voter="Bo"))
    assert [entry.voter for entry in read_votes(path)[1]] == ["Ann", "Bo"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no first line"),
        ("{}\n", "line 1: this is no file of votes"),
        (f"{BALLOT.model_dump_json()}\n{{}}\n", "line 2: this is no vote"),
        (f"{BALLOT.model_dump_json()}\n{vote(item=2).model_dump_json()}\n", "line 2: there is no item 2"),
    ],
)
def test_what_is_no_file_of_votes_is_refused_by_line(path: Path, content: str, message: str) -> None:
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_votes(path)


def test_a_file_that_is_a_link_is_not_written_through(path: Path, tmp_path: Path) -> None:
    VoteFile.open(tmp_path / "real.jsonl", BALLOT)
    path.parent.mkdir()
    os.symlink(tmp_path / "real.jsonl", path)
    file = VoteFile.open(path, BALLOT)
    with pytest.raises(UserError, match="symbolic link"):
        file.add(vote())
