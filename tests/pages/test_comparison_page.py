from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from comparison_results import ARMS, comparison, many_arms
from customized_grpo.errors import UserError
from customized_grpo.pages.comparison_curves import MeanCurve, curves, mean_curve, strips
from customized_grpo.pages.comparison_data import OWN_COLOURS, read_comparison
from customized_grpo.pages.comparison_page import render_comparison_page, write_comparison_page
from customized_grpo.pages.comparison_plane import NAMED, pareto, shorten
from customized_grpo.pages.comparison_tables import arm_table, control_rows, gain_rows, run_rows
from customized_grpo.pages.page import TEMPLATES
from customized_grpo.pages.plots.numbers import p_text
from html_page import Page, assert_nothing_is_fetched

HOSTILE = '<script>alert("1")</script><img src=x onerror=alert(1)>'
SECTIONS = [
    "Identity against prompt", "All arms",
    "Against the control of each arm", "Training curves", "Held-out identity", "Held-out prompt accuracy",
    "Copy score", "Background similarity", "Spread of the prompt reward", "Spread of the identity reward",
    "Do the two rewards agree?", "Hypervolume", "When each quality is decided",
    "Still open, by the held-out judges", "Still open, by the training rewards",
    "Weights of the schedule by step", "Calibrated weights by step", "Definitions", "How it was run",
]  # fmt: skip


def page(results: dict[str, Any]) -> Page:
    return Page(render_comparison_page(results))


def headings(seen: Page) -> list[str]:
    """All but those of the small curves, which hold the names of arms."""
    labels = {arm["label"] for arm in ARMS}
    return [heading for heading in seen.headings if heading.strip() not in labels]


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return comparison()


@pytest.fixture(scope="module")
def seen(results: dict[str, Any]) -> Page:
    return page(results)


def test_every_section_appears_in_reading_order(seen: Page) -> None:
    assert headings(seen) == SECTIONS


def test_the_page_is_written_in_place_and_nothing_else_is_left(
    tmp_path: Path, results: dict[str, Any]
) -> None:
    path = tmp_path / "comparison.html"
    path.write_text("an older page")
    assert write_comparison_page(results, path) == path
    assert [file.name for file in tmp_path.iterdir()] == ["comparison.html"]
    assert path.read_text(encoding="utf-8") == render_comparison_page(results)


def test_the_same_results_give_the_same_page_and_stay_as_they_were(results: dict[str, Any]) -> None:
    before = copy.deepcopy(results)
    assert render_comparison_page(results) == render_comparison_page(copy.deepcopy(results))
    assert results == before


def test_nothing_is_fetched_and_no_script_is_allowed(seen: Page) -> None:
    assert_nothing_is_fetched(seen)
    policy = next(meta["content"] for meta in seen.of("meta") if "http-equiv" in meta) or ""
    assert "default-src 'none'" in policy and "script-src" not in policy
    assert not seen.of("script")


def test_the_page_cares_for_dark_for_paper_and_for_phones(seen: Page) -> None:
    for rule in ("prefers-color-scheme: dark", "@media print", "@media (max-width: 640px)"):
        assert rule in seen.source


def test_every_colour_in_use_is_defined_in_every_theme() -> None:
    source = render_comparison_page(comparison(many_arms(28), 2))
    used = set(re.findall(r"var\(--(\w+)", source)) - {"c", "columns"}
    themes = re.findall(r":root \{([^}]*)\}", (TEMPLATES / "charts.css").read_text())
    assert len(themes) == 3
    for theme in themes:
        assert used <= set(re.findall(r"--(\w+):", theme))


def test_hostile_text_is_shown_and_not_run() -> None:
    results = comparison(copy.deepcopy(ARMS), 2, finished={"gdpo": 1})
    for arm in results["arms"]:
        arm |= {"label": HOSTILE, "note": HOSTILE, "overrides": {HOSTILE: HOSTILE}}
    results |= {"name": HOSTILE, "definitions": [{"term": HOSTILE, "text": HOSTILE}]}
    results["config"]["run"]["dir"] = HOSTILE
    results["versions"] = {HOSTILE: HOSTILE, "git": {"commit": HOSTILE, "modified": True}}
    results["analysis"]["verdicts"] = [HOSTILE]
    results["runs"][-1]["state"] = HOSTILE
    seen = page(results)
    assert not seen.of("script") and not seen.of("img")
    assert not any(name.startswith("on") for _, attributes in seen.tags for name in attributes)
    assert "onerror" in seen.text and seen.text.count('alert("1")') > 4 * len(ARMS)


def test_the_head_says_what_was_run(seen: Page) -> None:
    facts = dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", seen.source))
    assert facts["arms"] == "11" and facts["seeds"] == "5" and facts["runs finished"] == "55 of 55"
    assert facts["iterations"] == "60" and facts["rollouts per run"] == "5,760"
    assert facts["threads per run"] == "1" and facts["commit"] == "0123456789"
    assert re.fullmatch(r"3 h \d\d min", facts["time of all runs"])
    assert re.fullmatch(r"3 min \d\d s", facts["median run"])


def test_verdicts_and_definitions_are_printed_word_by_word(seen: Page, results: dict[str, Any]) -> None:
    for sentence in results["analysis"]["verdicts"]:
        assert sentence in seen.text
    for entry in results["definitions"]:
        assert entry["term"] in seen.text and entry["text"] in seen.text


def test_the_plane_names_arms_weights_and_base(seen: Page) -> None:
    plane = seen.source[seen.source.index('class="chart scatter"') :]
    names = re.findall(r'<text class="name[^>]*>([^<]*)</text>', plane[: plane.index("</svg>")])
    assert set(names) == {"w=0.3", "w=0.5", "w=0.6", "w=0.75", "base"} | {
        shorten(f"{number} {arm['label']}", 26)
        for number, arm in enumerate(ARMS, 1)
        if arm["role"] != "front"
    }
    assert plane[: plane.index("</svg>")].count('class="seed"') == 55


def test_the_front_is_ordered_by_weight_whatever_the_order_of_the_arms() -> None:
    data = read_comparison(comparison([ARMS[2], ARMS[0], ARMS[4], ARMS[3], ARMS[1]], 2))
    assert [arm.weight for arm in data.front] == [0.3, 0.5, 0.6, 0.75]


@pytest.mark.parametrize(("recipe", "weight"), [(None, 0.5), (0.4, 0.4)])
def test_a_weight_that_an_arm_does_not_set_is_the_recipe_s_or_the_default(
    recipe: float | None, weight: float
) -> None:
    results = comparison(copy.deepcopy(ARMS[:2]), 1)
    del results["arms"][1]["overrides"]["schedule.prompt_weight"]
    results["config"]["schedule"]["prompt_weight"] = recipe
    assert read_comparison(results).arms[1].weight == weight


def test_a_base_that_counts_among_the_front_shades_its_region_too() -> None:
    results = comparison(ARMS[:3], 2)
    results["analysis"]["base"]["judge/prompt"]["mean"] = 0.9
    corners = []
    for front in (["naive-0.5"], ["base", "naive-0.5"]):
        results["analysis"]["front"]["arms"] = front
        found = pareto(read_comparison(results))
        assert found is not None and found.figure.chart.count('class="cross"') == 1
        shade = re.search(r'class="shade" d="([^"]+)"', found.figure.chart)
        assert shade is not None
        corners.append(shade[1].count(" L "))
        assert ("or by the base" in found.figure.caption) == ("base" in front)
    assert corners[1] == corners[0] + 2


def test_many_arms_are_numbered_and_explained_beside_the_plane() -> None:
    results = comparison(many_arms(28), 3)
    found = pareto(read_comparison(results))
    assert found is not None and [arm.number for arm in found.legend] == list(range(5, 29))
    names = re.findall(r'<text class="name[^>]*>([^<]*)</text>', found.figure.chart)
    assert set(names) >= {str(number) for number in range(5, 29)}
    seen = page(results)
    assert headings(seen)[:3] == SECTIONS[:3]
    entries = re.findall(r"<li><span[^>]*>(\d+)</span> ([^<]*)</li>", seen.source)
    assert [int(number) for number, _ in entries] == list(range(5, 29))
    assert entries[-1][1] == "Rival number 16 with a rather long name"


def test_up_to_a_handful_of_arms_is_named_in_place() -> None:
    some = pareto(read_comparison(comparison(ARMS[: 4 + NAMED], 2)))
    assert some is not None and not some.legend


@pytest.mark.parametrize(("count", "seeds"), [(2, 1), (2, 10), (6, 1), (30, 2)])
def test_any_number_of_arms_and_seeds_makes_a_page(count: int, seeds: int) -> None:
    seen = page(comparison(many_arms(count), seeds))
    assert f"{count * seeds} of {count * seeds}" in seen.text and "Training curves" in seen.headings
    assert len(seen.of("figcaption")) == len(seen.of("figure"))


def test_a_comparison_that_has_just_begun_makes_a_page() -> None:
    seen = page(comparison(finished=dict.fromkeys((arm["name"] for arm in ARMS), 0), decisions=False))
    assert headings(seen) == [*SECTIONS[:2], *SECTIONS[-2:]]
    assert "No verdict yet" in seen.text and "nothing to plot" in seen.text
    assert "unfinished: 55 of 55 runs are missing" in seen.text and "Method, 0 of 5 runs." in seen.text
    assert "None" not in seen.text and "nan" not in seen.text


def test_arms_with_one_run_have_no_interval_and_arms_without_any_no_point() -> None:
    finished = {arm["name"]: index % 3 for index, arm in enumerate(ARMS)}
    data = read_comparison(comparison(finished=finished))
    table = arm_table(data)
    for arm, cells in table.rows:
        identity = cells[0]
        assert (identity.text == "\u2013") == (len(arm.finished) == 0)
        assert (identity.small == "") == (len(arm.finished) < 2)
    found = pareto(data)
    assert found is not None
    titles = re.findall(r"<title>(\d+) ", found.figure.chart)
    assert {int(number) for number in titles} == {arm.number for arm in data.arms if arm.finished}


def test_runs_that_did_not_finish_are_listed_and_not_counted() -> None:
    results = comparison(ARMS[:2], 3, finished={"naive-0.5": 1})
    data = read_comparison(results)
    assert [cells[1:] for arm, cells in run_rows(data) if arm.name == "naive-0.5"] == [
        ["unfinished", "missing"]
    ]
    line = curves(data).figures[0].chart
    assert line.count('class="band"') == 1  # one run has no band, and the unfinished one is not drawn
    assert "unfinished: 2 of 6 runs are missing" in page(results).text


def test_what_was_not_measured_is_left_out() -> None:
    results = comparison(decisions=False)
    for entry in results["analysis"]["arms"]:
        entry |= {"quadrants": None, "group_std": None, "against_control": None}
        del entry["final"]["monitor/copy_score"]
    for run in results["runs"]:
        for record in run["train"]:
            del record["reward/prompt_group_std"]
    gone = {"Against the control of each arm", "Do the two rewards agree?", "Spread of the prompt reward"}
    gone |= set(SECTIONS[SECTIONS.index("When each quality is decided") : -2])
    seen = page(results)
    assert headings(seen) == [heading for heading in SECTIONS if heading not in gone]
    assert '<th class="number">Copy score</th>' not in seen.source
    assert '<th class="number">Background</th>' in seen.source


def test_without_judges_the_rewards_stand_in_and_the_page_says_so() -> None:
    seen = page(comparison(judges=False))
    assert "This data has no held-out judges" in seen.text and "Held-out identity" not in seen.headings
    assert {"Identity reward", "Prompt reward", "Still open, by the training rewards"} <= set(seen.headings)
    assert "Still open, by the held-out judges" not in seen.headings
    assert "identity reward \u2192" in seen.text and "Degraded" not in seen.text


def test_without_judges_and_rewards_there_is_no_plane() -> None:
    results = comparison(judges=False)
    for entry in results["analysis"]["arms"]:
        for part in ("final", "change"):
            entry[part] = {key: span for key, span in entry[part].items() if key.startswith("monitor/")}
    seen = page(results)
    assert "nothing to plot" in seen.text and "Copy score" in seen.headings


def test_changes_are_coloured_by_their_intervals() -> None:
    results = comparison(ARMS[:3], 3)
    spans = {"naive-0.3": (-0.02, 0.01), "naive-0.5": (0.01, 0.03), "naive-0.6": (-0.03, -0.01)}
    for entry in results["analysis"]["arms"]:
        low, high = spans[entry["name"]]
        entry["change"]["judge/prompt"] = {"mean": (low + high) / 2, "low": low, "high": high}
    rows = arm_table(read_comparison(results)).rows
    assert [cells[3].tone for _, cells in rows] == ["unclear", "better", "worse"]
    assert rows[0][1][3].text == "\u22120.005" and rows[1][1][3].small == "+0.010 to +0.030"


def test_the_table_holds_the_numbers_of_the_analysis(seen: Page, results: dict[str, Any]) -> None:
    data = read_comparison(results)
    table = arm_table(data)
    assert table.columns == [
        "identity", "identity change", "prompt", "prompt change", "degraded", "margin", "outside front",
        "copy score", "background",
    ]  # fmt: skip
    entry = results["analysis"]["arms"][4]
    cells = dict(zip(table.columns, table.rows[4][1], strict=True))
    assert cells["identity"].text == f"{entry['final']['judge/identity']['mean']:.3f}"
    assert cells["degraded"].text == f"{entry['degraded']} of 5"
    assert cells["outside front"].text == "87\u00a0%" and cells["outside front"].small == "not shown"
    assert cells["outside front"].tone == ""
    assert (cells["margin"].text, cells["margin"].small) == ("+0.006", "\u22120.006 to +0.018")
    assert cells["margin"].tone == "unclear"
    assert table.base[0].text == "0.602" and table.base[1].text == "\u2013"
    assert "Shaping with constant weights." in seen.text


def test_only_differences_that_survive_holm_are_coloured() -> None:
    results = comparison()
    against = results["analysis"]["arms"][4]["against_control"]
    against["judge/identity"] = {"mean": -0.02, "low": -0.03, "high": -0.01, "p": 0.02, "p_holm": 0.06}
    against["judge/prompt"] = {"mean": -0.02, "low": -0.03, "high": -0.01, "p": 0.02, "p_holm": 0.04}
    rows = control_rows(read_comparison(results))
    assert [(row.arm.name, row.control.name) for row in rows] == [
        ("customized-grpo", "matched"), ("sars", "matched"), ("tdw", "tdw-mean"),
    ]  # fmt: skip
    assert [difference.cell.tone for difference in rows[0].differences] == ["unclear", "worse"]
    assert [difference.p for difference in rows[0].differences] == ["0.060", "0.040"]
    prompt = rows[1].differences[1]
    assert prompt.cell.tone == "better" and prompt.p == "< 0.001"


@pytest.mark.parametrize(
    ("p", "words"), [(None, "\u2013"), (0.0, "< 0.001"), (0.001, "0.001"), (1.0, "1.000")]
)
def test_p_values_read_as_people_write_them(p: float | None, words: str) -> None:
    assert p_text(p) == words


def test_gains_come_largest_first_on_an_axis_that_starts_at_zero(results: dict[str, Any]) -> None:
    rows = gain_rows(read_comparison(results))
    assert [row.arm.name for row in rows] == ["tdw", "sars", "customized-grpo"]
    zero = re.search(r'class="zero" x1="([\d.]+)"', rows[0].plot)
    whisker = re.search(r'class="whisker" x1="([\d.]+)"', rows[0].plot)
    assert zero is not None and whisker is not None and zero[1] == whisker[1] == "4"


def test_curves_are_means_over_the_runs_with_the_range_of_the_seeds() -> None:
    runs = [
        {"evals": [{"rollouts": 0, "a": 1.0}, {"rollouts": 96, "a": value}, {"rollouts": 192, "a": extra}]}
        for value, extra in ((2.0, None), (4.0, 5.0), (9.0, 7.0))
    ]
    assert mean_curve(runs, "evals", "a") == MeanCurve([0, 96, 192], [1, 5, 6], [1, 2, 5], [1, 9, 7])
    assert mean_curve(runs, "evals", "b") is None and mean_curve([], "evals", "a") is None


def test_a_long_curve_is_thinned_and_its_band_keeps_the_extremes() -> None:
    records = [{"rollouts": place, "a": float(place % 2), "judge/identity": 0.5} for place in range(1000)]
    records[321]["a"], records[654]["a"] = 50.0, -50.0
    curve = mean_curve([{"evals": records}], "evals", "a")
    assert curve is not None and curve.is_thinned and len(curve.x) <= 240
    assert len(curve.x) == len(curve.mean) == len(curve.low) == len(curve.high)
    assert (max(curve.high), min(curve.low)) == (50, -50)
    results = comparison(ARMS[:2], 1)
    assert "many evaluations" not in curves(read_comparison(results)).lead
    for run in results["runs"]:
        if run["state"] == "finished":
            run["evals"] = records
    assert "a point is the mean of a few and bands reach over all" in curves(read_comparison(results)).lead


def test_training_curves_are_smoothed_run_by_run() -> None:
    runs = [
        {"train": [{"rollouts": i, "a": float(sign * (i % 2))} for i in range(1, 65)]} for sign in (1, -1)
    ]
    curve = mean_curve(runs, "train", "a")
    assert curve is not None
    assert max(abs(value) for value in curve.mean) < 1e-9
    assert all(0.4 < value < 0.7 for value in curve.high[3:-3])  # 9 neighbours of 0, 1, 0, 1, ...


@pytest.mark.parametrize("count", [2, 11, 30])
def test_every_arm_has_its_curves_and_the_main_charts_stay_readable(count: int) -> None:
    data = read_comparison(comparison(many_arms(count), 2))
    shown = [arm.name for arm in data.arms if arm.highlighted]
    assert len(shown) == min(count, len(OWN_COLOURS) + 1) and "naive-0.5" in shown
    assert len({arm.colour for arm in data.arms if arm.highlighted}) == len(shown)
    assert sorted([*shown, *(strip.arm.name for strip in strips(data))]) == sorted(a.name for a in data.arms)
    if count > 2:
        assert {arm.name for arm in data.arms if arm.role == "method"} <= set(shown)
    for figure in curves(data).figures:
        assert figure.chart.count('class="line solid"') + figure.chart.count('class="line dashed"') == len(
            shown
        )


def test_small_curves_have_the_same_axes_for_all_arms(results: dict[str, Any]) -> None:
    found = strips(read_comparison(results))
    assert len(found) == 5 and all(len(strip.charts) == 3 for strip in found)
    for column in range(3):
        ticks = {
            tuple(re.findall(r'class="tick \w+" x="[\d.]+" y="([\d.]+)">([^<]+)<', strip.charts[column]))
            for strip in found
        }
        assert len(ticks) == 1


def test_the_page_repeats_the_doctors_sentence_on_the_premise_of_tdw() -> None:
    results = comparison(ARMS[:2], 1)
    results["decisions"]["premise"] = "By the training rewards, the premise of TDW holds."
    assert "By the training rewards, the premise of TDW holds." in page(results).text


def test_step_weights_are_those_of_the_results(seen: Page, results: dict[str, Any]) -> None:
    shown = re.findall(r"step (\d+): prompt ([\d.]+)", seen.source)
    decisions = results["decisions"]
    weights = decisions["prompt_weights"] + decisions["calibrated"]["weights"]
    assert shown == [(str(place % 8), f"{weight:.2f}") for place, weight in enumerate(weights)]


def test_what_p_is_adjusted_by_is_named_and_explained(seen: Page) -> None:
    assert "adjusted by Holm's method" in seen.text and "multiplied by n, the next by n \u2212 1" in seen.text


def test_results_of_another_format_are_refused() -> None:
    with pytest.raises(UserError, match="format 2"):
        render_comparison_page(comparison(ARMS[:2], 1) | {"format": 2})


def test_long_names_are_cut_where_a_chart_has_no_room() -> None:
    assert shorten("short", 10) == "short" and shorten("0123456789", 10) == "0123456789"
    assert shorten("01234567 9ab", 10) == "01234567\u2026"
