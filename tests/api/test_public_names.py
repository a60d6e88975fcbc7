"""`import customized_grpo as cg`: what it offers, and that it loads nothing before it is used."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import customized_grpo as cg
from processes import run_python


def test_importing_the_package_loads_no_library() -> None:
    heavy = ("torch", "numpy", "pydantic", "diffusers")
    code = f"import sys, customized_grpo as cg; dir(cg); print([m for m in {heavy} if m in sys.modules])"
    assert run_python("-c", code).stdout.strip() == "[]"


@pytest.mark.slow
def test_the_settings_of_a_recipe_are_checked_without_any_model_library() -> None:
    code = (
        "import sys, customized_grpo as cg\n"
        "try: cg.train('toybox', train={'iterations': -1})\n"
        "except cg.UserError as error: print('train.iterations' in str(error), 'diffusers' in sys.modules)"
    )
    assert run_python("-c", code).stdout.split() == ["True", "False"]


@pytest.mark.parametrize("name", cg.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name: str) -> None:
    value = getattr(cg, name)
    if inspect.isfunction(value) or inspect.isclass(value):
        assert inspect.getdoc(value)
    if inspect.isfunction(value):
        assert "return" in value.__annotations__


def test_type_checkers_see_the_same_names() -> None:
    stub = Path(cg.__file__).with_suffix(".pyi").read_text()
    assert {*re.findall(r"import (\w+) as \1\n", stub), "__version__"} == set(cg.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = cg.nonsense  # type: ignore[attr-defined]
