"""Every family by its name in a recipe: one iteration through the same command as ToyBox's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tiny_families
from customized_grpo.cli.main import main
from customized_grpo.config import load_config
from customized_grpo.errors import UserError
from customized_grpo.policies.families import FAMILIES, Family
from customized_grpo.policies.loading import load_pipeline

SETTINGS = {
    "flux2": ["model.guidance=4.0", "model.text_layers=[1, 2, 3]", "model.max_text_tokens=96"],
    "qwen_edit": ["model.guidance=1.0", "model.max_text_tokens=512"],
    "qwen_image21": ["model.guidance=1.0", "model.max_text_tokens=64"],
    "flux3": ["model.guidance=4.0", "model.text_layers=[1, 2, 3]", "model.max_text_tokens=160"],
}


@pytest.mark.parametrize("family", SETTINGS)
def test_one_iteration_and_an_adapter_that_its_own_pipeline_loads(family: str, tmp_path: Path) -> None:
    path = tiny_families.save(family, tmp_path / "base")
    settings = [f"model.family={family}", f"model.path={path}", *SETTINGS[family]]
    run = tmp_path / "run"
    shorter = ["train.iterations=1", "rollout.steps=2", "train.trained_fraction=1.0"]
    with pytest.raises(SystemExit) as left:
        main(["train", "toybox-smoke", f"run.dir={run}", *settings, *shorter])
    assert left.value.code == 0
    (line,) = [
        line
        for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        if line["kind"] == "train"
    ]
    assert line["policy/ratio_max_deviation"] == 0 and line["policy/grad_norm"] > 0
    pipe = load_pipeline(str(path), family=family, precision="fp32")
    pipe.load_lora_weights(str(run / "lora"))
    assert pipe.get_active_adapters()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_of_another_family_is_refused_by_name(family: str, tmp_path: Path) -> None:
    other = "QwenImageEditPlusPipeline" if family != "qwen_edit" else "Flux2Pipeline"
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": other}))
    with pytest.raises(UserError, match=f"says {other}, model.family {family} needs"):
        load_pipeline(str(tmp_path), family=family)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.family=flux2", "model.reference_ids=uno"], "not an option of flux2, only of flux1"),
        (["model.text_layers=[1]"], "not an option of flux1, only of flux2"),
    ],
)
def test_an_option_of_another_family_is_refused(settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config("toybox", settings)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (
            "customized_grpo.policies.policy:Policy",
            "lacks _check_positions, _encode, _latents, _reference_tokens, _vel",
        ),
        ("customized_grpo.policies.flux1:Flux9Policy", "could not be loaded: .*Flux9Policy"),
    ],
)
def test_a_family_whose_policy_is_missing_or_unfinished_is_refused_by_name(policy: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Family(policy=policy, pipelines={}).policy_class()
    assert policy in caught.value.message and caught.value.hint
