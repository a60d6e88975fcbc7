from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from customized_grpo.errors import UserError
from customized_grpo.pages import curves
from customized_grpo.pages.curves import bin_means, extremes, held_out_line, rolling_mean, training_line
from customized_grpo.pages.page import TEMPLATES, environment, evenly
from customized_grpo.pages.plots.numbers import Measurement
from customized_grpo.pages.run_data import read_run
from customized_grpo.pages.run_page import render_run_page, write_report
from customized_grpo.reporting.ending import How, write_ending
from html_page import Page, assert_nothing_is_fetched

from .conftest import PROMPTS, WEIGHTS, RunFolder

Folders = Callable[[str], RunFolder]
HOSTILE = '<script>alert("1")</script><img src=x onerror=alert(1)>'


def page(run: RunFolder) -> Page:
    return Page.of_file(write_report(run.path))


def test_the_report_lies_in_the_run_folder_and_nothing_else_is_left(full_run: RunFolder) -> None:
    before = {path.name for path in full_run.path.iterdir()}
    assert write_report(full_run.path) == full_run.path / "report.html"
    assert {path.name for path in full_run.path.iterdir()} - before == {"report.html"}


def test_a_process_compiles_a_template_once() -> None:
    assert environment().get_template("report.html.j2") is environment().get_template("report.html.j2")


def test_a_full_run_shows_every_figure(full_run: RunFolder) -> None:
    assert page(full_run).headings == [
        "Before and after", "Rewards by name", "Samples",
        "Learning curves", "Training reward: prompt following", "Training reward: identity",
        "Held-out judge: prompt following", "Held-out judge: identity",
        "What the model draws", "What samples are", "Accuracy by part",
        "The learning signal", "Do the two rewards agree?", "Prompt and identity weight by step",
        "Spread of the rewards within a group", "Spread of the images within a group",
        "Reward-hacking monitors", "Copy score", "Background similarity", "Diversity",
        "Image statistics against the base",
        "Policy health", "Largest ratio deviation", "Clipped share", "Gradient norm", "KL to the base",
        "Where the time went", "Training time", "Alarms and events", "Words used here",
        "Settings and versions",
    ]  # fmt: skip


def test_every_figure_says_how_to_read_it(full_run: RunFolder) -> None:
    seen = page(full_run)
    assert len(seen.of("figcaption")) == len(seen.of("figure")) > 15


def test_nothing_is_fetched_from_anywhere(full_run: RunFolder) -> None:
    assert_nothing_is_fetched(page(full_run))


def test_the_policy_of_the_page_allows_its_own_script_only(full_run: RunFolder) -> None:
    import base64
    import hashlib

    seen = page(full_run)
    policy = next(meta["content"] for meta in seen.of("meta") if "http-equiv" in meta) or ""
    script = re.search(r"<script>(.*)</script>", seen.source, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_hostile_text_from_the_run_is_shown_and_not_run(run_folder: Folders) -> None:
    run = run_folder("<b>name<b>")
    run.metrics(40)
    run.samples((0, 40))
    index = json.loads((run.path / "samples" / "index.json").read_text())
    for row in index["rows"]:
        row |= {"prompt": HOSTILE, "subject": HOSTILE}
    (run.path / "samples" / "index.json").write_text(json.dumps(index))
    config = (run.path / "config.yaml").read_text().replace("device: cpu", f"device: '{HOSTILE}'")
    (run.path / "config.yaml").write_text(config)
    (run.path / "versions.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    event = {"kind": "event", "iteration": 30, "rollouts": 1, "event": "alarm", "message": HOSTILE}
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(event) + "\n")
    seen = page(run)
    assert len(seen.of("script")) == 1 and seen.source.count("<script>") == 1
    assert not any(name.startswith("on") for _, attributes in seen.tags for name in attributes)
    assert all((image["src"] or "").startswith("data:") for image in seen.of("img"))
    assert "<b>name<b>" in seen.text and seen.text.count('alert("1")') >= 2 * len(index["rows"]) + 4


def test_verdicts_follow_from_the_intervals(full_run: RunFolder) -> None:
    full_run.summary(
        judge__identity=(0.05, 0.03, 0.07),
        judge__prompt=(-0.05, -0.07, -0.03),
        monitor__copy_score=(-0.02, -0.04, -0.01),
        monitor__background_similarity=(0.02, -0.01, 0.05),
    )
    seen = page(full_run)
    verdicts = re.findall(r'verdict (\w+)">([^<]+)<', seen.source)
    assert [quality for quality, _ in verdicts] == ["better", "worse", "better", "unclear"]
    assert verdicts[1][1].endswith("down, worse") and verdicts[2][1].endswith("down, better")
    assert verdicts[3][1] == "not distinguishable from 0"
    assert "Competitive degradation: the identity reward rose while" in seen.text


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.1, 0.2, "up"),
        (-0.2, -0.1, "down"),
        (-0.1, 0.1, "not distinguishable from 0"),
        (0.0, 0.1, "not distinguishable from 0"),
        (-0.1, 0.0, "not distinguishable from 0"),
        (None, None, "no interval"),
    ],
)
def test_a_difference_counts_only_when_its_interval_leaves_out_0(
    low: float | None, high: float | None, verdict: str
) -> None:
    assert Measurement(0.05, low, high).verdict == verdict


def test_an_unclear_result_is_not_called_a_rise(full_run: RunFolder) -> None:
    full_run.summary(judge__identity=(0.01, -0.02, 0.04))
    assert "Held-out identity cannot be told from the base: +0.010 (95 % interval" in page(full_run).text


def test_an_unfinished_run_claims_no_interval(run_folder: Folders) -> None:
    run = run_folder("young")
    run.metrics(40)
    seen = page(run)
    assert "unfinished: iteration 40 of 200" in seen.text
    assert "no paired interval has been computed yet" in seen.text and "no interval" in seen.text
    assert "rose by" not in seen.text and "better" not in [row.get("class") for row in seen.of("td")]


def alarm(run: RunFolder, iteration: int, message: str, kind: str = "diversity") -> None:
    line = {"kind": "event", "iteration": iteration, "event": "alarm", "message": message, "alarm": kind}
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def test_alarms_lead_the_page_and_qualify_every_sentence(run_folder: Folders) -> None:
    run = run_folder("alarming")
    run.metrics(40)
    run.summary(judge__identity=(0.05, 0.03, 0.07))
    alarm(run, 20, "diversity is .30")
    alarm(run, 20, "copy_score rose", "copy_score")
    alarm(run, 40, "diversity is .19")
    text = page(run).text
    order = [
        "An alarm stands at the latest evaluation.",
        "diversity is .19",
        "Raised earlier, and not at the latest evaluation:",
        "iteration 20: copy_score rose",
        "which the alarms above qualify:",
        "Held-out identity rose by",
    ]
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    assert "diversity is .30" not in text[: places[-1]], "an alarm that lasts is told once, as it is now"


def test_without_alarms_nothing_is_qualified(run_folder: Folders) -> None:
    run = run_folder("calm")
    run.metrics(40)
    assert "qualify" not in page(run).text


def test_the_kl_is_drawn_only_where_it_was_measured(run_folder: Folders) -> None:
    run = run_folder("free")
    run.metrics(40)
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("policy/kl", None)
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "KL to the base" not in page(run).headings


def test_every_reward_has_a_row_of_its_own(full_run: RunFolder) -> None:
    rows = re.findall(r'<tr><td class="wide-cell"><code>(.*?)</tr>', page(full_run).source, re.DOTALL)
    cells = {row.split("<")[0]: re.sub(r"<[^>]+>", " ", row).split() for row in rows}
    assert cells["dino"][1:3] == ["0.412", "\u2192"] and "12.5%" in cells["dino"]
    assert "0.250" in cells["dino"] and "0.200" in cells["clip_t"]


def only_kind(run: RunFolder, kind: str) -> None:
    """Leave the rewards of one kind in the metrics, and no quadrants."""
    gone = [f"reward/{other}" for other in ("prompt", "identity") if other != kind]
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in line.items() if not k.startswith((*gone, "advantage/"))} for line in lines]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))


def test_one_kind_alone_says_that_nothing_else_could_degrade(run_folder: Folders) -> None:
    run = run_folder("single")
    run.metrics(40)
    only_kind(run, "identity")
    seen = page(run)
    assert "Every reward was of kind identity (plain GRPO): there is no second quality" in seen.text
    assert "No competitive degradation" not in seen.text
    assert "Prompt and identity weight by step" not in seen.headings
    run.summary(reward__identity=(0.1, 0.05, 0.15), judge__prompt=(-0.1, -0.15, -0.05))
    assert "Competitive degradation: the identity reward rose while" in page(run).text


def test_shares_are_shown_as_shares_of_the_whole_run(run_folder: Folders) -> None:
    run = run_folder("gaps")
    run.metrics(4)
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "train":
            line |= {"health/zero_std_groups": 0.25, "health/nan_samples": 0.5, "health/skipped_updates": 1}
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = page(run).text
    assert "25.0% of the groups without any spread, 50.0% of the samples without a score" in text
    assert "4 skipped updates" in text


@pytest.mark.parametrize("iterations", [0, 1, 2])
def test_the_first_iterations_already_make_a_report(run_folder: Folders, iterations: int) -> None:
    run = run_folder("first")
    run.metrics(iterations)
    seen = page(run)
    assert "Nothing to compare yet" in seen.text and "Held-out judge: identity" in seen.headings


def test_a_run_that_has_written_no_record_yet_makes_a_report(run_folder: Folders) -> None:
    run = run_folder("empty")
    (run.path / "metrics.jsonl").touch()
    assert "unfinished: iteration 0 of 200" in page(run).text


def test_without_modes_and_without_evaluation_their_figures_are_left_out(run_folder: Folders) -> None:
    run = run_folder("plain")
    run.metrics(40, modes=False)
    assert "What samples are" not in page(run).headings
    bare = run_folder("bare")
    bare.metrics(40, evals=False)
    headings = page(bare).headings
    assert "Training reward: identity" in headings and "Do the two rewards agree?" in headings
    assert not any(heading.startswith("Held-out") for heading in headings)


def test_nulls_in_the_metrics_leave_gaps_not_errors(run_folder: Folders) -> None:
    run = run_folder("gaps")
    run.metrics(30)
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records[::3]:
        record |= {key: None for key in record if "/" in key}
    (run.path / "metrics.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    assert "Training reward: identity" in page(run).headings


def test_the_schedule_figure_shows_the_weights_training_uses(full_run: RunFolder) -> None:
    shown = re.findall(r"step (\d+): prompt ([\d.]+)", page(full_run).source)
    assert shown == [(str(step), f"{WEIGHTS[step]:.2f}") for step in range(8)]


def test_a_run_without_written_weights_has_no_schedule_figure(full_run: RunFolder) -> None:
    (full_run.path / "schedule.json").unlink()
    assert "Prompt and identity weight by step" not in page(full_run).headings


def test_the_null_of_the_quadrants_is_drawn_dotted(full_run: RunFolder) -> None:
    seen = page(full_run)
    assert 'class="line dotted"' in seen.source and "arccos(ρ)/π" in seen.text


def test_samples_show_reference_prompt_base_and_iterations(full_run: RunFolder) -> None:
    seen = page(full_run)
    alts = [image["alt"] for image in seen.of("img")]
    assert alts.count("Reference image of the subject") == len(PROMPTS)
    assert alts.count("Drawn by the base model") == alts.count("Drawn by the tuned model") == len(PROMPTS)
    assert alts.count("Drawn by iteration 60") == len(PROMPTS)
    assert all(prompt in seen.text for prompt in PROMPTS)


def test_the_images_are_those_of_the_row_and_iteration(full_run: RunFolder) -> None:
    import base64

    path = full_run.path / "samples" / "iteration_000060" / "02.png"
    expected = base64.b64encode(path.read_bytes()).decode()
    strips = [image for image in page(full_run).of("img") if image["alt"] == "Drawn by iteration 60"]
    assert strips[2]["src"] == f"data:image/png;base64,{expected}"


def test_large_samples_are_scaled_down(run_folder: Folders) -> None:
    import base64
    import io

    run = run_folder("large")
    run.metrics(1)
    run.samples((0,), side=600)
    source = page(run).of("img")[0]["src"] or ""
    assert source.startswith("data:image/jpeg;base64,")
    with Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) as image:
        assert image.size == (256, 256)


@pytest.mark.parametrize("name", ["../config.yaml", "/etc/passwd", "absent.png", "index.json", ""])
def test_a_sample_that_is_no_image_of_the_folder_is_refused(full_run: RunFolder, name: str) -> None:
    index = json.loads((full_run.path / "samples" / "index.json").read_text())
    index["rows"][0]["reference"] = name
    (full_run.path / "samples" / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError):
        write_report(full_run.path)


def test_a_fall_is_a_size_with_an_interval_of_sizes(run_folder: Callable[[str], RunFolder]) -> None:
    run = run_folder("falling")
    run.metrics()
    run.summary(judge__identity=(-0.114, -0.144, -0.085))
    assert "Held-out identity fell by 0.114 (95 % interval 0.085 to 0.144)." in page(run).text


def test_a_run_of_a_comparison_is_called_by_its_arm_and_seed(
    run_folder: Callable[[str], RunFolder], tmp_path: Path
) -> None:
    run = run_folder("naive-0.5/seed_3")
    run.metrics()
    assert read_run(run.path).name == "naive-0.5, seed 3"
    assert "<h1>naive-0.5, seed 3</h1>" in page(run).source
    own = RunFolder(tmp_path / "mine" / "seed_3")
    own.metrics()
    assert read_run(own.path).name == "seed_3"


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("interrupted", "The run was interrupted by SIGTERM."),
        ("stopped", "The run stopped itself: SIGTERM."),
        ("failed", "The run failed: SIGTERM."),
    ],
)
def test_an_unfinished_run_says_why_it_ended(full_run: RunFolder, how: How, sentence: str) -> None:
    write_ending(full_run.path, how, "SIGTERM")
    assert sentence not in page(full_run).text  # the summary says that it was finished since
    (full_run.path / "summary.json").unlink()
    assert f"{sentence} cgrpo resume goes on with it." in page(full_run).text


@pytest.mark.parametrize("name", ["summary.json", "samples", "samples/index.json", "metrics.jsonl"])
def test_nothing_that_a_link_leads_to_is_shown(full_run: RunFolder, tmp_path: Path, name: str) -> None:
    path = full_run.path / name
    private = tmp_path / "private"
    path.rename(private)
    path.symlink_to(private)
    with pytest.raises(UserError, match="is a link out of the run folder"):
        write_report(full_run.path)


def test_links_that_stay_inside_or_run_in_a_circle_do_no_harm(full_run: RunFolder, tmp_path: Path) -> None:
    (full_run.path / "summary.json").rename(full_run.path / "other.json")
    (full_run.path / "summary.json").symlink_to("other.json")
    (tmp_path / "link").symlink_to(full_run.path)
    assert write_report(tmp_path / "link").is_file()
    image = full_run.path / "samples" / "iteration_000000" / "00.png"
    image.unlink()
    image.symlink_to(image.name)
    with pytest.raises(UserError, match="no image in"):
        write_report(full_run.path)


def test_a_image_outside_the_folder_is_refused_even_if_it_is_one(full_run: RunFolder) -> None:
    Image.new("RGB", (4, 4)).save(full_run.path / "private.png")
    index = json.loads((full_run.path / "samples" / "index.json").read_text())
    index["rows"][0]["reference"] = "../private.png"
    (full_run.path / "samples" / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="no image in"):
        write_report(full_run.path)


def test_without_javascript_only_the_slider_is_missing(full_run: RunFolder) -> None:
    slider = next(label for label in page(full_run).of("label"))
    assert "hidden" in slider


def test_the_page_cares_for_dark_and_for_paper(full_run: RunFolder) -> None:
    source = page(full_run).source
    assert "prefers-color-scheme: dark" in source and "@media print" in source


def test_every_colour_in_use_is_defined_in_every_theme(full_run: RunFolder) -> None:
    used = set(re.findall(r"var\(--(\w+)", page(full_run).source)) - {"c", "columns"}
    themes = re.findall(r":root \{([^}]*)\}", (TEMPLATES / "charts.css").read_text())
    assert len(themes) == 3
    for theme in themes:
        assert used <= set(re.findall(r"--(\w+):", theme))


def test_the_commit_is_said_in_words(full_run: RunFolder) -> None:
    for modified, words in (
        (False, "git commit abc torch –"),
        (True, "git commit abc, with changes torch –"),
    ):
        git = {"commit": "abc", "modified": modified}
        (full_run.path / "versions.json").write_text(json.dumps({"git": git, "torch": None}))
        assert words in " ".join(page(full_run).text.split())


def test_half_a_character_becomes_a_question_mark(full_run: RunFolder) -> None:
    (full_run.path / "versions.json").write_text('{"torch": "\\ud800.1"}')
    assert "?.1" in write_report(full_run.path).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("summary.json", "{", "summary.json: not JSON"),
        (
            "summary.json",
            '{"base": {"a": 1}, "tuned": {"a": 1}, "difference": {"a": 1}}',
            "mean, low and high",
        ),
        ("versions.json", "[]", "object"),
        ("ended.json", '{"how": "gone", "reason": "x"}', "ended.json is damaged"),
        ("ended.json", '{"how": "failed"}', "ended.json is damaged"),
        ("config.yaml", "a: [", "config.yaml"),
        ("samples/index.json", '{"rows": 1}', "rows and iterations"),
        ("samples/index.json", '{"rows": [], "iterations": [0.5]}', "rows and iterations"),
    ],
)
def test_a_damaged_file_is_named(full_run: RunFolder, name: str, content: str, message: str) -> None:
    if name == "ended.json":  # a finished run has no use for it
        (full_run.path / "summary.json").unlink()
    (full_run.path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        write_report(full_run.path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.yaml", b"run: \xff", "config.yaml is damaged"),
        ("schedule.json", b'{"prompt_weights": [0.7, "a"]}', "prompt_weights must be a list of numbers"),
        ("samples/index.json", b'{"rows": [], "iterations": [0, "2"]}', "rows and iterations are expected"),
        ("samples/index.json", b'{"rows": [{"target": 0.5}], "iterations": [0]}', "rows and iterations"),
        ("held_out.json", b'{"shared_subjects": 0.5}', "shared_subjects must be a list"),
        (
            "summary.json",
            b'{"base": {"a/b": {"mean": 1, "low": [2], "high": 3}},'
            b' "tuned": {"a/b": {"mean": 1, "low": 1, "high": 1}},'
            b' "difference": {"a/b": {"mean": 0, "low": 0, "high": 0}}}',
            "every metric needs mean, low and high",
        ),
    ],
)
def test_values_of_another_type_are_named(
    full_run: RunFolder, name: str, content: bytes, message: str
) -> None:
    """Found by `make fuzz`."""
    file = full_run.path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        write_report(full_run.path)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        write_report(tmp_path)


def test_long_runs_do_not_make_long_curves() -> None:
    x, y = bin_means([float(i) for i in range(10_000)], [float(i) for i in range(10_000)], 240)
    assert len(x) <= 240 and x == y and sum(y) / len(y) == pytest.approx(4999.5, rel=0.01)
    # what pages ask for without saying a limit
    assert len(bin_means(x=[0.0] * 10_000, y=[0.0] * 10_000)[0]) <= 240
    assert len(extremes([float(place % 7) for place in range(10_000)])) <= 242


def test_a_thinned_curve_keeps_its_ends_its_extremes_and_its_gaps() -> None:
    y: list[float | None] = [float(place % 7) for place in range(1000)]
    y[333], y[777] = 99.0, -99.0
    y[500:600] = [None] * 100
    places = extremes(y, 100)
    assert {0, 333, 777, 999} <= set(places) and len(places) <= 102 and places == sorted(places)
    assert any(y[place] is None for place in places if 500 <= place < 600)
    assert extremes([1.0, None, 2.0], 100) == [0, 1, 2] and extremes([3.0]) == [0]


def test_a_single_iteration_and_evaluation_of_a_long_run_stand_out_and_the_captions_say_what_is_drawn(
    run_folder: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curves, "MAX_POINTS", 18)
    monkeypatch.setattr(curves.extremes, "__defaults__", (18,))
    monkeypatch.setattr(curves.bin_means, "__defaults__", (18,))
    run = run_folder("long")
    run.metrics(400)
    data = read_run(run.path)
    data.train[170]["policy/kl"] = 7.0
    data.evals[9] |= {"judge/identity": 0.9, "judge/identity_high": 0.95}
    line = training_line(data, "policy/kl", "kl", "plain")
    assert line is not None and line.raw is not None and line.raw_x is not None
    assert len(line.x) <= 18 and len(line.raw_x) == len(line.raw) <= 20
    assert (data.train[170]["rollouts"], 7.0) in list(zip(line.raw_x, line.raw, strict=True))
    judge = held_out_line(data, "judge/identity", "tuned", "identity")
    assert judge is not None and judge.high is not None and len(judge.x) <= 20
    place = list(judge.y).index(0.9)
    assert (judge.x[place], judge.high[place]) == (data.evals[9]["rollouts"], 0.95)
    text = Page(render_run_page(data)).text
    assert "Of 400 iterations the faint line has the lowest and the highest of every few." in text
    assert "Of 21 evaluations the lowest and the highest of every few are drawn." in text
    assert "Of 21 evaluations the means of every few are drawn." in text


def test_smoothing_keeps_constants_and_gaps() -> None:
    assert rolling_mean([2.0, 2.0, None, 2.0], 3) == [2.0, 2.0, None, 2.0]
    assert rolling_mean([0.0, 3.0, 0.0], 3) == [1.5, 1.0, 1.5]


def test_iterations_to_show_keep_the_first_and_the_last() -> None:
    assert evenly(range(0, 101, 10), 5) == [0, 20, 50, 80, 100]
    assert evenly([0, 5], 9) == [0, 5]


def test_a_run_without_judges_says_so_and_shows_its_rewards(run_folder: Folders) -> None:
    run = run_folder("photos")
    run.metrics(40)
    run.summary()
    file = run.path / "summary.json"
    summary = json.loads(file.read_text())
    for part in ("base", "tuned", "difference"):
        summary[part] = {"reward/identity": summary[part]["reward/identity"]}
    file.write_text(json.dumps(summary))
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    unjudged = [{k: v for k, v in line.items() if not k.startswith(("judge/", "monitor/"))} for line in lines]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in unjudged))
    seen = page(run)
    assert "No held-out judge took part" in seen.text and "reward/identity" in seen.text
    assert "Nothing to compare yet" not in seen.text


@pytest.mark.parametrize(
    ("shared", "words"),
    [
        ({"shared_subjects": [], "shared_images": 0}, "on subjects it never saw"),
        ({"shared_subjects": ["dog"], "shared_images": 2}, "on rows that share 1 subject and 2 images"),
        ({"shared_subjects": [], "shared_images": 1}, "on rows that share 0 subjects and 1 image"),
        (None, "on held-out rows"),
    ],
)
def test_new_subjects_are_claimed_only_where_the_run_found_them_to_be_new(
    run_folder: Folders, shared: dict[str, object] | None, words: str
) -> None:
    run = run_folder("run")
    run.metrics(40)
    if shared is not None:
        (run.path / "held_out.json").write_text(json.dumps(shared))
    text = page(run).source
    assert words in text
    assert ("never saw, on subjects it never saw" in text) is (words == "on subjects it never saw")
