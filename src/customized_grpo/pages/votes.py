"""The results of blind votes: win rates with intervals, and how far the voters agree."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from customized_grpo.links import leads_out
from customized_grpo.pages.plots.numbers import NONE, Measurement, interval_text, number
from customized_grpo.reporting.votes import QUESTIONS, Ballot, Vote, latest, read_votes
from customized_grpo.statistics.preferences import cohen_kappa, fleiss_kappa, win_rate

VALUES = {"a": 1.0, "tie": 0.5, "b": 0.0}
"""What a vote adds to the wins of a."""

CHOICES = tuple(VALUES)

FOLDER = "votes"
"""Of a comparison, with a file of votes for each two runs that were voted on."""


def votes_of_comparison(folder: Path) -> list[dict[str, Any]]:
    """Return the results of every file of votes in the folder of a comparison.

    Raises:
        UserError: A file is damaged.
    """
    results = []
    for path in sorted((folder / FOLDER).glob("*.jsonl")):
        # a comparison from elsewhere could link to a private file of this machine
        if path.is_file() and not leads_out(path, folder):
            ballot, votes = read_votes(path)
            results += vote_results(ballot, latest(votes))
    return results


def vote_results(ballot: Ballot, votes: Sequence[Vote]) -> list[dict[str, Any]]:
    """Return the result of each question that somebody has answered.

    Args:
        ballot: What was voted on.
        votes: The votes that count.

    Returns:
        For each question {"a", "b", "question", "votes", "voters", "wins", "ties", "losses", "rate", "low",
        "high", "subjects", "left", "agreement"}: wins of a, its win rate with the 95 % interval, the share of
        votes for the left image among those that are no tie (None if all are), and how far voters agree.
    """
    results = []
    for question in QUESTIONS:
        answers = [vote for vote in votes if vote.question == question]
        if not answers:
            continue
        subjects = [ballot.items[vote.item].subject for vote in answers]
        rate = win_rate([VALUES[vote.choice] for vote in answers], subjects)
        decided = [vote for vote in answers if vote.choice != "tie"]
        left = [vote.choice == vote.left for vote in decided]
        results.append(
            {
                "a": ballot.a,
                "b": ballot.b,
                "question": question,
                "votes": len(answers),
                "voters": len({vote.voter for vote in answers}),
                "wins": rate.wins,
                "ties": rate.ties,
                "losses": rate.losses,
                "rate": rate.rate,
                "low": rate.low,
                "high": rate.high,
                "subjects": rate.subjects,
                "left": sum(left) / len(left) if left else None,
                "agreement": agreement(answers),
            }
        )
    return results


def agreement(votes: Sequence[Vote]) -> dict[str, Any]:
    """Return how far voters agree on the items that all of them have voted on.

    Args:
        votes: The votes that count, of one question.

    Returns:
        {"kind", "kappa", "items"}: Cohen's kappa of two voters, Fleiss' of more; kappa is None where it is
        not defined, as with one voter.
    """
    by_voter: dict[str, dict[int, str]] = {}
    for vote in votes:
        by_voter.setdefault(vote.voter, {})[vote.item] = vote.choice
    answers = list(by_voter.values())
    shared = sorted(set.intersection(*(set(answer) for answer in answers)))
    if len(answers) == 2:
        first = [answers[0][item] for item in shared]
        second = [answers[1][item] for item in shared]
        return {"kind": "Cohen", "kappa": cohen_kappa(first, second), "items": len(shared)}
    if len(answers) < 2:
        return {"kind": "one voter", "kappa": None, "items": len(shared)}
    counts = []
    for item in shared:
        chosen = [answer[item] for answer in answers]
        counts.append([chosen.count(choice) for choice in CHOICES])
    return {"kind": "Fleiss", "kappa": fleiss_kappa(counts), "items": len(shared)}


COLUMNS = ("voter", "item", "subject", "prompt", "question", "choice", "chosen run", "left", "time")


def votes_csv(ballot: Ballot, votes: Sequence[Vote]) -> str:
    """Return the votes as CSV, a row each, with a head; the runs are named."""
    # the writer ends its lines itself, with CR LF as CSV has them
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(COLUMNS)
    names = {"a": ballot.a, "b": ballot.b, "tie": "tie"}
    for vote in votes:
        item = ballot.items[vote.item]
        row: list[str | int] = [vote.voter, vote.item, item.subject, item.prompt, vote.question, vote.choice]
        row += [names[vote.choice], names[vote.left], vote.time]
        writer.writerow([_cell(value) for value in row])
    return buffer.getvalue()


def _cell(value: str | int) -> str | int:
    """Return a cell that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value


@dataclass(frozen=True)
class VoteRow:
    """One question of one vote, as a row of a table.

    Attributes:
        pair: The two runs.
        question: What was asked.
        votes: How many, and of how many voters.
        counts: Wins of the first, ties, wins of the second.
        rate: Win rate of the first.
        interval: Its 95 % interval; empty with one subject.
        agreement: Kappa with its kind.
    """

    pair: str
    question: str
    votes: str
    counts: str
    rate: str
    interval: str
    agreement: str


def vote_rows(results: Sequence[Mapping[str, Any]]) -> list[VoteRow]:
    """Return results of votes as rows of the page of a comparison."""
    rows = []
    for result in results:
        rate = Measurement(result["rate"], result["low"], result["high"])
        found = result["agreement"]
        kappa = NONE if found["kappa"] is None else number(found["kappa"])
        voters = "voter" if result["voters"] == 1 else "voters"
        rows.append(
            VoteRow(
                pair=f"{result['a']} against {result['b']}",
                question=result["question"],
                votes=f"{result['votes']:,} of {result['voters']} {voters}",
                counts=f"{result['wins']} / {result['ties']} / {result['losses']}",
                rate=number(rate.mean),
                interval=f"{interval_text(rate)}, {result['subjects']} subjects"
                if rate.low is not None
                else "",
                agreement=f"{kappa} ({found['kind']}, {found['items']} items)",
            )
        )
    return rows
