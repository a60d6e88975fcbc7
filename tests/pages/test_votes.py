"""From votes to the results of the page: planted preferences, agreement, CSV."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import pytest

from comparison_results import comparison
from customized_grpo.pages.comparison_page import render_comparison_page
from customized_grpo.pages.votes import agreement, vote_results, votes_csv, votes_of_comparison
from customized_grpo.reporting.votes import Ballot, Item, Vote, VoteFile

ITEMS = [Item(prompt=f"prompt {number}", subject=f"toy-{number // 2}") for number in range(8)]
BALLOT = Ballot(a="ours", b="naive", iterations=(6, 6), items=ITEMS, key="1")


def votes(voter: str, choices: str, question: str = "identity", left: str = "a") -> list[Vote]:
    """Return votes on the items from the first, a letter each: a, b or t."""
    words = {"a": "a", "b": "b", "t": "tie"}
    found = []
    for item, letter in enumerate(choices):
        fields = {"voter": voter, "item": item, "question": question, "choice": words[letter]}
        found.append(Vote.model_validate({**fields, "left": left, "time": "now"}))
    return found


def test_a_planted_preference_comes_back_with_its_interval() -> None:
    given = [*votes("Ann", "aaaaaabt"), *votes("Bo", "aaaaabbt")]
    (result,) = vote_results(BALLOT, given)
    assert (result["wins"], result["ties"], result["losses"]) == (11, 2, 3)
    assert result["rate"] == pytest.approx(12 / 16) and result["subjects"] == 4
    assert result["low"] < 12 / 16 < result["high"]
    assert (result["votes"], result["voters"], result["left"]) == (16, 2, pytest.approx(11 / 14))


def test_each_question_has_its_own_result() -> None:
    given = [*votes("Ann", "aa"), *votes("Ann", "bb", "prompt")]
    assert [(entry["question"], entry["rate"]) for entry in vote_results(BALLOT, given)] == [
        ("identity", 1.0),
        ("prompt", 0.0),
    ]
    assert vote_results(BALLOT, []) == []


def test_a_preference_for_the_left_is_seen() -> None:
    given = [*votes("Ann", "aaaa"), *votes("Bo", "bbbb", left="b"), *votes("Cy", "t")]
    (result,) = vote_results(BALLOT, given)
    assert result["left"] == 1.0


def test_agreement_is_cohens_for_two_and_fleiss_for_more_on_shared_items() -> None:
    two = [*votes("Ann", "aabb"), *votes("Bo", "aab")]
    assert agreement(two) == {"kind": "Cohen", "kappa": pytest.approx(1), "items": 3}
    three = agreement([*two, *votes("Cy", "aba")])
    # items aaa, aab, bba: P = (1 + 1/3 + 1/3) / 3; shares 6/9 and 3/9
    assert three["kind"] == "Fleiss" and three["items"] == 3
    chance = (6 / 9) ** 2 + (3 / 9) ** 2
    assert three["kappa"] == pytest.approx((5 / 9 - chance) / (1 - chance))
    assert agreement(votes("Ann", "ab"))["kappa"] is None


def test_the_csv_names_runs_and_holds_no_formula() -> None:
    ballot = BALLOT.model_copy(update={"items": [Item(prompt="=1+1", subject="a, b"), *ITEMS[1:]]})
    rows = list(csv.DictReader(io.StringIO(votes_csv(ballot, votes("@Ann", "ab")))))
    assert rows[0]["prompt"] == "'=1+1" and rows[0]["voter"] == "'@Ann" and rows[0]["subject"] == "a, b"
    assert [row["chosen run"] for row in rows] == ["ours", "naive"]


def test_votes_of_a_comparison_are_on_its_page(tmp_path: Path) -> None:
    file = VoteFile.open(tmp_path / "votes" / "one.jsonl", BALLOT)
    for vote in [*votes("Ann", "aaaaaabt"), *votes("Bo", "aaaaabbt")]:
        file.add(vote)
    os.symlink("/etc/hostname", tmp_path / "votes" / "link.jsonl")
    results = votes_of_comparison(tmp_path)
    assert len(results) == 1
    page = render_comparison_page({**comparison(), "votes": results})
    assert "Blind votes" in page and "ours against naive" in page and "11 / 2 / 3" in page
    assert "Blind votes" not in render_comparison_page(comparison())
