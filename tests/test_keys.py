"""Which environment variables a recipe may name, and where their values may go."""

from __future__ import annotations

import os

import pytest

from customized_grpo import extensions, keys
from customized_grpo.config.executors import HttpExecution, RayExecution
from customized_grpo.config.schema import RewardConfig
from customized_grpo.errors import UserError
from customized_grpo.rewards import check_rewards
from customized_grpo.rewards.executors import check_prerequisites
from customized_grpo.rewards.executors.ray import check_permissions

URL = "https://api.openai.com/v1"


@pytest.mark.parametrize(
    ("variable", "allowed", "is_free"),
    [
        ("CGRPO_TOKEN", "", True),
        ("OPENAI_API_KEY", "", False),
        ("AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", False),
        ("OPENAI_API_KEY", " A , OPENAI_API_KEY", True),
        ("OPENAI_API_KEY", "OPENAI_API_KEY@api.openai.com", True),
        ("OPENAI_API_KEY", "OPENAI_API_KEY@API.OpenAI.com", True),
        ("OPENAI_API_KEY", "OPENAI_API_KEY@openai.com", False),
        ("OPENAI_API_KEY", "OPENAI_API_KEY@", False),
        ("CGRPO_TOKEN", "CGRPO_TOKEN@gpu2", False),
        ("CGRPO_TRUST", "CGRPO_TRUST", False),
        ("CGRPO_KEYS", "", False),
    ],
)
def test_a_recipe_may_name_the_products_variables_and_the_users(
    variable: str, allowed: str, is_free: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(keys.KEYS, allowed)
    assert (keys.why_not(variable, URL) is None) == is_free


def test_the_message_is_the_way_to_allow_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(keys.KEYS, "OTHER")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with pytest.raises(UserError) as caught:
        keys.read_key("OPENAI_API_KEY", URL, "place")
    setting = str(caught.value).partition("export CGRPO_KEYS=")[2]
    assert setting == "OTHER,OPENAI_API_KEY@api.openai.com" and "sk-secret" not in str(caught.value)
    monkeypatch.setenv(keys.KEYS, setting)
    assert keys.read_key("OPENAI_API_KEY", URL, "place") == "sk-secret"
    with pytest.raises(UserError, match="begin with CGRPO_ only"):
        keys.read_key("OPENAI_API_KEY", "https://api.openai.com.evil.example/v1", "place")


def test_a_word_of_the_user_allows_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(keys.KEYS, "")
    keys.allow("MINE")
    assert keys.why_not("MINE", URL) is None
    assert os.environ[keys.KEYS] == "MINE"


def test_neither_a_judge_nor_a_service_gets_any_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are refused before anything is loaded."""
    monkeypatch.setenv(keys.KEYS, "")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x" * 20)
    options = {"url": "https://evil.example/v1", "model": "m", "rubric": "prompt"}
    judge = RewardConfig(name="judge", options={**options, "api_key_env": "AWS_SECRET_ACCESS_KEY"})
    with pytest.raises(UserError, match="AWS_SECRET_ACCESS_KEY: a recipe may name variables"):
        check_rewards([judge])
    place = HttpExecution(kind="http", url="https://evil.example", token_env="AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match="AWS_SECRET_ACCESS_KEY: a recipe may name variables"):
        check_prerequisites([RewardConfig(name="dino", executor=place)])


def test_ray_runs_no_code_at_the_word_of_a_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(keys.KEYS, "")
    monkeypatch.setenv(extensions.TRUST, "")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    place = RayExecution(
        kind="ray",
        address="ray://evil.example:10001",
        pip=("evil",),
        env={"LD_PRELOAD": "evil.so", "CGRPO_TRUST": "evil", "CGRPO_FINE": "1"},
    )
    with pytest.raises(UserError) as caught:
        check_prerequisites([RewardConfig(name="dino", executor=place)])
    text = str(caught.value)
    refused = ("executor.pip", "executor.address", "executor.env.LD_PRELOAD", "executor.env.CGRPO_TRUST")
    assert all(name in text for name in refused) and "CGRPO_FINE" not in text
    monkeypatch.setenv(keys.KEYS, "LD_PRELOAD")
    monkeypatch.setenv(extensions.TRUST, "pip,ray")
    check_permissions(place.model_copy(update={"env": {"LD_PRELOAD": "mine.so"}}))
