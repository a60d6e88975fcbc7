from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from customized_grpo.config import Config, config_hash, diff_configs, dump_config, load_config, preset_names
from customized_grpo.config.yaml_text import MAX_LENGTH, read_yaml
from customized_grpo.errors import UserError
from customized_grpo.fields import MAX_FLOAT

RECIPE = """
model: {path: toybox}
data: {kind: toybox}
rewards: [{name: dino}, {name: clip_t}]
"""


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
SCALARS = st.integers() | st.booleans() | st.none() | TEXTS


def refused(recipe: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(recipe, overrides)
    return str(caught.value)


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_runs_in_a_folder_of_its_name(name: str) -> None:
    assert load_config(name).run.dir == Path(f"runs/{name}")


def test_overrides_win_over_the_recipe_and_later_ones_over_earlier_ones(tmp_path: Path) -> None:
    recipe = write(tmp_path, RECIPE + "train: {group_size: 4, iterations: 9}")
    train = load_config(recipe, ["train.group_size=6", "train.group_size=8"]).train
    assert (train.group_size, train.iterations, train.inner_epochs) == (8, 9, 1)


def test_a_recipe_without_a_folder_runs_in_one_named_after_it(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, RECIPE)).run.dir == Path("runs/mine")
    assert load_config(write(tmp_path, RECIPE), ["run.dir=x"]).run.dir == Path("x")


def test_exponents_are_numbers_and_only_true_and_false_are_booleans() -> None:
    assert load_config("toybox", ["train.learning_rate=1e-4"]).train.learning_rate == 1e-4
    assert "write true or false" in refused("toybox", "run.overwrite=yes")


def test_an_unknown_key_names_the_nearest_one_here_or_elsewhere() -> None:
    assert "did you mean train.learning_rate?" in refused("toybox", "train.lerning_rate=1e-4")
    assert "did you mean train.learning_rate?" in refused("toybox", "model.learning_rate=1e-4")
    assert "did you mean train?" in refused("toybox", "trian.iterations=3")
    known = "rewards.0 has name, label, weight, segment, path, noise, options, executor, on_failure"
    assert known in refused("toybox", "rewards.0.zzz=3")


def test_the_value_of_an_unknown_key_is_not_repeated() -> None:
    assert "hunter2" not in refused("toybox", "run.api_key=hunter2")


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("train.group_size=1", "train.group_size: got 1, must be at least 2"),
        ("rollout.steps=2147483648", "rollout.steps: got 2147483648, must be at most 1000"),
        ("train.iterations=1000000000000", "train.iterations: got 1000000000000, must be at most 1000000000"),
        ("rewards.dino.weight=-1", "rewards.0.weight: got -1, must be above 0"),
        ("train.iterations=2.5", "train.iterations: got 2.5; write a whole number"),
        ("train.learning_rate='1e-4'", "train.learning_rate: got '1e-4'; write a number"),
        ("train.learning_rate=.nan", "train.learning_rate: not a finite number"),
        ("model.height=65", "model.height: got 65, must be a multiple of 16"),
        ("model.lora.target=(", "model.lora.target: got '(', not a regular expression"),
        ("model.device=gpu", "model.device: got 'gpu'"),
        ("run.dir=''", "run.dir: got '', a path must not be empty"),
        ("run.dir=..", "run.dir: .. would mix the run with other files"),
        ("run.dir=.", "run.dir: . would mix the run with other files"),
        ("rewards=[]", "rewards: must not be empty"),
        ("schedule=5", "schedule: got 5; write a section"),
        ("advantage.name=sarz", "advantage.name: there is no combination rule 'sarz' (did you mean sars?)"),
        ("schedule.name=twd", "schedule.name: there is no schedule 'twd' (did you mean tdw?)"),
        ("rollout.sampler=dnace", "rollout.sampler: there is no sampler 'dnace' (did you mean dance?)"),
        ("data.kind=toybx", "data.kind: 'toybx' is not known (did you mean toybox?)"),
        ("data={subjects: 3}", "data.kind: must be given: manifest or toybox or two-scale"),
        ("trackers=[foo]", "trackers.0: 'foo' is not known; known: tensorboard, wandb, trackio, mlflow"),
        ("train.updates_per_iteration=3", "cannot share 4 groups (train.prompts_per_iteration) evenly"),
        ("rollout.sampler=ode", "rollout.sampler: 'ode' draws no noise"),
        ("rollout.sampler=heun", "rollout.sampler: 'heun' draws no noise and leaves nothing to train"),
        ("rollout.sampler=dpmpp_2m", "rollout.sampler: 'dpmpp_2m' draws no noise and leaves nothing to"),
        ("rollout.eta=0", "draws no noise and leaves nothing to train"),
        ("rollout={sampler: cps, eta: 1.5}", "needs rollout.eta of at most 1, got 1.5"),
        ("train.clip_range=1e300", "train.clip_range: got 1e+300, must be at most 3e+38 in magnitude"),
        ("model.mu=-1e300", "model.mu: got -1e+300, must be at most 3e+38 in magnitude"),
        ("advantage.options={gamma: 1e300}", "advantage.options.gamma: got 1e+300, must be at most 3e+38"),
        ("rollout.eta=1e-60", "rollout.sampler: 'flow' gives a std of 0; it must be finite and > 0"),
        ("rollout.sde_window.size=10", "does not fit the 9 steps that can be trained"),
        (
            "model.shard=true train.dynamic_sampling.budget=4",
            "train.dynamic_sampling: some processes would draw more groups than others",
        ),
        (
            "train.ema_decay=null evaluation.use_ema=true",
            "evaluation.use_ema: there is no average to evaluate",
        ),
        (
            "rewards.dino.segment=both",
            "rewards: segment: both or options.match (dino) needs masks of the images",
        ),
        (
            "data={kind: manifest, train: a, held_out: b} evaluation.judges=[{name: clip_i, segment: both}]",
            "evaluation.judges: segment: both or options.match (clip_i) needs masks of the images",
        ),
        (
            "data={kind: manifest, train: a} evaluation.judges=[{name: clip_i, segment: none}]",
            "evaluation.judges: there are no rows to judge: set data.held_out or evaluation.prompts",
        ),
        (
            "model.reference_fit=stretch",
            "model.reference_fit: 'stretch' is not known; known: whole, crop, pad",
        ),
        ("model.text_encoders=drop", "text_encoders: 'drop' needs a folder for what they encoded"),
        ("schedule.start=0.1", "schedule.options.start: not an option of tdw, only of linear"),
        (
            "data={kind: manifest, train: a, subjects: 3}",
            "data.subjects: there is no such key here; data of kind toybox alone",
        ),
        ("rewards.nobody.weight=1", "no single item 'nobody'; use an index below 3 or one of dino, clip_i"),
        ("rewards.7.weight=1", "no single item '7'"),
        ("model.path.x=1", "model.path is a value and has no keys"),
        ("train.group_size", "train.group_size: an override is written section.key=value"),
        ("train..x=1", "an override is written section.key=value"),
        ("trackers=!!python/name:os.system", "trackers: the tag"),
        ("trackers=*other", "trackers: the alias *other is not read"),
    ],
)
def test_a_bad_override_is_refused_with_its_path_and_what_to_write(override: str, what: str) -> None:
    # one or two overrides, written side by side
    assert what in refused("toybox", *re.split(r" (?=evaluation\.|train\.)", override))


def test_a_range_error_carries_the_sentence_of_its_knob() -> None:
    assert "Samples per prompt" in refused("toybox", "train.group_size=1")


def test_all_mistakes_of_text_fields_and_rules_across_fields_come_at_once(tmp_path: Path) -> None:
    recipe = write(
        tmp_path,
        RECIPE
        + """
modle: 1
train: {group_size: 1, updates_per_iteration: 3, iterations: 5, iterations: 6}
advantage: {name: linear, gamma: .4}
rollout: {sampler: dnace, sde_window: {size: 40}}
""",
    )
    message = refused(recipe, "run.seed=-1", "nonsense")
    for part in (
        "did you mean model?",
        "train.group_size: got 1",
        "train.updates_per_iteration: 3 updates cannot share",
        "train.iterations: given twice",
        "advantage.options.gamma: not an option of linear, only of sars,",
        "rollout.sampler: there is no sampler 'dnace'",
        "rollout.sde_window.size: a window of 40 steps",
        "run.seed: got -1",
        "nonsense: an override",
    ):
        assert part in message
    assert message.startswith("9 mistakes in the recipe")


def test_a_rule_across_fields_is_silent_where_one_of_its_fields_is_wrong_already() -> None:
    message = refused("toybox", "train.updates_per_iteration=3", "train.prompts_per_iteration=0")
    assert message.startswith("1 mistake ")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "a recipe is a YAML mapping"),
        ("- 1", "a recipe is a YAML mapping"),
        ("model: [", "line 1: not valid YAML"),
        ("a: 1\na: 2" + RECIPE, "a: given twice (again in line 2)"),
        ("a: !!python/object/apply:os.system [ls]", "line 1: the tag tag:yaml.org,2002:python"),
        ("a: !mine 1", "line 1: the tag !mine is not read"),
        ("a: &x [1]\nb: [*x, *x]", "line 2: the alias *x is not read; write the value out"),
        ("a: &x {<<: *x}", "the alias *x is not read"),
        ("---\na: 1\n---\nb: 1", "line 3: a second document"),
        ("%YAML 1.1\n---\na: on", "recipes are YAML 1.2"),
        ("a: " + "[" * 5000, "nested more than 20 deep"),
        ("? [a]\n: 1\n" + RECIPE, "line 1: a key must be a plain word"),
        ("a: " + "9" * 5000 + RECIPE, "a: not a finite number"),
        ("a: \x07", "not valid YAML"),
    ],
)
def test_text_that_is_not_a_plain_mapping_is_refused(tmp_path: Path, text: str, what: str) -> None:
    assert what in refused(write(tmp_path, text))


def test_an_alias_bomb_is_refused_without_being_expanded(tmp_path: Path) -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    assert "the alias *a0 is not read" in refused(write(tmp_path, "\n".join(levels)))


def test_a_file_that_is_huge_or_not_text_or_not_a_file_is_refused(tmp_path: Path) -> None:
    assert "too long for a recipe" in refused(write(tmp_path, "#" * (MAX_LENGTH + 1)))
    (tmp_path / "binary.yaml").write_bytes(b"a: \xff\xfe")
    assert "is not UTF-8 text" in refused(str(tmp_path / "binary.yaml"))
    assert "there is no recipe file" in refused(str(tmp_path))
    assert "there is no recipe file" in refused(str(tmp_path / "absent.yaml"))
    assert "cannot be read" in refused("x" * 5000)


def test_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "windows.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + RECIPE.replace("\n", "\r\n").encode())
    assert load_config(str(path)).model.path == "toybox"


def test_an_unknown_preset_names_the_nearest_and_lists_all() -> None:
    message = refused("toybx")
    assert "did you mean toybox?" in message
    assert all(name in message for name in preset_names())


def test_choosing_another_rule_forgets_the_recipes_options_of_the_old_one(tmp_path: Path) -> None:
    assert load_config("toybox", ["advantage.name=linear"]).advantage.options == {}
    recipe = write(tmp_path, RECIPE + "advantage: {name: sars, gamma: .7}")
    assert load_config(recipe, ["advantage.name=sars_no_flip"]).advantage.options == {"gamma": 0.7}
    masked = load_config(recipe, ["advantage.name=gd2po_snr"])
    assert masked.advantage.options == {"snr_threshold": 0.2, "reweight": True}
    assert load_config(recipe, ["data.kind=manifest", "data.train=x.jsonl"]).data.kind == "manifest"


def test_an_option_given_beside_a_rule_that_does_not_use_it_stays_an_error() -> None:
    assert "not an option of linear" in refused("toybox", "advantage.name=linear", "advantage.gamma=1")
    assert "not an option of linear" in refused("toybox", "advantage.gamma=1", "advantage.name=linear")


def test_options_that_are_not_given_get_the_rules_defaults() -> None:
    config = load_config("toybox-smoke", ["schedule.name=linear", "schedule.end=0.2"])
    assert config.advantage.options == {"gamma": 0.4}
    assert config.schedule.options == {"start": 0.7, "end": 0.2}


def test_rewards_are_addressed_by_name_or_index() -> None:
    rewards = load_config("toybox", ["rewards.clip_i.weight=1.5", "rewards.0.weight=2"]).rewards
    assert [reward.weight for reward in rewards] == [2, 1.5, 1]


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config("toybox").train.group_size = 3  # type: ignore[misc]


def test_rules_across_fields_hold_for_configs_built_in_python() -> None:
    data = load_config("toybox").model_dump()
    data["train"]["updates_per_iteration"] = 3
    with pytest.raises(ValueError, match=r"train.updates_per_iteration: 3 updates"):
        Config.model_validate(data)


def test_compiled_blocks_are_not_said_to_repeat() -> None:
    assert load_config("toybox", ["run.deterministic=true"]).run.deterministic
    with pytest.raises(UserError, match="run.deterministic: compiled blocks choose their kernels by timing"):
        load_config("toybox", ["run.deterministic=true", "model.compile=true"])


@pytest.mark.parametrize("name", preset_names())
def test_a_dumped_preset_loads_back_equal(tmp_path: Path, name: str) -> None:
    config = load_config(name, ["rollout.sde_window.size=2", "advantage.name=min", "trackers=[wandb]"])
    assert load_config(write(tmp_path, dump_config(config))) == config


@pytest.mark.slow
@given(
    # ~ and $ mean something in a path
    text=st.text(st.characters(codec="utf-8", exclude_characters="\0~$"), min_size=1),
    number=st.floats(min_value=1e-300, max_value=MAX_FLOAT),
    options=st.dictionaries(TEXTS, SCALARS | st.lists(SCALARS, max_size=3), max_size=3),
)
def test_any_text_and_number_survive_dump_and_load(
    tmp_path_factory: pytest.TempPathFactory, text: str, number: float, options: dict[str, object]
) -> None:
    data = load_config("toybox").model_dump()
    data["model"]["path"] = text
    data["train"]["learning_rate"] = number
    data["rewards"][0]["options"] = options
    config = Config.model_validate(data)
    folder = tmp_path_factory.mktemp("dumped")
    assert load_config(write(folder, dump_config(config))) == config


def test_the_hash_changes_with_every_value_that_matters_and_only_then() -> None:
    config = load_config("toybox")
    assert config_hash(config) == config_hash(load_config("toybox", ["run.dir=x", "trackers=[wandb]"]))
    changes = ["run.seed=1", "train.learning_rate=1e-5", "rewards.0.weight=2", "data.seed=1"]
    hashes = {config_hash(load_config("toybox", [change])) for change in changes}
    assert len(hashes | {config_hash(config)}) == len(changes) + 1


def test_a_diff_lists_exactly_what_changed() -> None:
    old, new = load_config("toybox"), load_config("toybox", ["rewards.1.weight=1.5", "advantage.name=linear"])
    assert diff_configs(old, old) == []
    assert diff_configs(old, new) == [
        ("rewards.1.weight", 1.0, 1.5),
        ("advantage.name", "sars", "linear"),
        ("advantage.options.gamma", 0.4, None),
    ]


HTTP = "rewards.dino.executor={kind: http, url: 'http://127.0.0.1:8000'}"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("{kind: http}", "rewards.0.executor.url: must be given"),
        ("{kind: rya}", "'rya' is not known (did you mean ray?); known: inline, thread, ray, http"),
        ("{actors: 2}", "rewards.0.executor.kind: must be given: http or inline or ray or thread"),
        ("{kind: thread, actors: 2}", "rewards.0.executor.actors: there is no such key"),
        ("{kind: ray, actors: 0}", "rewards.0.executor.actors: got 0, must be at least 1"),
        ("{kind: http, url: 'file:///etc/passwd'}", "http://HOST:PORT or https://HOST"),
        ("{kind: http, url: 'http://me:secret@host'}", "must not hold credentials"),
        ("{kind: http, url: 'http://host/?q=1'}", "neither ?query nor #fragment"),
        ("{kind: http, url: 'http://host:99999'}", "not a URL"),
    ],
)
def test_a_wrong_executor_is_one_clear_mistake(setting: str, message: str) -> None:
    text = refused("toybox", f"rewards.dino.executor={setting}")
    assert message in text and text.startswith("1 mistake ")


def test_credentials_in_a_service_url_are_not_repeated() -> None:
    setting = "{kind: http, url: 'http://me:hunter22@host'}"
    assert "hunter22" not in refused("toybox", f"rewards.dino.executor={setting}")


def test_where_a_reward_runs_is_not_part_of_the_hash_but_what_its_failure_does_is() -> None:
    inline = load_config("toybox")
    assert config_hash(load_config("toybox", [HTTP])) == config_hash(inline)
    assert config_hash(load_config("toybox", ["rewards.0.on_failure=drop"])) != config_hash(inline)


def test_an_executor_survives_the_way_through_yaml(tmp_path: Path) -> None:
    config = load_config("toybox", [HTTP])
    assert load_config(write(tmp_path, dump_config(config))) == config


def test_a_text_that_is_read_again_is_not_what_the_last_reader_made_of_it() -> None:
    text = "train: {iterations: 3, iterations: 4}\n"
    for _ in range(2):
        data, mistakes = read_yaml(text)
        assert data == {"train": {"iterations": 3}} and len(mistakes) == 1
        data["train"]["iterations"] = 5
        mistakes.clear()
