"""Secrets in a recipe are refused, so that no file, page or tracker of a run can hold them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr

from customized_grpo.config import load_config, preset_names
from customized_grpo.config.clear_text import may_hold_a_secret, secret_mistakes
from customized_grpo.config.schema import RewardConfig
from customized_grpo.errors import UserError
from customized_grpo.rewards import build_reward, check_rewards

SECRET = "hunter2-7391"
OWN = "rewards=[{name: dino, path: toybox}, {name: 'own_rewards:Own', options: {%s}}]"


@pytest.mark.parametrize(
    "options",
    [
        f"api_key: {SECRET}",
        f"apiKey: {SECRET}",
        "password: 7391739173",
        f"HF_TOKEN: {SECRET}",
        f"nested: {{client_secret: {SECRET}}}",
        f"keys: {{key: [1, {SECRET}]}}",
        "x: sk-7391abcdefghijklmnopqrstuv",
        "x: hf_7391abcdefghijklmnopqrstuv",
        "x: [ghp_7391abcdefghijklmnopqrstuv]",
        f"url: 'https://me:{SECRET}@host/v1'",
    ],
)
def test_a_secret_in_clear_text_is_refused_and_not_repeated(options: str) -> None:
    with pytest.raises(UserError, match="looks like a secret in clear text") as caught:
        load_config("toybox", [OWN % options])
    assert "7391" not in str(caught.value) and "rewards.1.options." in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        "max_tokens: 5",
        "tokenizer: clip",
        "key_env: NAME",
        "token_file: x",
        "secret: env:CGRPO_X",
        "key: null",
    ],
)
def test_what_is_no_secret_passes(options: str) -> None:
    (own,) = load_config("toybox", [OWN % options]).rewards[1:]
    key, _, value = options.partition(": ")
    assert own.options == {key: {"5": 5, "null": None}.get(value, value)}


@pytest.mark.parametrize(
    "override",
    [
        "rewards.dino.executor={kind: http, url: 'http://h', token_env: 7391}",
        "rewards.dino.executor={kind: http, url: 'http://h', token_env: '7391-no-name'}",
        "rewards.dino.executor={kind: http, url: 'http://h', password: 7391}",
        "rewards.dino.executor={kind: 'secret-7391', password: 7391}",
        "rewards.dino.executor={kind: ray, env: {HF_TOKEN: 7391}}",
        "rewards.dino.executor={kind: ray, env: {HF_TOKEN: x7391}}",
        "advantage.options={key: 7391}",
        "train={api_key: 7391}",
    ],
)
def test_a_wrong_value_where_a_secret_may_be_is_not_repeated(override: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config("toybox", [override])
    text = str(caught.value).replace("'secret-7391' is not known", "")
    assert "7391" not in text


def test_no_recipe_of_the_package_has_what_looks_like_a_secret() -> None:
    for name in preset_names():
        assert secret_mistakes(load_config(name).model_dump(mode="json")) == []


def test_words_decide() -> None:
    assert may_hold_a_secret("token_env") and may_hold_a_secret("apiKey")
    assert not may_hold_a_secret("tokenizer") and not may_hold_a_secret("monkey")


def own(**options: Any) -> RewardConfig:
    return RewardConfig(name="own_rewards:Own", options=options)


def test_a_reward_of_ones_own_gets_a_secret_that_nothing_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CGRPO_OWN_KEY", SECRET)
    reward = build_reward(own(api_key="env:CGRPO_OWN_KEY", other=1))
    key = reward.options["api_key"]  # type: ignore[attr-defined]
    assert isinstance(key, SecretStr) and key.get_secret_value() == SECRET
    assert SECRET not in f"{key} {key!r} {reward.options}"  # type: ignore[attr-defined]


def test_a_variable_that_is_not_set_or_not_allowed_is_told_before_anything_is_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CGRPO_OWN_KEY", raising=False)
    with pytest.raises(UserError, match="options.api_key: the environment variable CGRPO_OWN_KEY is not set"):
        check_rewards([own(api_key="env:CGRPO_OWN_KEY")])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with pytest.raises(UserError, match="begin with CGRPO_ only"):
        check_rewards([own(api_key="env:AWS_SECRET_ACCESS_KEY")])


def test_a_reward_that_refuses_its_options_does_not_repeat_them() -> None:
    config = RewardConfig(name="own_rewards:Unmade", options={"x": SECRET})
    with pytest.raises(UserError, match="cannot be made with the options x: ") as caught:
        build_reward(config)
    assert SECRET not in str(caught.value)
