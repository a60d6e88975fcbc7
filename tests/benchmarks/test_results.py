"""Tables with intervals by subject, warnings, and comparisons only of what can be compared."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from customized_grpo.benchmarks.compare import compare_results
from customized_grpo.benchmarks.encoders import JudgeEndpoint, combine, encoder_configs, judge_configs
from customized_grpo.benchmarks.protocol import differences
from customized_grpo.benchmarks.reported_scores import reported_tables
from customized_grpo.benchmarks.results import Result, Table, make_result, read_result
from customized_grpo.errors import UserError
from customized_grpo.statistics.intervals import clustered_bootstrap, clustered_test, paired_difference

PROTOCOL: dict[str, Any] = {
    "benchmark": "dreambenchpp", "data": "d", "steps": 4, "guidance": 2.5, "height": 64, "width": 64,
    "seed": 0,
    "reference_mode": "single", "segment": "none", "preprocessing": "pillow 12",
    "encoders": {"cp": {"weights": "abc", "preprocess": {"size": 256}}},
}  # fmt: skip


def result(shift: float = 0.0, subjects: int = 10, name: str = "base", **protocol: Any) -> Result:
    """Ten subjects with four images each; scores differ more between subjects than within."""
    rng = np.random.default_rng(0)
    owners = [f"s{k}" for k in range(subjects) for _ in range(4)]
    level = np.repeat(rng.normal(0.5, 0.2, subjects), 4)
    cp = level + rng.normal(0, 0.02, len(owners)) + shift
    pf = 0.8 + rng.normal(0, 0.02, len(owners))
    table = Table(
        ids=[f"{owner}/{n % 4}" for n, owner in enumerate(owners)],
        subjects=owners,
        categories=["animal" if n < len(owners) // 2 else "object" for n in range(len(owners))],
        prompt_types=["all"] * len(owners),
        columns={"cp": cp, "pf": pf},
    )
    return make_result({"name": name, "weights": name}, {**PROTOCOL, **protocol}, table)


def test_the_summary_has_all_rows_and_every_split_that_splits() -> None:
    found = result()
    assert [(part["split"], part["name"], part["images"], part["subjects"]) for part in found.summary] == [
        ("all", "all", 40, 10),
        ("category", "animal", 20, 5),
        ("category", "object", 20, 5),
    ]
    whole, table = found.summary[0]["metrics"], found.table
    expected = clustered_bootstrap(table.columns["cp"], table.subjects)
    assert (whole["cp"]["mean"], whole["cp"]["low"], whole["cp"]["high"]) == (
        expected.mean, expected.low, expected.high,
    )  # fmt: skip
    product = table.columns["cp"].mean() * table.columns["pf"].mean()
    assert whole["cp_x_pf"]["mean"] == pytest.approx(product)
    assert whole["cp_x_pf"]["low"] < product < whole["cp_x_pf"]["high"]


def test_few_subjects_and_unscored_images_are_warned_of() -> None:
    found = result()
    assert len(found.warnings) == 1 and "animal (5), object (5)" in found.warnings[0]
    found.table.columns["cp"][:3] = math.nan
    again = make_result(found.generator, found.protocol, found.table)
    assert "cp: 3 of 40 images could not be scored and do not count." in again.warnings
    assert again.summary[0]["metrics"]["cp"]["unscored"] == 3


def test_one_subject_gets_a_mean_and_no_interval() -> None:
    whole = result(subjects=1).summary[0]["metrics"]
    assert whole["cp"]["low"] is None and whole["cp_x_pf"]["low"] is None
    assert whole["cp"]["mean"] == pytest.approx(result(subjects=1).table.columns["cp"].mean())


def test_a_result_survives_its_file(tmp_path: Path) -> None:
    found = result()
    found.table.columns["pf"][5] = math.nan
    file = tmp_path / "results.json"
    file.write_text(json.dumps(found.to_json(), allow_nan=False))
    back = read_result(file)
    assert back.to_json() == found.to_json()
    assert math.isnan(back.table.columns["pf"][5])


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 2}', '{"format": 1}', "\xff"])
def test_other_files_are_no_results(tmp_path: Path, content: str) -> None:
    file = tmp_path / "results.json"
    file.write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=str(file)):
        read_result(file)


# Comparing


def test_a_difference_is_paired_and_far_narrower_than_the_two_intervals() -> None:
    before, after = result(), result(shift=0.01, name="tuned")
    cp = next(d for d in compare_results(before, after).differences if d.metric == "cp")
    assert cp.test.interval.mean == pytest.approx(0.01)
    assert cp.test.interval.high - cp.test.interval.low < 1e-9
    unpaired = before.summary[0]["metrics"]["cp"]
    assert unpaired["high"] - unpaired["low"] > 0.1
    product = next(d for d in compare_results(before, after).differences if d.metric == "cp_x_pf")
    assert product.after - product.before == pytest.approx(0.01 * before.table.columns["pf"].mean())
    assert product.test.interval.mean == pytest.approx(product.after - product.before)


def test_only_common_rows_count_and_are_matched_by_id() -> None:
    before, after = result(), result(shift=0.1, name="tuned")
    turned = list(reversed(range(4, 40)))
    table = after.table
    part = Table(
        [table.ids[n] for n in turned],
        [table.subjects[n] for n in turned],
        [table.categories[n] for n in turned],
        [table.prompt_types[n] for n in turned],
        {metric: values[turned] for metric, values in table.columns.items()},
    )
    found = compare_results(before, replace(after, table=part))
    assert found.differences[0].test.interval.mean == pytest.approx(0.1)
    assert found.differences[0].test.interval.rows == 36
    assert any("Only 36 of 40 images" in text for text in found.warnings)


def test_p_values_are_corrected_for_the_number_of_metrics() -> None:
    found = compare_results(result(), result(shift=0.003, name="tuned"))
    by_name = {d.metric: d for d in found.differences}
    smallest = min(d.test.p for d in found.differences)
    assert min(d.p_holm for d in found.differences) == pytest.approx(min(1.0, 3 * smallest))
    assert by_name["pf"].p_holm == 1.0, "nothing changed there"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"reference_mode": "all"}, "reference_mode: single, all"),
        ({"data": "e"}, "data: d, e"),
        ({"preprocessing": "pillow 99"}, "preprocessing"),
        (
            {"encoders": {"cp": {"weights": "xyz", "preprocess": {"size": 224}}}},
            "encoders.cp.weights: abc, xyz",
        ),
        (
            {"encoders": {"cp": {"weights": "abc", "preprocess": {"size": 224}}}},
            "encoders.cp.preprocess.size",
        ),
        ({"steps": 8}, "steps: 4, 8"),
    ],
)
def test_results_of_different_protocols_are_not_subtracted(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError) as refused:
        compare_results(result(), result(**changes))
    assert named in refused.value.message


def test_settings_of_the_generator_may_differ_if_the_user_says_so() -> None:
    other = result(steps=8, seed=3)
    with pytest.raises(UserError) as refused:
        compare_results(result(), other)
    assert refused.value.hint == "To compare them with these differences: --across seed --across steps."
    assert compare_results(result(), other, ["steps", "seed"]).differences
    with pytest.raises(UserError, match="--across encoders"):
        compare_results(result(), other, ["encoders"])


def test_two_subjects_must_be_common() -> None:
    with pytest.raises(UserError, match="4 images of 1 subjects in common"):
        compare_results(result(), result(subjects=1))


def test_differences_name_what_only_one_side_has() -> None:
    assert differences({"a": 1, "b": {"c": 1}}, {"b": {"c": 1, "d": 2}, "e": 3}) == [
        "a: 1, nothing", "b.d: nothing, 2", "e: nothing, 3",
    ]  # fmt: skip


# The test behind the comparison


def test_the_interval_of_a_mean_is_that_of_the_plain_bootstrap() -> None:
    rng = np.random.default_rng(1)
    values, owners = rng.normal(size=60), [f"s{n // 5}" for n in range(60)]
    plain = clustered_bootstrap(values, owners, n_boot=4000, seed=3)
    test = clustered_test(values[None], owners, lambda means: means[0], n_boot=4000, seed=3)
    assert test.interval == plain
    before = rng.normal(size=60)
    pair = clustered_test(
        np.stack([before, values]), owners, lambda means: means[1] - means[0], n_boot=4000, seed=3
    )
    paired = paired_difference(values, before, owners, n_boot=4000, seed=3)
    assert pair.interval.low == pytest.approx(paired.low) and pair.interval.high == pytest.approx(paired.high)


def test_p_agrees_with_the_interval_and_is_uniform_under_the_null() -> None:
    rng = np.random.default_rng(2)
    owners = [f"s{n // 3}" for n in range(36)]
    ps = []
    for run in range(400):
        values = rng.normal(size=36) + np.repeat(rng.normal(size=12), 3)
        test = clustered_test(values[None], owners, lambda means: means[0], n_boot=1000, seed=run)
        if abs(test.p - 0.05) > 0.005:
            assert (test.p < 0.05) == (not test.interval.low <= 0.0 <= test.interval.high)
        ps.append(test.p)
    share = float(np.mean(np.array(ps) < 0.05))
    assert 0.02 <= share <= 0.09, share
    assert abs(np.mean(ps) - 0.5) < 0.05


# What a judge's answers become


def test_dreambenchpp_asks_two_questions_three_times() -> None:
    configs = judge_configs("dreambenchpp", JudgeEndpoint("http://localhost:1/v1", "vlm", "MY_KEY"))
    assert [config.metric for config in configs] == ["cp"] * 3 + ["pf"] * 3
    assert all(config.scale == 1 / 4 for config in configs)
    options = [config.reward.options for config in configs]
    assert [one["seed"] for one in options] == [0, 1, 2, 0, 1, 2]
    assert {one["rubric"] for one in options[:3]} == {"identity"}
    assert all(one["api_key_env"] == "MY_KEY" for one in options)


def test_runs_are_averaged_over_those_that_could_judge() -> None:
    runs = [np.array([1.0, math.nan, math.nan]), np.array([0.5, 0.5, math.nan])]
    assert combine({"cp": runs})["cp"] == pytest.approx([0.75, 0.5, math.nan], nan_ok=True)


def test_omnicontext_takes_the_root_for_each_image_on_a_scale_of_ten() -> None:
    configs = judge_configs("omnicontext", JudgeEndpoint("http://localhost:1/v1", "vlm"))
    assert [(config.metric, config.scale) for config in configs] == [("sc", 2.5), ("pf", 2.5)]
    columns = combine({"sc": [np.array([10.0, 0.0, math.nan])], "pf": [np.array([2.5, 10.0, 5.0])]})
    assert columns["sqrt_pf_sc"] == pytest.approx([5.0, 0.0, math.nan], nan_ok=True)


def test_encoders_are_named_once_with_a_path_or_without() -> None:
    first, second = encoder_configs(["dino=my/dino", "clip_t"], "none")
    assert (first.name, first.path, first.segment, second.path) == ("dino", "my/dino", "none", None)
    for wrong in (["=x"], ["dino="], [""]):
        with pytest.raises(UserError, match="NAME or NAME=PATH"):
            encoder_configs(wrong, "none")
    with pytest.raises(UserError, match="given twice"):
        encoder_configs(["dino=a", "dino=b"], "none")


def test_published_numbers_have_a_source_and_a_protocol() -> None:
    tables = reported_tables("dreambench")
    assert tables and reported_tables("manifest") == []
    for table in tables:
        assert table.source and table.protocol
        assert all(len(scores) == len(table.columns) for _, scores in table.rows)
    assert dict(tables[0].rows)["UNO"] == (0.760, 0.835, 0.304)
