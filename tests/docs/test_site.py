"""The documentation as a site: it builds, asks nothing of other machines, and its recipes load."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from customized_grpo.cli.main import app
from customized_grpo.config import load_config
from customized_grpo.config.reference import knobs

ROOT = Path(__file__).parents[2]
TUTORIALS = sorted(ROOT.glob("docs/tutorials/*.md"))
LOADED = re.compile(
    r"<(?:script|img|iframe|source)[^>]+src=[\"']?(https?:)?//|<link[^>]+stylesheet[^>]+https?://"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole site, built with every warning as an error."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        assert LOADED.search(page.read_text(encoding="utf-8")) is None, page


@pytest.mark.slow
def test_settings_commands_and_formulas_are_there(site: Path) -> None:
    settings = (site / "reference" / "settings.html").read_text(encoding="utf-8")
    assert [knob.path for knob in knobs() if knob.path not in settings] == []
    verbs = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    for command in app.registered_commands:
        assert f"Usage: cgrpo {command.name} " in verbs
    python = (site / "reference" / "python.html").read_text(encoding="utf-8")
    assert "group_advantages" in python and "policy_loss" in python
    method = (site / "method.html").read_text(encoding="utf-8")
    assert method.count("<math") > 20 and "$" not in re.sub(r"<script.*?</script>", "", method, flags=re.S)


def recipes(page: Path) -> list[str]:
    """Return the recipes of a page: YAML that says what it extends."""
    blocks = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return [block for block in blocks if "extends:" in block]


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_the_recipes_of_a_tutorial_load(page: Path, tmp_path: Path) -> None:
    for number, recipe in enumerate(recipes(page)):
        file = tmp_path / f"{number}.yaml"
        file.write_text(recipe)
        load_config(str(file))


def test_there_are_recipes_to_load() -> None:
    assert sum(len(recipes(page)) for page in TUTORIALS) >= 2


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    pages = [page.relative_to(ROOT / "docs") for page in sorted(ROOT.glob("docs/**/*.md"))]
    assert [str(page) for page in pages if f": {page}\n" not in navigation] == []
