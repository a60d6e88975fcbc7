"""What is typed on the command line: text letter by letter, other values as in YAML, nothing cut off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from commands import run_here
from customized_grpo.config import Config, dump_config, load_config
from customized_grpo.errors import UserError

TYPED = [
    "runs/dog #2", "#1", "runs/a: b", "runs/[v2]", "2024-11-28", "007", "yes", "null", "1_000", "0x10", "1e3",
    " runs/lead", "runs/x\\ty", "runs/50%", "@home", "*star", "&amp", "!bang", "|", "-", "- a", "{}", "? a",
    "12:30", "naïve – ü 🐶", '"half', "'a' and 'b'",
]  # fmt: skip


@pytest.mark.parametrize("text", TYPED)
def test_a_folder_is_the_one_that_was_typed_and_stays_it_in_the_run(text: str, tmp_path: Path) -> None:
    config = load_config("toybox", [f"run.dir={text}"])
    assert str(config.run.dir) == text
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(str(tmp_path / "config.yaml")).run.dir == config.run.dir


def value(config: Config, path: str) -> Any:
    found: Any = config
    for name in path.split("."):
        found = found[int(name)] if name.isdecimal() else getattr(found, name)
    return found


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ('run.dir="quoted # text"', Path("quoted # text")),
        ('run.dir="\\"quoted\\""', Path('"quoted"')),
        ("run.dir='\"quoted\"'", Path('"quoted"')),
        ('run.dir=a "quoted" word', Path('a "quoted" word')),
        ("model.path=owner/name#x", "owner/name#x"),
        ("rewards.1.path=a #b", "a #b"),
        ("rewards.clip_i.path=a #b", "a #b"),
        ("model.cache=null", None),
        ("model.cache=", None),
        ("model.lora.target=.*#.*", ".*#.*"),
        ("train.iterations= 5 ", 5),
        ("train.iterations=010", 10),
        ("train.iterations=0x10", 16),
        ("train.learning_rate=1e-4", 1e-4),
        ("train.learning_rate=.5", 0.5),
        ("model.precision=bf16 ", "bf16"),
        ("run.overwrite=true", True),
        ("rollout.sde_window=null", None),
        ("rollout.sde_window.size=2", 2),
        ("trackers=[wandb, trackio]", ("wandb", "trackio")),
    ],
)
def test_a_value_is_what_its_field_takes(override: str, expected: object) -> None:
    path = override.partition("=")[0].replace("rewards.clip_i", "rewards.1")
    assert value(load_config("toybox", [override]), path) == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.iterations=5 # five", "train.iterations: got '5 # five'; write a whole number"),
        ("train.learning_rate=1.5e-4 # x", "write a number"),
        ("trackers=[wandb] # later", "trackers: a # that follows a blank would begin a comment"),
        ("train.iterations=1e3", "got 1000.0; write a whole number"),
        ("train.iterations=2024-11-28", "got '2024-11-28'; write a whole number"),
        ("train.iterations=1:30", "got '1:30'; write a whole number"),
        ("run.overwrite=yes", "got 'yes'; write true or false"),
        ("evaluation.every=null", "got None; write a whole number"),
        ("train.learning_rate=.inf", "not a finite number"),
        ("run.dir=", "a path must not be empty"),
        ("run.dir=caf\udce9", "half a character"),
        ("run.dir=$HOME/dog", "environment variables are not read in a path"),
        ("model.path=models/${NAME}", "environment variables are not read in a path"),
        ("run.dir=~nobody-of-this-name/dog", "there is no such home folder"),
    ],
)
def test_a_value_that_could_mean_something_else_is_refused(override: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        load_config("toybox", [override])
    assert message in refused.value.message


# Home folders


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


PATHS = ["run.dir", "model.path", "model.start_lora", "model.cache", "rewards.0.path"]


@pytest.mark.parametrize("path", PATHS)
def test_a_tilde_is_the_home_folder_in_every_path(path: str, home: Path) -> None:
    assert str(value(load_config("toybox", [f"{path}=~/a"]), path)) == str(home / "a")


def test_a_fused_lora_is_a_path_or_a_list_of_paths_and_scales(home: Path) -> None:
    one = load_config("toybox", ["model.fuse_lora=~/my loras/a #2.safetensors"]).model.fuse_lora
    assert [lora.model_dump() for lora in one] == [
        {"path": str(home / "my loras" / "a #2.safetensors"), "scale": 1.0}
    ]
    several = load_config("toybox", ["model.fuse_lora=[{path: ~/a, scale: 0.5}, owner/b:c]"])
    assert [lora.scale for lora in several.model.fuse_lora] == [0.5, 1.0]
    assert [lora.path for lora in several.model.fuse_lora] == [str(home / "a"), "owner/b:c"]
    (home / "dump.yaml").write_text(dump_config(several))
    assert load_config(str(home / "dump.yaml")) == several
    assert load_config("toybox", ["model.fuse_lora=null"]).model.fuse_lora == ()
    with pytest.raises(UserError, match=r"fuse_lora\.0\.scal: .*did you mean model\.fuse_lora\.0\.scale"):
        load_config("toybox", ["model.fuse_lora=[{path: a, scal: 0.5}]"])


def test_a_tilde_is_the_home_folder_in_a_recipe_and_in_what_it_extends(home: Path) -> None:
    (home / "base.yaml").write_text("extends: toybox\nrun: {dir: ~/base}\n")
    (home / "mine.yaml").write_text("extends: ~/base.yaml\ndata: {kind: manifest, train: ~/rows.jsonl}\n")
    config = load_config(str(home / "mine.yaml"))
    assert (config.run.dir, config.data.train) == (home / "base", home / "rows.jsonl")  # type: ignore[union-attr]


def test_a_tilde_is_the_home_folder_on_the_command_line(home: Path, tmp_path: Path) -> None:
    """A shell expands `--json ~/found.json`, but not `--json=~/found.json`."""
    Image.new("RGB", (64, 64)).save(home / "toy.png")
    (home / "rows.jsonl").write_text('{"id": "a", "prompt": "a toy", "references": ["toy.png"]}\n')
    done = run_here("data", "check", "~/rows.jsonl", "--json=~/found.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (home / "found.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


SHORT = "advantage: {name: sars, gamma: 0.4}"
LONG = "advantage: {name: sars, options: {gamma: 0.4}}"


@pytest.mark.parametrize("below", [SHORT, LONG])
@pytest.mark.parametrize(
    "above", ["advantage.gamma=0.1", "advantage.options.gamma=0.1", "advantage.options={gamma: 0.1}"]
)
def test_the_later_value_of_an_option_counts_in_whichever_form(
    tmp_path: Path, below: str, above: str
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"extends: toybox-smoke\n{below}\n")
    assert load_config(str(recipe), [above]).advantage.options == {"gamma": 0.1}
    earlier = ["advantage.gamma=0.2", "advantage.options.gamma=0.3"]
    assert load_config(str(recipe), [*earlier, above]).advantage.options == {"gamma": 0.1}


@pytest.mark.parametrize("below", [SHORT, LONG])
@pytest.mark.parametrize("above", ["advantage: {gamma: 0.1}", "advantage: {options: {gamma: 0.1}}"])
def test_a_recipe_that_extends_another_may_write_its_options_in_the_other_form(
    tmp_path: Path, below: str, above: str
) -> None:
    (tmp_path / "below.yaml").write_text(f"extends: toybox-smoke\n{below}\n")
    (tmp_path / "above.yaml").write_text(f"extends: ./below.yaml\n{above}\n")
    assert load_config(str(tmp_path / "above.yaml")).advantage.options == {"gamma": 0.1}


def test_the_settings_of_a_family_have_both_forms_too() -> None:
    for key in ("model.last_block", "model.options.last_block"):
        for beside in ("whole", "image"):
            options = load_config("toybox", [f"model.last_block={beside}", f"{key}=image"]).model.options
            assert options["last_block"] == "image"


def test_an_option_that_is_given_in_both_forms_at_once_is_refused() -> None:
    with pytest.raises(
        UserError, match="advantage.gamma: is given twice, here and as advantage.options.gamma"
    ):
        load_config("toybox", ["advantage={name: sars, gamma: 0.1, options: {gamma: 0.2}}"])
