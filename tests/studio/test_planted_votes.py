"""A blind vote on two real runs, held by a script over HTTP: what was planted is what the results say.

The script knows a run by its pixels alone, as a voter would, and prefers it in a share that was fixed before.
"""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import statistics
from pathlib import Path

import pytest
from PIL import Image

from commands import run_here
from customized_grpo.studio.booth import Booth
from studio_serving import Running, running

FOR_A = [8, 8, 7, 6, 6, 5, 4, 4]
"""How many of eight voters prefer run a, for each subject: three quarters in all."""

T_7 = 2.364624
"""The .975 quantile of Student's t with seven degrees of freedom."""


@pytest.fixture(scope="module")
def rival(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another run of two-scale than `trained`: naive GRPO with larger steps."""
    folder = tmp_path_factory.mktemp("rival") / "naive"
    settings = ["advantage.name=linear", "schedule.name=constant", "train.learning_rate=0.02"]
    short = ["train.iterations=6", "evaluation.every=6", "evaluation.samples_per_prompt=1"]
    assert run_here("train", "two-scale", f"run.dir={folder}", *settings, *short).returncode == 0
    return folder


@pytest.fixture
def booth(trained: Path, rival: Path, tmp_path: Path) -> Booth:
    """The vote of both; each of the eight prompts counts as a subject, where two-scale has two of them."""
    folders = []
    for run in (trained, rival):
        folder = tmp_path / run.name
        shutil.copytree(run, folder)
        index = folder / "samples" / "index.json"
        content = json.loads(index.read_text())
        for number, row in enumerate(content["rows"]):
            row["prompt"] = f"{number} {row['prompt']}"
            row["subject"] = f"subject {number}"
        index.write_text(json.dumps(content))
        folders.append(folder)
    return Booth(folders[0], folders[1], None, tmp_path / "votes.jsonl")


def pixels(png: bytes) -> bytes:
    with Image.open(io.BytesIO(png)) as image:
        return image.convert("RGB").tobytes()


def vote(studio: Running, booth: Booth, voter: str, question: str, choices: dict[int, str]) -> None:
    """Answer every item of a voter: find run a by its pixels, and send the side of what is chosen."""
    newest = f"iteration_{booth.ballot.iterations[0]:06d}"
    for item in studio.json(f"/api/vote/items?voter={voter}"):
        subject = int(item["prompt"].split()[0])
        of_a = pixels((booth.a.folder / "samples" / newest / f"{subject:02d}.png").read_bytes())
        address = f"/api/vote/image/{item['number']}"
        shown = {}
        for side in ("left", "right"):
            # no certificates to read on loopback, which would take most of the time
            seen = studio.get(f"{address}/{side}?voter={voter}", verify=False)
            shown[side] = pixels(seen.content)
        assert shown["left"] != shown["right"] and of_a in shown.values()
        side_of_a = "left" if shown["left"] == of_a else "right"
        sides = {"a": side_of_a, "b": "right" if side_of_a == "left" else "left", "tie": "tie"}
        answer = {"voter": voter, "number": item["number"], "question": question}
        answer["choice"] = sides[choices[subject]]
        assert studio.post("/api/vote", answer, verify=False).status_code == 200


def test_the_win_rate_is_the_planted_one_with_the_interval_of_its_subjects(booth: Booth) -> None:
    with running(booth=booth) as studio:
        for voter in range(8):
            choices = {subject: "a" if voter < count else "b" for subject, count in enumerate(FOR_A)}
            vote(studio, booth, f"voter{voter}", "identity", choices)
        (result,) = studio.json("/api/vote/results")["results"]
        rows = list(csv.DictReader(io.StringIO(studio.get("/api/vote/votes.csv").text)))
    assert (result["votes"], result["voters"], result["subjects"], result["ties"]) == (64, 8, 8, 0)
    assert (result["wins"], result["losses"], result["rate"]) == (48, 16, 0.75)
    # the interval of Student's t over the eight subjects' shares
    shares = [count / 8 for count in FOR_A]
    half = T_7 * statistics.stdev(shares) / math.sqrt(8)
    assert result["low"] == pytest.approx(0.75 - half, abs=0.03)
    assert result["high"] == pytest.approx(0.75 + half, abs=0.03)
    # Fleiss' kappa by its definition
    agreeing = [(count * (count - 1) + (8 - count) * (7 - count)) / 56 for count in FOR_A]
    by_chance = 0.75**2 + 0.25**2
    kappa = (statistics.mean(agreeing) - by_chance) / (1 - by_chance)
    assert result["agreement"] == {"kind": "Fleiss", "kappa": pytest.approx(kappa), "items": 8}
    chosen = [row["chosen run"] for row in rows]
    assert chosen.count(booth.ballot.a) == 48 and chosen.count(booth.ballot.b) == 16


def test_a_tie_counts_half_and_two_voters_agree_as_cohen_says(booth: Booth) -> None:
    first = ["a", "a", "a", "a", "tie", "tie", "b", "b"]
    second = ["a", "a", "a", "b", "tie", "a", "b", "b"]
    with running(booth=booth) as studio:
        for voter, choices in (("Ann", first), ("Bo", second)):
            vote(studio, booth, voter, "prompt", dict(enumerate(choices)))
        (result,) = studio.json("/api/vote/results")["results"]
    assert (result["wins"], result["ties"], result["losses"]) == (8, 3, 5)
    assert result["rate"] == (8 + 3 / 2) / 16 and result["low"] < result["rate"] < result["high"]
    # they agree on 6 of 8; by chance on (4 x 4 + 2 x 1 + 2 x 3) / 64
    assert result["agreement"]["kappa"] == pytest.approx((6 / 8 - 24 / 64) / (1 - 24 / 64))
    assert result["agreement"]["kind"] == "Cohen"
