"""Parts from outside: what runs only when the user has allowed it, and what the messages say."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from customized_grpo import extensions
from customized_grpo.algorithms.rules import Linear, Sars
from customized_grpo.config import load_config
from customized_grpo.errors import UserError

RULE = """
from customized_grpo.algorithms.rules import Batch, Rule

open({marker!r}, "w").close()  # leaves a trace when it is imported


class Half(Rule):
    factor: float = 0.5

    def __call__(self, batch):
        return self.factor * batch.weighted_sum()


NUMBER = 3
"""

WriteModule = Callable[[str, str], Path]


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "was_imported"


@pytest.fixture
def outside(tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that can be imported and is not trusted."""
    (tmp_path / "outside_rules.py").write_text(RULE.format(marker=str(marker)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv(extensions.TRUST, raising=False)
    monkeypatch.delitem(sys.modules, "outside_rules", raising=False)
    return "outside_rules"


def test_a_recipe_alone_imports_nothing(outside: str, marker: Path) -> None:
    with pytest.raises(UserError, match=f"--trust {outside} or CGRPO_TRUST={outside}"):
        load_config("toybox-smoke", [f"advantage.name={outside}:Half"])
    assert not marker.exists()


def test_a_trusted_module_is_imported_and_its_options_are_checked(outside: str, marker: Path) -> None:
    extensions.trust([outside])
    config = load_config("toybox-smoke", [f"advantage.name={outside}:Half", "advantage.factor=2.0"])
    assert marker.exists()
    assert config.advantage.options == {"factor": 2.0}
    with pytest.raises(UserError, match="advantage.options.factr: .*did you mean factor"):
        load_config("toybox-smoke", [f"advantage.name={outside}:Half", "advantage.factr=2.0"])


@pytest.mark.parametrize(
    ("allowed", "module", "trusted"),
    [
        ("mine", "mine", True),
        ("mine", "mine.rules", True),
        ("mine.rules", "mine", False),
        ("mine", "mines", False),
        (" other , mine ", "mine", True),
        ("", "mine", False),
    ],
)
def test_trust_covers_a_module_and_what_is_in_it(
    allowed: str, module: str, trusted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(extensions.TRUST, allowed)
    message = "could not be imported" if trusted else "is not trusted"
    with pytest.raises(UserError, match=message):
        extensions.load("rule", f"{module}:Thing")


def test_trust_is_inherited_by_child_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(extensions.TRUST, "one")
    extensions.trust(["two", "three.four"])
    assert extensions.trusted_modules() == ["one", "two", "three.four"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("outside_rules:Nothing", "has no 'Nothing'"),
        ("outside_rules:half", "did you mean Half"),
        ("outside_rules.Half", "written module:Name"),
        ("outside_rules:NUMBER", "is no combination rule: it is int"),
        ("outside_rules:", "names no combination rule"),
    ],
)
def test_what_a_trusted_module_does_not_have_is_said(outside: str, path: str, message: str) -> None:
    extensions.trust([outside])
    with pytest.raises(UserError, match=message):
        extensions.load("rule", path)


def test_a_module_that_fails_on_import_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_rules.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(extensions.TRUST, "broken_rules")
    with pytest.raises(UserError, match=r"ZeroDivisionError: .* \(broken_rules.py, line 1\)"):
        extensions.load("rule", "broken_rules:Half")


def install(monkeypatch: pytest.MonkeyPatch, point: EntryPoint) -> None:
    """Have the interpreter find one entry point, as an installed package would declare it."""
    monkeypatch.setattr(extensions, "entry_points", lambda group: [point] if group == point.group else [])


def test_an_entry_point_of_an_installed_package_needs_no_trust(
    outside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, EntryPoint("half", f"{outside}:Half", "customized_grpo.rules"))
    config = load_config("toybox-smoke", ["advantage.name=half"])
    assert config.advantage.options == {"factor": 0.5}
    assert "half" in extensions.names("rule")


def test_the_packages_own_name_wins_over_an_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    install(
        monkeypatch, EntryPoint("sars", "customized_grpo.algorithms.rules:Linear", "customized_grpo.rules")
    )
    assert extensions.load("rule", "sars") is Sars
    assert extensions.load("rule", "linear") is Linear


@pytest.mark.parametrize("kind", extensions.KINDS)
def test_an_unknown_name_lists_the_known_ones(kind: str) -> None:
    first = extensions.names(kind)[0]
    with pytest.raises(UserError, match=f"did you mean {first}") as caught:
        extensions.load(kind, f"{first}_")
    assert all(name in str(caught.value) for name in extensions.names(kind))


@pytest.mark.parametrize("kind", extensions.KINDS)
def test_every_part_of_the_package_is_of_its_kind(kind: str) -> None:
    for name in extensions.names(kind):
        assert extensions.load(kind, name) is extensions.registry(kind)[name]
