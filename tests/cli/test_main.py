"""The command line as a user meets it: through `main`, and where the process matters as a process."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from commands import run_here, status
from customized_grpo import __version__
from customized_grpo.cli import main as cli_main
from customized_grpo.cli.common import table
from customized_grpo.cli.evaluate import results_table
from customized_grpo.config import Config, load_config, preset_names
from customized_grpo.engine.environment import DETERMINISTIC_CUBLAS
from customized_grpo.errors import UserError
from processes import CGRPO, run_python

MODEL_LIBRARIES = {"diffusers", "transformers", "peft", "accelerate", "matplotlib"}


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Stand in for the trainer, so that what reaches it can be seen."""
    module = ModuleType("customized_grpo.training.trainer")
    monkeypatch.setitem(sys.modules, "customized_grpo.training.trainer", module)
    monkeypatch.setattr("customized_grpo.training.trainer", module, raising=False)
    return module


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("run: {}\n")
    (folder / "versions.json").write_text('{"customized_grpo": "0"}\n')
    return folder


def test_cuda_is_prepared_by_every_command(monkeypatch: pytest.MonkeyPatch) -> None:
    variable, value = DETERMINISTIC_CUBLAS
    monkeypatch.setenv(variable, "")  # so that it is put back after the test
    monkeypatch.delenv(variable)
    assert status("config", "presets") == 0
    assert os.environ[variable] == value


IMPORTED = """
import json, sys
from customized_grpo.cli.main import main
heavy, commands = map(json.loads, sys.argv[1:])
for arguments in commands:
    try:
        main(arguments)
    except SystemExit:
        pass
    print("\\nimported by", json.dumps([arguments, sorted(set(heavy) & set(sys.modules))]))
"""


def imported(commands: list[list[str]], heavy: set[str]) -> dict[str, list[str]]:
    """Return which heavy modules are loaded after each of several commands of one process."""
    done = run_python("-c", IMPORTED, json.dumps(sorted(heavy)), json.dumps(commands))
    assert done.returncode == 0, done.stderr
    reports = re.findall("^imported by (.*)$", done.stdout, re.MULTILINE)
    return {" ".join(arguments): modules for arguments, modules in map(json.loads, reports)}


def test_help_and_refusals_import_nothing_heavy() -> None:
    commands = [
        ["--help"],
        ["train", "--help"],
        ["doctor", "--help"],
        ["plan", "--help"],
        ["benchmark", "run", "--help"],
        ["serve-rewards", "--help"],
        ["studio", "--help"],
        ["studio", "no/such/folder"],
        ["data", "--help"],
        ["data", "convert", "--help"],
        ["data", "check", "data", "--json", "no/such/folder/found.json"],
        ["evaluate", "no/such/run"],
    ]
    heavy = {"torch", "numpy", *MODEL_LIBRARIES}
    assert imported(commands, heavy) == {" ".join(arguments): [] for arguments in commands}


def test_reading_a_recipe_imports_no_library_of_models() -> None:
    commands = [
        ["config", "presets"],
        ["config", "show", "toybox"],
        ["config", "schema"],
        ["train", "toybx"],
        ["serve-rewards", "toybx"],
        ["doctor", "toybox", "--json", "no/such/folder/found.json"],
    ]
    assert imported(commands, MODEL_LIBRARIES) == {" ".join(arguments): [] for arguments in commands}


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, customized_grpo; assert 'torch' not in sys.modules"
    assert run_python("-c", code).returncode == 0


def test_the_commands_are_made_once_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert status("--help") == 0
    monkeypatch.setattr("typer.main.get_command", lambda app: pytest.fail("they are made again"))
    assert status("--help") == 0
    assert status("config", "presets") == 0


def test_help_lists_every_verb_with_a_whole_sentence() -> None:
    result = run_here("--help")
    assert result.returncode == 0
    for verb in (
        "plan",
        "doctor",
        "compare",
        "train",
        "resume",
        "evaluate",
        "benchmark",
        "export",
        "generate",
        "report",
        "serve-rewards",
        "studio",
        "config",
        "data",
        "toybox",
    ):
        assert f"  {verb} " in result.stdout
    assert "..." not in result.stdout.partition("Commands:")[2]


def test_the_version_is_the_packages() -> None:
    assert run_python(*CGRPO, "--version").stdout == f"cgrpo {__version__}\n"


def test_a_mistake_is_one_plain_message_on_stderr_and_status_2() -> None:
    result = run_python(*CGRPO, "train", "toybox", "train.group_size=1", "trian.x=2")
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: 2 mistakes in the recipe toybox or its overrides:\n")
    assert "train.group_size: got 1" in result.stderr and "did you mean train?" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unknown_preset_lists_the_presets() -> None:
    result = run_here("train", "nothing-like-it")
    assert result.returncode == 2
    assert f"Presets: {', '.join(preset_names())}." in result.stderr


@pytest.mark.parametrize(
    "arguments", [["trian"], ["train"], ["generate", "x"], ["evaluate", "x", "--seed=a"]]
)
def test_a_wrong_command_line_ends_with_status_2(arguments: list[str]) -> None:
    assert status(*arguments) == 2


def test_user_text_is_printed_without_markup_and_cannot_drive_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert status("train", "[bold]x[/bold]\x1b[31m.yaml") == 2
    assert "[bold]x[/bold]\\x1b[31m.yaml" in capsys.readouterr().err


def test_config_show_prints_a_recipe_that_loads_back_equal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status("config", "show", "toybox", "train.learning_rate=1e-5") == 0
    path = tmp_path / "shown.yaml"
    path.write_text(capsys.readouterr().out)
    assert load_config(str(path)) == load_config("toybox", ["train.learning_rate=1e-5"])


def test_config_schema_prints_json_or_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("config", "schema") == 0
    assert "properties" in json.loads(capsys.readouterr().out)
    assert status("config", "schema", "--format", "markdown") == 0
    assert "| `train.group_size` |" in capsys.readouterr().out


def test_train_hands_the_checked_config_over_and_returns_the_trainers_status(trainer: ModuleType) -> None:
    seen: list[Config] = []

    def train(config: Config) -> int:
        seen.append(config)
        return 143

    trainer.train = train  # type: ignore[attr-defined]
    assert status("train", "toybox", "run.seed=3", "advantage.name=linear") == 143
    assert seen == [load_config("toybox", ["run.seed=3", "advantage.name=linear"])]


def test_resume_takes_a_run_folder_and_returns_the_trainers_status(
    trainer: ModuleType, run_folder: Path
) -> None:
    seen = []
    trainer.resume = lambda *given, **_: seen.append(given) or 143  # type: ignore[attr-defined]
    assert status("resume", str(run_folder)) == 143
    assert status("resume", str(run_folder), "--from", "20") == 143
    assert seen == [(run_folder, None), (run_folder, 20)]


@pytest.mark.parametrize("verb", ["resume", "evaluate", "report", "export"])
def test_a_folder_that_is_no_run_is_refused_and_the_runs_beside_it_are_named(
    verb: str, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = run_folder.parent / "other"
    assert status(verb, str(other)) == 2
    assert f"Runs here: {run_folder}." in capsys.readouterr().err
    other.mkdir()
    (other / "config.yaml").write_text("services: {}\n")  # as many a foreign folder has
    assert status(verb, str(other)) == 2
    message = f"error: {other} is not the folder of a run\nRuns here: {run_folder}.\n"
    assert capsys.readouterr().err == message


def test_a_foreign_folder_is_no_generator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("services: {}\n")
    image = tmp_path / "toy.png"
    Image.new("RGB", (8, 8)).save(image)
    assert status("generate", str(tmp_path), "--prompt", "a toy", "--reference", str(image)) == 2
    error = capsys.readouterr().err
    problem = f"error: {tmp_path} is neither the folder of a run nor a model with model_index.json\n"
    way_out = "Give the folder that `cgrpo train` wrote, or one that diffusers wrote by save_pretrained.\n"
    assert error == problem + way_out


def test_a_user_error_from_deep_inside_ends_with_status_2_and_its_hint(
    trainer: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(config: Config) -> int:
        raise UserError("the folder runs/x exists", "Set run.overwrite=true.")

    trainer.train = train  # type: ignore[attr-defined]
    assert status("train", "toybox") == 2
    assert capsys.readouterr().err == "error: the folder runs/x exists\nSet run.overwrite=true.\n"


def test_ctrl_c_ends_with_status_130(trainer: ModuleType) -> None:
    def train(config: Config) -> int:
        raise KeyboardInterrupt

    trainer.train = train  # type: ignore[attr-defined]
    assert status("train", "toybox") == 130


def test_a_bug_keeps_its_traceback(trainer: ModuleType) -> None:
    def train(config: Config) -> int:
        raise ZeroDivisionError

    trainer.train = train  # type: ignore[attr-defined]
    with pytest.raises(ZeroDivisionError):
        status("train", "toybox")


def test_generate_refuses_missing_files_and_masks_that_do_not_pair_up(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "toy.png"
    image.touch()
    ask = ["generate", str(run_folder), "--prompt", "a toy"]
    assert status(*ask, "--reference", "no.png", "--reference", "nor.png") == 2
    assert "--reference: no such file: no.png, nor.png" in capsys.readouterr().err
    given = ["--reference", str(image)]
    assert status(*ask, *given, *given, "--mask", str(image)) == 2
    assert "1 --mask for 2 --reference" in capsys.readouterr().err


def test_results_are_a_table_with_intervals() -> None:
    def column(mean: float) -> dict[str, dict[str, float]]:
        return {"judge/identity": {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}}

    lines = results_table(column(0.5), column(0.75), column(0.25)).splitlines()
    assert lines[0].split() == ["base", "tuned", "difference"]
    assert lines[1] == "judge/identity  0.500 [0.400, 0.600]  0.750 [0.650, 0.850]  0.250 [0.150, 0.350]"


def test_results_fit_a_narrow_terminal_with_whole_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    column = {"score/a_reward_of_a_long_name": {"mean": 0.5, "low": 0.25, "high": 0.75}}
    heads, row = results_table(column, column, column).splitlines()
    assert heads.split()[:3] == ["base", "tuned", "difference"] and max(len(heads), len(row)) <= 80
    assert row == "score/a_reward_of_a_long_name  0.500  0.500  0.500 [0.250, 0.750]"
    monkeypatch.setenv("COLUMNS", "120")
    assert results_table(column, column, column).count("[0.250, 0.750]") == 3


def test_a_table_prints_foreign_text_as_it_is_and_breaks_no_line_outside_a_terminal() -> None:
    text = table([["[bold]a[/bold]", ":smile:"], ["\x1b[31mb", "word " * 50]])
    first, second = text.splitlines()
    assert first == "[bold]a[/bold]  :smile:"
    assert second == ("\\x1b[31mb" + " " * 7 + "word " * 50).rstrip()


def test_a_table_is_no_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    lines = table([["name", "word " * 50]]).splitlines()
    assert len(lines) > 1 and max(map(len, lines)) <= 40


def test_a_table_cuts_nothing_off_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    name, long = "score/a_long_name", "n" * 60
    assert all(name in line for line in table([[name, "word " * 20]]).splitlines()[:1])
    cells = table([[name, "0.123 [0.100, 0.200]", "0.456 [0.400, 0.500]", "0.789 [0.700, 0.800]"]])
    assert name in cells and "…" not in cells and max(map(len, cells.splitlines())) <= 40
    assert table([[long, "x"]]).replace("\n", "").count("n") == 60


def test_a_command_is_not_talked_over_by_libraries_that_others_import(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def spoken(name: str) -> bool:
        return logging.getLogger(name).isEnabledFor(logging.WARNING)

    heard: list[bool] = []
    names = ("torchao", "torchao.kernels", "torch.utils._pytree", "bitsandbytes")

    def listen(**_: object) -> None:
        heard.extend(spoken(name) for name in names)

    monkeypatch.setattr(cli_main, "command_tree", lambda: listen)
    assert cli_main.main(["plan", "toybox"]) == 0
    assert heard == [False] * len(names)
    assert all(spoken(name) for name in names)


# What is not supported says the way


@pytest.mark.parametrize(
    ("arguments", "message", "way"),
    [
        (
            ["--reference", "https://example.com/dog.jpg"],
            "--reference: no such file",
            "download the file first",
        ),
        (
            ["--reference", "photos"],
            "--reference: no such file: photos",
            "give --reference for each of its files",
        ),
    ],
)
def test_a_reference_that_is_no_file_says_the_way(
    arguments: list[str], message: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    done = run_here("generate", "toybox", "--prompt", "x", *arguments)
    assert done.returncode == 2
    assert message in done.stderr and way in done.stderr
