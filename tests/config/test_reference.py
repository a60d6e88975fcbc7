from __future__ import annotations

import json

import pytest

from customized_grpo import extensions
from customized_grpo.config.reference import Knob, knobs, markdown, schema_json


@pytest.mark.parametrize("knob", knobs(), ids=lambda knob: knob.path)
def test_every_knob_has_a_sentence(knob: Knob) -> None:
    assert len(knob.sentence) > 15 and knob.sentence.endswith(".")


def test_a_field_of_one_kind_says_so_and_paths_are_unique() -> None:
    paths = [knob.path for knob in knobs()]
    assert len(paths) == len(set(paths))
    owners = {knob.path: knob.owner for knob in knobs()}
    assert owners["data.train"] == "manifest" and owners["data.subjects"] == "toybox"
    assert owners["data.kind"] is None and "rewards.N.weight" in owners


def test_the_json_schema_carries_types_bounds_and_sentences() -> None:
    schema = json.loads(schema_json())
    group_size = schema["$defs"]["TrainConfig"]["properties"]["group_size"]
    assert (group_size["type"], group_size["minimum"]) == ("integer", 2)
    assert group_size["description"].startswith("Samples per prompt")
    assert schema["additionalProperties"] is False


def test_the_reference_page_has_a_row_for_every_knob() -> None:
    page = markdown()
    for knob in knobs():
        assert (f"| `{knob.path}` |" if "." in knob.path else f"## {knob.path}\n") in page
    assert "| `train.trained_fraction` | number > 0 and <= 1 | `0.6` |" in page


@pytest.mark.parametrize(("section", "kind"), [("advantage", "rule"), ("schedule", "schedule")])
def test_the_reference_page_lists_every_option_of_every_rule_and_schedule(section: str, kind: str) -> None:
    table = markdown().partition(f"## {section}.name\n")[2].partition("\n## ")[0]
    for name, part in extensions.registry(kind).items():
        row = next(line for line in table.splitlines() if line.startswith(f"| `{name}` |"))
        for option, field in part.model_fields.items():
            assert f"`{option}` (" in row
            assert field.description is not None and field.description in row.replace(r"\|", "|")
