"""The blind vote: nobody sees whose images they are, sides are fair, votes are for the right runs."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from commands import run_here
from customized_grpo.errors import UserError
from customized_grpo.reporting.votes import read_votes
from customized_grpo.studio.booth import Answer, Booth
from studio_serving import running

pytestmark = pytest.mark.slow


@pytest.fixture
def colours(runs: Path) -> Path:
    """The two runs; what "done" has drawn last is green, what "half" has drawn last is red."""
    for name, colour in (("done", "green"), ("half", "red")):
        for image in (runs / name / "samples" / "iteration_000006").iterdir():
            Image.new("RGB", (16, 16), colour).save(image)
    return runs


def booth_of(runs: Path, file: Path, prompts: list[str] | None = None) -> Booth:
    return Booth(runs / "done", runs / "half", prompts, file)


def colour(png: bytes) -> str:
    with Image.open(io.BytesIO(png)) as image:
        pixel = image.convert("RGB").getpixel((0, 0))
    return {(0, 128, 0): "green", (255, 0, 0): "red"}[pixel]  # type: ignore[index]


def sides(booth: Booth, voter: str) -> list[str]:
    """Return the run on the left of each item, by its colour, in the voter's order."""
    lefts = []
    for item in booth.items(voter):
        left = colour(booth.image(voter, item.number, "left"))
        right = colour(booth.image(voter, item.number, "right"))
        assert {left, right} == {"green", "red"}
        lefts.append(left)
    return lefts


def test_each_run_is_on_the_left_half_of_the_time_in_an_order_of_each_voter(
    colours: Path, tmp_path: Path
) -> None:
    booth = booth_of(colours, tmp_path / "votes.jsonl")
    assert len(booth.items("Ann")) == 8
    assert Counter(sides(booth, "Ann")) == {"green": 4, "red": 4}
    orders = {tuple(sides(booth, voter)) for voter in ("Ann", "Bo", "Cy", "Di")}
    prompts = {tuple(item.prompt for item in booth.items(voter)) for voter in ("Ann", "Bo", "Cy", "Di")}
    assert len(orders) > 1 and len(prompts) > 1
    again = booth_of(colours, tmp_path / "votes.jsonl")
    assert sides(again, "Ann") == sides(booth, "Ann") == sides(booth, " Ann ")


def test_whoever_always_prefers_a_run_votes_for_that_run(colours: Path, tmp_path: Path) -> None:
    booth = booth_of(colours, tmp_path / "votes.jsonl")
    for number, left in enumerate(sides(booth, "Ann")):
        green = "left" if left == "green" else "right"
        booth.vote(Answer(voter="Ann", number=number, question="identity", choice=green))
        booth.vote(Answer(voter="Ann", number=number, question="prompt", choice="tie"))
    identity, prompt = booth.results().results
    assert (identity["a"], identity["wins"], identity["losses"], identity["left"]) == ("done", 8, 0, 0.5)
    assert (prompt["ties"], prompt["rate"]) == (8, 0.5)
    rows = list(csv.DictReader(io.StringIO(booth.csv())))
    assert {row["chosen run"] for row in rows if row["question"] == "identity"} == {"done"}


def test_a_voter_goes_on_where_they_stopped_and_may_change_their_mind(colours: Path, tmp_path: Path) -> None:
    file = tmp_path / "votes.jsonl"
    booth_of(colours, file).vote(Answer(voter="Ann", number=3, question="prompt", choice="left"))
    booth = booth_of(colours, file)
    answers = [item.answers for item in booth.items("Ann")]
    assert answers[3] == {"prompt": "left"} and sum(map(len, answers)) == 1
    assert [item.answers for item in booth.items("Bo")] == [{}] * 8
    booth.vote(Answer(voter="Ann", number=3, question="prompt", choice="right"))
    assert booth.items("Ann")[3].answers == {"prompt": "right"}
    assert len(booth.votes.votes()) == 1 and len(read_votes(file)[1]) == 2


def test_no_answer_names_a_run_before_the_results(colours: Path, tmp_path: Path) -> None:
    booth = booth_of(colours, tmp_path / "votes.jsonl")
    with running(booth=booth) as studio:
        view = studio.get("/api/vote").text
        items = studio.get("/api/vote/items?voter=Ann").text
        image = studio.get("/api/vote/image/0/left?voter=Ann")
        given = {"voter": "Ann", "number": 0, "question": "identity", "choice": "left"}
        answer = studio.post("/api/vote", given)
        assert answer.status_code == 200
        for text in (view, items, answer.text, str(image.headers), studio.get("/api/list").text):
            assert "done" not in text and "half" not in text
        assert studio.json("/api/vote/results")["a"] == "done"
        assert studio.get("/api/vote/votes.csv").text.startswith("voter,item,subject")
        for path in (
            "image/99/left?voter=Ann",
            "image/0/a?voter=Ann",
            "items?voter=%20",
            f"items?voter={'x' * 41}",
        ):
            assert studio.get(f"/api/vote/{path}").status_code == 422
        assert studio.post("/api/vote", {**given, "choice": "a"}).status_code == 422


def test_votes_on_a_run_that_was_made_again_do_not_mix(colours: Path, tmp_path: Path) -> None:
    file = tmp_path / "votes.jsonl"
    booth_of(colours, file).vote(Answer(voter="Ann", number=3, question="prompt", choice="left"))
    # an earlier image is not voted on
    Image.new("RGB", (16, 16), "blue").save(colours / "half" / "samples" / "iteration_000003" / "row_00.png")
    assert len(booth_of(colours, file).votes.votes()) == 1
    drawn = sorted((colours / "half" / "samples" / "iteration_000006").iterdir())[0]
    Image.new("RGB", (16, 16), "blue").save(drawn)
    with pytest.raises(UserError, match="has votes on other images"):
        booth_of(colours, file)
    # a file of an older version does not know its images
    lines = file.read_text().splitlines(keepends=True)
    old = {name: value for name, value in json.loads(lines[0]).items() if name != "images"}
    file.write_text(json.dumps(old) + "\n" + "".join(lines[1:]))
    assert len(booth_of(colours, file).votes.votes()) == 1


def test_without_a_vote_there_is_none(runs: Path) -> None:
    with running(runs) as studio:
        assert studio.json("/api/vote") == {"is_on": False, "questions": {}, "items": 0}
        assert studio.get("/api/vote/results").status_code == 404


def test_only_the_prompts_of_a_list_are_voted_on(colours: Path, tmp_path: Path) -> None:
    rows = json.loads((colours / "done" / "samples" / "index.json").read_text())["rows"]
    booth = booth_of(colours, tmp_path / "votes.jsonl", [rows[2]["prompt"]])
    expected = sum(row["prompt"] == rows[2]["prompt"] for row in rows)
    assert len(booth.items("Ann")) == expected >= 1
    with pytest.raises(UserError, match="no prompt of --prompts"):
        booth_of(colours, tmp_path / "other.jsonl", ["a dragon"])


def test_a_prompt_with_another_reference_is_not_voted_on(colours: Path, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), "blue").save(colours / "half" / "samples" / "reference_00.png")
    assert len(booth_of(colours, tmp_path / "votes.jsonl").items("Ann")) == 7


def test_without_a_reference_only_the_prompt_is_asked_about(colours: Path, tmp_path: Path) -> None:
    for name in ("done", "half"):
        index = colours / name / "samples" / "index.json"
        content = json.loads(index.read_text())
        content["rows"][0]["reference"] = None
        index.write_text(json.dumps(content))
    booth = booth_of(colours, tmp_path / "votes.jsonl")
    items = booth.items("Ann")
    (plain,) = [item.number for item in items if item.questions == ["prompt"]]
    assert len(items) == 8 and sum(len(item.questions) for item in items) == 15
    booth.vote(Answer(voter="Ann", number=plain, question="prompt", choice="left"))
    with pytest.raises(UserError, match="no question of identity"):
        booth.vote(Answer(voter="Ann", number=plain, question="identity", choice="left"))


def test_runs_of_one_comparison_keep_their_votes_with_it_and_others_here(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Booth(colours / "done", colours / "half", None, None).votes.path == Path("votes_done--half.jsonl")
    compared = tmp_path / "compared"
    for arm in ("ours", "naive"):
        shutil.copytree(colours / "done", compared / "runs" / arm / "seed_0")
    (compared / "plan.json").write_text("{}")
    booth = Booth(compared / "runs" / "ours" / "seed_0", compared / "runs" / "naive" / "seed_0", None, None)
    assert booth.votes.path == compared / "votes" / "ours_seed_0--naive_seed_0.jsonl"
    assert booth.ballot.a == "ours/seed_0"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vote", "RUNS/done", "RUNS/nothing"], "is not the folder of a run"),
        (["--vote", "RUNS/done", "RUNS/half", "--control"], "--vote cannot be used with FOLDER"),
        (["RUNS", "--vote", "RUNS/done", "RUNS/half"], "--vote cannot be used with FOLDER"),
        (["RUNS", "--votes", "x.jsonl"], "--prompts and --votes need a vote"),
        (
            ["--vote", "RUNS/done", "RUNS/half", "--prompts", "no/such/file"],
            "in UTF-8, one prompt in each line",
        ),
    ],
)
def test_a_vote_that_cannot_be_held_is_refused(runs: Path, arguments: list[str], message: str) -> None:
    done = run_here("studio", *[part.replace("RUNS", str(runs)) for part in arguments], "--port", "0")
    assert done.returncode == 2 and message in done.stderr
