from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from customized_grpo.comparison.arms import Arm, load_arms
from customized_grpo.comparison.plan import Plan, adopt, make_plan
from customized_grpo.comparison.run import run_comparison
from customized_grpo.errors import UserError

LINEAR = Arm(name="naive", label="Naive", role="front", overrides={"advantage.name": "linear"})
SARS = Arm(name="sars", label="SARS", role="method", control="naive", overrides={"advantage.gamma": 0.2})

MakePlan = Callable[..., Plan]


@pytest.fixture
def plan(tmp_path: Path) -> MakePlan:
    def make(
        arms: Sequence[Arm] = (LINEAR, SARS), seeds: Sequence[int] = (0, 1), *overrides: str, threads: int = 1
    ) -> Plan:
        folder = tmp_path / "comparison"
        return make_plan("toybox-smoke", overrides, arms, seeds, folder=folder, threads=threads)

    return make


def test_every_arm_runs_every_seed_in_a_folder_of_its_own(plan: MakePlan) -> None:
    runs = plan().runs()
    assert [(run.arm, run.seed) for run in runs] == [("naive", 0), ("sars", 0), ("naive", 1), ("sars", 1)]
    assert len({run.config.run.dir for run in runs}) == 4
    assert [run.config.run.seed for run in runs] == [0, 0, 1, 1]


def test_runs_of_a_seed_differ_in_the_overrides_of_their_arms_alone(plan: MakePlan) -> None:
    from customized_grpo.config import diff_configs

    naive, sars = plan().runs()[:2]
    changed = {path for path, _, _ in diff_configs(naive.config, sars.config)}
    assert changed == {"run.dir", "advantage.name", "advantage.options.gamma"}


def test_a_bad_override_names_its_arm(plan: MakePlan) -> None:
    bad = LINEAR.model_copy(update={"name": "bad", "overrides": {"advantage.gama": 1}})
    worse = LINEAR.model_copy(update={"name": "worse", "overrides": {"train.iterations": -1}})
    with pytest.raises(UserError) as caught:
        plan([LINEAR, bad, worse])
    assert "arm 'bad'" in str(caught.value) and "arm 'worse'" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"config": {}, "arms": [], "seeds": [0], "threads_per_run": 1}', '{"config": 1}'],
)
def test_a_damaged_plan_is_one_message_and_stays(plan: MakePlan, content: str) -> None:
    file = adopt(plan()).folder / "plan.json"
    file.write_text(content)
    with pytest.raises(UserError, match="plan.json"):
        adopt(plan())
    assert file.read_text() == content


def test_a_folder_in_which_a_kill_left_a_draft_only_is_taken(plan: MakePlan) -> None:
    folder = plan().folder
    folder.mkdir()
    (folder / ".plan.json.0123456789abcdef.draft").touch()
    assert adopt(plan()).folder == folder
    other = folder.parent / "other"
    other.mkdir()
    (other / "notes.txt").touch()
    with pytest.raises(UserError, match="holds no comparison"):
        adopt(dataclasses.replace(plan(), folder=other))


def test_a_later_call_adds_arms_and_seeds(plan: MakePlan) -> None:
    adopt(plan([LINEAR], [0]))
    whole = adopt(plan([SARS.model_copy(update={"control": None})], [1]))
    assert ([arm.name for arm in whole.arms], list(whole.seeds)) == (["naive", "sars"], [0, 1])
    again = adopt(plan([LINEAR], [0]))
    assert len(again.runs()) == 4
    assert json.loads((again.folder / "plan.json").read_text()) == again.to_json()


def test_the_arms_of_a_plan_can_be_read_back_to_repeat_it(plan: MakePlan) -> None:
    adopt(plan([LINEAR], [0]))
    whole = adopt(plan())
    file = whole.to_json()["arms_file"]
    assert file == str(whole.folder / "arms.yaml") and load_arms(file) == list(whole.arms)


def test_a_later_call_of_one_arm_does_not_lose_its_control(plan: MakePlan) -> None:
    adopt(plan())
    whole = adopt(plan([SARS.model_copy(update={"control": None})]))
    assert [arm.control for arm in whole.arms] == [None, "naive"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda make: make((LINEAR, SARS), (0,), "train.learning_rate=1e-5"),
            "train.learning_rate: 0.0003 there",
        ),
        (lambda make: make(threads=2), "threads of a run: 1 there, 2 now"),
        (
            lambda make: make(
                [SARS.model_copy(update={"overrides": {"advantage.gamma": 0.3}, "control": None})]
            ),
            "arm 'sars': .*0.2.* there, .*0.3.* now",
        ),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(
    plan: MakePlan, change: Callable[[MakePlan], Plan], message: str
) -> None:
    before = adopt(plan()).to_json()
    changed = change(plan)
    with pytest.raises(UserError, match=message):
        adopt(changed)
    assert json.loads((changed.folder / "plan.json").read_text()) == before


def test_a_folder_of_something_else_is_refused(plan: MakePlan) -> None:
    wanted = plan()
    wanted.folder.mkdir()
    (wanted.folder / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds no comparison"):
        adopt(wanted)


def test_nothing_is_written_through_a_link_in_its_folder(plan: MakePlan, tmp_path: Path) -> None:
    planned = adopt(plan())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (planned.folder / "recipes").symlink_to(elsewhere)
    with pytest.raises(UserError, match="symbolic link out of"):
        run_comparison(planned, jobs=1, examine=True, train=True)
    assert list(elsewhere.iterdir()) == []
