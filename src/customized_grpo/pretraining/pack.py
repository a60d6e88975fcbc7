"""Stage `pack`: the trained parts become the assets of the package, with a card of what they measure."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from customized_grpo.config import load_config
from customized_grpo.config.schema import RewardConfig
from customized_grpo.pretraining import measure
from customized_grpo.pretraining.encoders import MEAN, SIZE, STD
from customized_grpo.rewards import build_reward
from customized_grpo.rewards.base import Reward
from customized_grpo.toybox import assets

STAGES = ("vae", "clean", "mixture", "dino", "clip", "pickscore", "subject_encoder", "attribute_classifier")
BRANCHING_SHARE = 4  # one of so many prompts branches: from every step, 12 images are drawn of it
REWARDS = ("dino", "clip_i", "clip_t", "pickscore")


def pack(out: Path, target: Path = assets.ASSETS, prompts: int = 192) -> None:
    """Copy the weights in `out` to the package's assets (in bf16, except the autoencoder) and measure them.

    All is written and measured beside `target`, which is replaced at the end: a failure leaves it unchanged.

    Args:
        out: Folder of the earlier stages.
        target: Folder to fill; its old content is deleted.
        prompts: Prompts on which the base is measured.
    """
    new = target.with_name(f"{target.name}.new")
    if new.exists():
        shutil.rmtree(new)
    _copy_weights(out, new)
    with assets.reading_from(new):
        _write_card(out, new, prompts)
    if target.exists():
        shutil.rmtree(target)
    new.rename(target)


def _copy_weights(out: Path, target: Path) -> None:
    from diffusers import AutoencoderTiny, FluxKontextPipeline

    (target / "judges").mkdir(parents=True)
    pipe = FluxKontextPipeline.from_pretrained(out / "base-mixture", local_files_only=True)
    # the decoder may have been trained for longer since; the encoder is computed, and the same
    pipe.register_modules(vae=AutoencoderTiny.from_pretrained(out / "vae", local_files_only=True))
    for module in (pipe.transformer, pipe.text_encoder, pipe.text_encoder_2):
        module.to(torch.bfloat16)
    pipe.save_pretrained(target / "base")
    _forget_folders(target / "base")
    for name in assets.REWARD_MODELS:
        shutil.copytree(out / name, target / name)
        _copy_as_bf16(out / name / "model.safetensors", target / name / "model.safetensors")
        preprocessor = json.dumps(_preprocessor(name), indent=2)
        (target / name / "preprocessor_config.json").write_text(preprocessor + "\n")
    for name in ("subject_encoder", "attribute_classifier"):
        _copy_as_bf16(out / f"{name}.safetensors", target / "judges" / f"{name}.safetensors")


def _copy_as_bf16(source: Path, target: Path) -> None:
    weights = {name: value.to(torch.bfloat16) for name, value in load_file(source).items()}
    save_file(weights, target, {"format": "pt"})


def _forget_folders(base: Path) -> None:
    """Delete the paths that diffusers writes into its configs: a folder that exists on one machine only."""
    for file in (base / "model_index.json", *base.glob("*/config.json")):
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)
        file.write_text(json.dumps(config, indent=2) + "\n")


def _preprocessor(name: str) -> dict[str, Any]:
    kind = "BitImageProcessor" if name == "dino" else "CLIPImageProcessor"
    return {
        "image_processor_type": kind,
        "do_resize": True,
        "size": {"shortest_edge": SIZE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": SIZE, "width": SIZE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_convert_rgb": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
    }


def _write_card(out: Path, target: Path, prompts: int) -> None:
    """Write how the parts were made and what they measure."""
    # written twice: measuring the base needs the identity threshold of the judges, which is in the card
    card: dict[str, Any] = {
        "recipe": "cgrpo toybox pretrain vae | encoders | clean | mixture | pack",
        "stages": {name: json.loads((out / f"{name}.card.json").read_text()) for name in STAGES},
        "judges": measure.measure_judges(*assets.load_judges()),
    }
    file = target / "card.json"
    file.write_text(json.dumps(card, indent=2) + "\n")
    card["vae"] = measure.measure_vae(assets.load_base_pipeline().vae)
    rewards = [build_reward(_reward(name)) for name in REWARDS]
    card["rewards"] = measure.measure_rewards(rewards)
    card["leaks"] = measure.leaks(card["rewards"], **_preset_weights(rewards))
    card["clean"] = measure.measure_base(prompts, str(out / "base-clean"))
    card["base"] = measure.measure_base(prompts)
    card["decisions"] = measure.measure_decisions(max(2, prompts // BRANCHING_SHARE))
    file.write_text(json.dumps(card, indent=2) + "\n")


def _preset_weights(rewards: Sequence[Reward]) -> dict[str, dict[str, float]]:
    """Return the weights of the preset `toybox` by kind and name."""
    kinds = {reward.name: reward.kind for reward in rewards}
    weights: dict[str, dict[str, float]] = {"identity": {}, "prompt": {}}
    for reward in load_config("toybox").rewards:
        weights[kinds[reward.name]][reward.name] = reward.weight
    return weights


def _reward(name: str) -> RewardConfig:
    return RewardConfig(name=name, path="toybox", segment="none")
