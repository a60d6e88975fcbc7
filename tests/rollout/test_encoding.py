"""Prompts and references are encoded once, and to the same bits with a cache, without one, and in company."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from customized_grpo.config import Config
from customized_grpo.data.examples import Example
from customized_grpo.errors import UserError
from customized_grpo.policies.conditioning import Conditioning
from customized_grpo.policies.conditioning_cache import ConditioningCache, encoders_hash
from customized_grpo.policies.flux1 import Flux1Policy
from customized_grpo.policies.offload import Offload, Placement
from customized_grpo.rollout import ode
from customized_grpo.rollout.encoding import PromptEncoder

Recipe = Callable[..., Config]


@pytest.fixture(scope="module")
def policy(recipe: Recipe, make_adapted: Callable[[Config], Flux1Policy]) -> Flux1Policy:
    return make_adapted(recipe())


@pytest.fixture
def encoded(policy: Flux1Policy, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that the model's encoders were asked for."""
    prompts: list[str] = []
    encode = policy.encode

    def spy(asked: Sequence[str], *arguments: Any) -> Conditioning:
        prompts.extend(asked)
        return encode(asked, *arguments)

    monkeypatch.setattr(policy, "encode", spy)
    return prompts


def assert_same(first: Conditioning, second: Conditioning) -> None:
    for ours, theirs in ((first.per_sample, second.per_sample), (first.shared, second.shared)):
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert tensor.dtype == theirs[name].dtype, name
            assert torch.equal(tensor, theirs[name]), name
    assert (first.height, first.width) == (second.height, second.width)


def test_what_was_encoded_once_is_read_back_bit_for_bit(
    policy: Flux1Policy, recipe: Recipe, examples: list[Example], tmp_path: Path, encoded: list[str]
) -> None:
    config = recipe(f"model.cache={tmp_path / 'cache'}")
    plain = PromptEncoder(policy, (64, 64))(examples)
    encoded.clear()
    for expected in ([e.prompt for e in examples], []):
        cached = PromptEncoder.from_config(config.model, policy)(examples)
        assert encoded == expected
        for ours, theirs in zip(cached, plain, strict=True):
            assert_same(ours, theirs)
        encoded.clear()
    assert not list((tmp_path / "cache").rglob("*.draft"))


def test_another_prompt_or_another_pixel_is_encoded_anew(
    policy: Flux1Policy, examples: list[Example], tmp_path: Path, encoded: list[str]
) -> None:
    encoder = PromptEncoder(policy, (64, 64), ConditioningCache(tmp_path, "a" * 64))
    example = examples[0]
    pixel = example.references[0].clone()
    pixel[0, 0, 0] = 1 - pixel[0, 0, 0]
    others = [
        dataclasses.replace(example, prompt=example.prompt + "!"),
        dataclasses.replace(example, references=(pixel,)),
        dataclasses.replace(example, references=(*example.references, *example.references)),
    ]
    encoder([example, *others, *others])
    assert len(encoded) == 4
    encoder([dataclasses.replace(example, id="renamed", subject="another")])
    assert len(encoded) == 4, "what is not encoded must not matter"


def test_an_example_is_encoded_alone(
    policy: Flux1Policy, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    encode = policy.encode

    def spy(prompts: Sequence[str], *arguments: Any) -> Conditioning:
        sizes.append(len(prompts))
        return encode(prompts, *arguments)

    monkeypatch.setattr(policy, "encode", spy)
    PromptEncoder(policy, (64, 64))(examples)
    assert sizes == [1, 1], "what an example is encoded to must not depend on its company"


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        (["model.max_text_tokens=16"], False),
        (["model.precision=bf16"], False),
        (["model.reference_ids=uno"], False),
        (["model.height=128"], False),
        (["model.lora.rank=4", "model.mu=1.0", "model.gradient_checkpointing=true"], True),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_settings_that_change_an_encoding_change_the_hash(
    policy: Flux1Policy, recipe: Recipe, settings: list[str], same: bool
) -> None:
    ours, theirs = (encoders_hash(policy, recipe(*more).model) for more in ([], settings))
    assert (ours == theirs) is same


@pytest.mark.parametrize("library", ["diffusers", "transformers"])
def test_another_version_of_what_encodes_changes_the_hash(
    policy: Flux1Policy, recipe: Recipe, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = recipe().model
    before = encoders_hash(policy, model)
    assert encoders_hash(policy, model) == before
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "999" if name == library else version(name)
    )
    assert encoders_hash(policy, model) != before


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "vae"])
def test_other_weights_change_the_hash(policy: Flux1Policy, recipe: Recipe, part: str) -> None:
    model = recipe().model
    before = encoders_hash(policy, model)
    weight = next(getattr(policy.pipe, part).parameters())
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1e-3)
        assert encoders_hash(policy, model) != before
        weight.copy_(kept)
    assert encoders_hash(policy, model) == before


def test_a_damaged_file_is_encoded_again(
    policy: Flux1Policy, examples: list[Example], tmp_path: Path, encoded: list[str]
) -> None:
    encoder = PromptEncoder(policy, (64, 64), ConditioningCache(tmp_path, "a" * 64))
    (first,) = encoder(examples[:1])
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    (second,) = encoder(examples[:1])
    assert len(encoded) == 2
    assert_same(first, second)
    encoder(examples[:1])
    assert len(encoded) == 2, "the file was not mended"


def test_filling_the_cache_encodes_what_is_missing_and_can_be_stopped(
    policy: Flux1Policy, examples: list[Example], tmp_path: Path, encoded: list[str]
) -> None:
    encoder = PromptEncoder(policy, (64, 64), ConditioningCache(tmp_path, "a" * 64))
    encoder(examples[:1])
    encoder.fill_cache(examples)
    assert encoded == [e.prompt for e in examples]

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encoder.fill_cache(examples, before_example=stop)


def test_examples_that_are_encoded_together_call_the_encoders_to_the_device_once(
    policy: Flux1Policy, examples: list[Example], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    journeys: list[str] = []
    monkeypatch.setattr(policy, "placement", Placement(policy.pipe, policy.device, Offload("offload")))
    encoder = policy.pipe.text_encoder
    move = encoder.to

    def to(device: torch.device) -> Any:
        journeys.append(str(device))
        return move(device)

    monkeypatch.setattr(encoder, "to", to)
    encoder = PromptEncoder(policy, (64, 64), ConditioningCache(tmp_path, "a" * 64))
    encoder(examples)
    assert journeys == ["cpu", "cpu"], "there and back, for all of them"
    encoder(examples)
    encoder.fill_cache(examples[:1])
    assert len(journeys) == 4, "what is kept needs no encoder"


def test_a_folder_that_cannot_be_made_or_written_is_named(
    policy: Flux1Policy, examples: list[Example], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file.* cannot be written"):
        ConditioningCache(tmp_path / "file", "a" * 64)
    cache = ConditioningCache(tmp_path / "cache", "a" * 64)
    cache.folder.rmdir()
    with pytest.raises(UserError, match=r"model\.cache: cannot write .* bytes"):
        PromptEncoder(policy, (64, 64), cache)(examples)


@pytest.mark.parametrize("waiting", [False, True], ids=["encoders stay", "encoders wait"])
def test_encoders_that_wait_come_once_for_all_batches_of_an_evaluation(
    policy: Flux1Policy, examples: list[Example], monkeypatch: pytest.MonkeyPatch, waiting: bool
) -> None:
    placement = Placement(policy.pipe, torch.device("cpu"), Offload("offload" if waiting else "keep"))
    monkeypatch.setattr(policy, "placement", placement)
    calls: list[int] = []
    later: list[int] = []

    class Counting(PromptEncoder):
        def __call__(self, asked: Sequence[Example]) -> list[Conditioning]:  # type: ignore[override]
            calls.append(len(asked))
            return super().__call__(asked)

        def ahead(self, asked: Sequence[Example]) -> list[Conditioning]:
            later.append(len(asked))
            return super().ahead(asked)

    def draw(ahead: int) -> torch.Tensor:
        calls.clear()
        monkeypatch.setattr(ode, "AHEAD", ahead)
        rows = [*examples, examples[0], examples[1], examples[0]]
        batches = ode.sample_examples(
            policy,
            Counting(policy, (64, 64)),
            [dataclasses.replace(row, id=str(number)) for number, row in enumerate(rows)],
            torch.tensor([1.0, 0.0]),
            samples_per_prompt=2,
            batch_size=3,
            seed=0,
            purpose="test",
        )
        return torch.cat([images for _, images in batches])

    images = draw(ahead=256)
    assert calls == ([5] if waiting else [2, 2, 2])
    assert later == ([5] if waiting else [])
    assert torch.equal(draw(ahead=1), images)
