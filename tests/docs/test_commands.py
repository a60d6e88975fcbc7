"""Every command of the documentation names what exists: verbs, options, settings, arms, targets, files."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import pytest
import typer

from customized_grpo import extensions
from customized_grpo.cli.main import command_tree
from customized_grpo.comparison.arms import load_arms
from customized_grpo.config import load_config, preset_names
from customized_grpo.errors import UserError
from documented import COMMANDS, PAGES, ROOT, Command, commands, split

PLACEHOLDERS = {"STEP": "1", "N": "2", "CARD": "4090", "STAGE": "pack"}
"""Words in capitals that stand for what has to be a number or a known name."""

STAND_IN = "flux1-kontext"
"""The recipe whose settings the commands on a user's own recipe or run are checked by."""

OF_READERS = {
    "advantage.name=my_rules:HalfSars": "a module that the reader writes",
    "rewards.dino.executor.url=http://${nodes[1]}:8000": "a recipe whose reward runs elsewhere already",
    "schedule.path=weights.json": "a file that `cgrpo doctor --calibrate` writes",
}
"""Settings that only hold beside something of the reader's, and what that is; the others are checked."""

WRONG = typer.BadParameter.__mro__[1]
"""Typer's base class of what is wrong with a command line."""


def leaf(words: list[str]) -> tuple[Any, list[str]]:
    """Return the verb of a command and its arguments; a group where no verb follows.

    Raises:
        LookupError: There is no such verb.
    """
    command: Any = command_tree()
    rest = list(words)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        if name not in command.commands:
            raise LookupError(name)
        command = command.commands[name]
    return command, rest


def parsed(words: list[str]) -> dict[str, Any]:
    """Return the parameters of a command as the command line reads them.

    Raises:
        WRONG: An option or its value is wrong, or an argument is missing.
    """
    command, rest = leaf(words)
    arguments = [PLACEHOLDERS.get(word, word) for word in without_dots(rest)]
    if {"-h", "--help", "--version"} & set(arguments):
        return {}
    with command.make_context("cgrpo", arguments) as context:
        return dict(context.params)


def without_dots(words: list[str]) -> list[str]:
    """Return the words without "...", but for one that stands for the value of an option."""
    before = ["", *words][: len(words)]
    return [word for word, last in zip(words, before, strict=True) if word != "..." or last.startswith("--")]


def is_whole(command: Command) -> bool:
    """Return whether nothing is missing; in a sentence a command may only be named, such as `cgrpo export`.

    Raises:
        WRONG: Something else is wrong, or something is missing in a block of code.
    """
    try:
        parsed(command.words)
    except WRONG as error:
        if command.is_in_block or not is_incomplete(error, command.words):
            raise
        return False
    return True


def is_incomplete(error: Exception, words: list[str]) -> bool:
    """Return whether a command only lacks an argument or, at its end, the value of an option or a verb."""
    verb, _ = leaf(words)
    options = [option for parameter in verb.params for option in parameter.opts]
    names = {type(error).__name__, *(type(error).__mro__[1].__name__,)}
    if {"MissingParameter", "NoArgsIsHelpError"} & names:
        return True
    return "BadOptionUsage" in names and words[-1] in options


@pytest.fixture(autouse=True)
def no_trust(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep --trust of a parsed command from allowing modules in this process."""
    monkeypatch.setattr(extensions, "trust", lambda modules: None)


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_is_parsed(command: Command) -> None:
    assert is_whole(command) or not command.is_in_block


def settings_of(parameters: dict[str, Any]) -> tuple[str, list[str]] | None:
    """Return the recipe of a command, or one in its place, and the settings; None without settings."""
    settings = [word for word in parameters.get("overrides") or () if "=" in word]
    if not settings or set(settings) & OF_READERS.keys():
        return None
    recipe = parameters.get("recipe")
    return (recipe if recipe in preset_names() else STAND_IN), settings


WITH_SETTINGS = [command for command in COMMANDS if any("=" in word for word in command.words)]


@pytest.mark.parametrize("command", WITH_SETTINGS, ids=str)
def test_its_settings_exist_and_have_such_values(command: Command) -> None:
    recipe_and_settings = settings_of(parsed(command.words)) if is_whole(command) else None
    if recipe_and_settings is not None:
        load_config(*recipe_and_settings)


def test_settings_that_are_left_out_stand_in_some_command() -> None:
    words = {word for command in COMMANDS for word in command.words}
    assert OF_READERS.keys() <= words


WITH_ARMS = [command for command in COMMANDS if {"--only", "--arms"} & set(command.words)]


@pytest.mark.parametrize("command", WITH_ARMS, ids=str)
def test_its_arms_exist(command: Command) -> None:
    parameters = parsed(command.words)
    assert load_arms(parameters["arms"], parameters["only"] or ())


def test_what_is_wrong_is_seen() -> None:
    wrong = (
        ["train", "toybox", "--nonsense"],
        ["compare", "toybox", "--seeds", "many"],
        ["export"],
        ["plan", "x", "--device"],
    )
    for words in wrong:
        with pytest.raises(WRONG):
            parsed(words)
    with pytest.raises(LookupError):
        parsed(["tarin", "toybox"])
    with pytest.raises(UserError, match="trian"):
        load_config(STAND_IN, ["trian.iterations=3"])


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) > 100 and len(WITH_SETTINGS) > 15
    assert {"README.md", "first-run.md", "one-subject.md"} <= {command.page.name for command in COMMANDS}


def lines(pattern: str) -> list[tuple[str, str]]:
    """Return (page, command) of the lines of code and the quoted commands that begin like this."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for match in re.findall(rf"(?:^|`)({pattern} [^`\n]+)", text, re.MULTILINE):
            found.append((page.name, match))
    return found


def test_the_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {(page, line.split()[1]) for page, line in lines("make") if line.split()[1].isalpha()}
    commanded = {target for page, target in named if target not in ("is", "a", "it", "the")}
    assert {"setup", "demo", "check", "test", "docs"} <= commanded
    assert commanded <= targets


@pytest.mark.parametrize(("page", "line"), lines("python"), ids=lambda value: value[:60])
def test_the_scripts_of_python_exist_and_know_their_options(page: str, line: str) -> None:
    words = split(line)[1:]
    if words[0] == "-m":
        assert importlib.util.find_spec(words[1]) is not None
        return
    script = ROOT / words[0]
    assert script.is_file(), f"{page}: {words[0]}"
    text = script.read_text()
    for option in [word for word in words[1:] if word.startswith("--")]:
        # a script may put its options together of names
        assert option.removeprefix("--") in text, f"{page}: {words[0]} has no {option}"


def test_every_page_is_read() -> None:
    assert len(PAGES) > 40 and sum(len(commands(page)) for page in PAGES) == len(COMMANDS)
