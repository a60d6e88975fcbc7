from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from customized_grpo.errors import UserError
from customized_grpo.libraries import quiet
from customized_grpo.policies.conditioning import Conditioning
from customized_grpo.policies.qwen import load_processor
from customized_grpo.policies.qwen_image21 import QwenImage21Policy
from customized_grpo.policies.settings import PolicySettings

MakePolicy = Callable[..., QwenImage21Policy]
MakeImage = Callable[..., Tensor]
Size = tuple[int, int]

PROMPTS = ["a fox with a red hat on the left", "a robot", "a bird and a very small green cat on a red floor"]
N_TEXT = 64

with quiet():
    import tiny_qwen_image21 as tiny


@pytest.fixture
def make_policy() -> MakePolicy:
    """Build a policy over random weights, with a fresh adapter when a rank is given."""

    def make(
        *, rank: int | None = None, sample_sigmas: list[float] | None = None, **settings: Any
    ) -> QwenImage21Policy:
        with quiet():
            pipe = tiny.build_pipeline(sample_sigmas=sample_sigmas)
        defaults = {"guidance": 1.0, "max_text_tokens": N_TEXT, "precision": "fp32", "device": "cpu"}
        policy = QwenImage21Policy(pipe, PolicySettings(**{**defaults, **settings}))
        if rank is not None:
            policy.add_adapter(rank=rank, seed=7)
        return policy

    return make


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def move_adapter(policy: QwenImage21Policy) -> None:
    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise))


def theirs(pipe: Any, references: Sequence[Tensor], size: Size, **options: Any) -> Tensor:
    return tiny.run_pipeline(pipe, PROMPTS[0], references, size, generator=generators(1), **options)


@torch.no_grad()
def ode(policy: QwenImage21Policy, x: Tensor, conditioning: Conditioning, steps: int = 3) -> Tensor:
    sigmas = policy.sigmas(steps, x.shape[1])
    for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        x = x + (sigma_next - sigma) * policy.velocity(x, sigma, conditioning)
    return x


def ours(policy: QwenImage21Policy, references: Sequence[Tensor], size: Size, steps: int = 3) -> Tensor:
    encoded = policy.encode(PROMPTS[:1], [references], *size)
    return ode(policy, policy.noise(generators(1), *size), encoded, steps)


CASES: dict[str, dict[str, Any]] = {
    "square": {"size": (64, 64), "references": [(64, 64)]},
    "guidance": {"size": (64, 64), "references": [(32, 128)], "steps": 2, "guidance": 3.0},
    "other sizes": {"size": (96, 32), "references": [(64, 32)], "steps": 4},
    "two references": {"size": (32, 64), "references": [(32, 64), (64, 32)]},
    "three, guidance": {"size": (32, 64), "references": [(32, 64), (64, 32), (32, 64)], "guidance": 2.0},
    "no reference": {"size": (64, 96), "references": []},
    "no reference, guidance": {"size": (64, 64), "references": [], "guidance": 2.0},
    "its own levels": {"size": (64, 64), "references": [(64, 64)], "sample_sigmas": [1.0, 0.9, 0.3]},
}


@pytest.mark.parametrize("use_kv_cache", [False, True])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_ode_sampling_is_the_pipelines_own(
    make_policy: MakePolicy, make_image: MakeImage, case: dict[str, Any], use_kv_cache: bool
) -> None:
    size, steps, guidance = case["size"], case.get("steps", 3), case.get("guidance", 1.0)
    policy = make_policy(guidance=guidance, sample_sigmas=case.get("sample_sigmas"))
    references = [make_image(seed, *shape) for seed, shape in enumerate(case["references"])]
    mine = ours(policy, references, size, steps)
    options: dict[str, Any] = {"steps": steps, "guidance": guidance, "use_kv_cache": use_kv_cache}
    pipes = theirs(policy.pipe, references, size, **options)
    assert torch.allclose(mine, pipes, atol=1e-5, rtol=0)
    assert pipes.std() > 0.5  # the comparison can fail


def test_an_image_is_the_pipelines_over_white(make_policy: MakePolicy, make_image: MakeImage) -> None:
    policy, references = make_policy(), [make_image(0)]
    images = policy.decode(ours(policy, references, (64, 96)), 64, 96)
    decoded = theirs(policy.pipe, references, (64, 96), output="pt")
    assert images.shape == (1, 3, 64, 96)
    assert (decoded[:, 3] < 0.9).any()  # or white would make no difference
    assert torch.allclose(images, tiny.over_white(decoded), atol=1e-5, rtol=0)
    assert images.std() > 0.01


@pytest.mark.parametrize("wrong", [{"mu": 1.15}, {"guidance": 2.0}])
def test_parity_breaks_with_wrong_shift_or_guidance(
    make_policy: MakePolicy, make_image: MakeImage, wrong: dict[str, Any]
) -> None:
    policy, references = make_policy(**wrong), [make_image(0)]
    pipes = theirs(policy.pipe, references, (64, 64))
    assert (ours(policy, references, (64, 64)) - pipes).abs().max() > 1e-3


def test_parity_breaks_with_wrong_grids(make_policy: MakePolicy, make_image: MakeImage) -> None:
    policy, references = make_policy(), [make_image(0, 32, 64)]
    encoded = policy.encode(PROMPTS[:1], [references], 64, 64)
    grids = encoded.shared["grids"].clone()
    grids[1] = grids[1].flip(0)
    shared = {**encoded.shared, "grids": grids}
    noise = policy.noise(generators(1), 64, 64)
    difference = ode(policy, noise, encoded) - ode(policy, noise, replace(encoded, shared=shared))
    assert difference.abs().max() > 1e-3


def test_its_own_levels_are_taken_only_for_as_many_steps(make_policy: MakePolicy) -> None:
    own = make_policy(sample_sigmas=[1.0, 0.9, 0.3])
    plain = make_policy()
    assert not torch.equal(own.sigmas(3, 16), plain.sigmas(3, 16))
    assert torch.equal(own.sigmas(4, 16), plain.sigmas(4, 16))


def test_sigmas_worked_out_by_hand(make_policy: MakePolicy) -> None:
    policy = make_policy()
    plain = torch.linspace(1, 0.25, 4, dtype=torch.float64)
    mu = torch.tensor(0.5 + (1000 - 256) / (8192 - 256) * (0.9 - 0.5), dtype=torch.float64)
    shifted = mu.exp() / (mu.exp() + 1 / plain - 1)
    stretched = 1 - (1 - shifted) * (1 - 0.02) / (1 - shifted[-1])
    sigmas = policy.sigmas(4, 1000)
    assert torch.allclose(sigmas[:-1].double(), stretched, atol=1e-6)
    assert sigmas[0] == 1 and sigmas[-1] == 0 and sigmas.dtype == torch.float32


# Batches


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_batch_of_texts_of_several_lengths_equals_its_samples_one_by_one(
    make_policy: MakePolicy, make_image: MakeImage, guidance: float
) -> None:
    policy = make_policy(guidance=guidance)
    references = [[make_image(10 * row, 32, 32), make_image(10 * row + 1, 32, 64)] for row in range(3)]
    x = policy.noise(generators(1, 2, 3), 64, 32)
    sigma = torch.tensor([0.9, 0.5, 0.1])
    encoded = policy.encode(PROMPTS, references, 64, 32)
    assert len(set(encoded.per_sample["prompt_length"].tolist())) == 3
    with torch.no_grad():
        batched = policy.velocity(x, sigma, encoded)
        for row in range(3):
            alone = policy.encode(PROMPTS[row : row + 1], references[row : row + 1], 64, 32)
            single = policy.velocity(x[row : row + 1], float(sigma[row]), alone)
            assert torch.allclose(batched[row : row + 1], single, atol=2e-6, rtol=0)
        turned = [2, 0, 1]
        other = policy.velocity(x[turned], sigma[turned], encoded.index(turned))
    assert torch.allclose(other, batched[turned], atol=2e-6, rtol=0)
    assert batched.std() > 0.1


def test_what_is_padded_changes_nothing(make_policy: MakePolicy, make_image: MakeImage) -> None:
    policy, references = make_policy(), [[make_image(1, 32, 32)]]
    encoded = policy.encode(PROMPTS[:1], references, 32, 32)
    x = policy.noise(generators(1), 32, 32)
    garbled = encoded.per_sample["prompt_embeds"].clone()
    garbled[:, int(encoded.per_sample["prompt_length"]) :] = 7.0
    policy.max_text_tokens = 2 * N_TEXT
    longer = policy.encode(PROMPTS[:1], references, 32, 32)
    with torch.no_grad():
        v = policy.velocity(x, 0.5, encoded)
        other = replace(encoded, per_sample={**encoded.per_sample, "prompt_embeds": garbled})
        assert torch.equal(policy.velocity(x, 0.5, other), v)
        assert torch.equal(policy.velocity(x, 0.5, longer), v)


def test_padding_would_change_the_velocity(make_policy: MakePolicy, make_image: MakeImage) -> None:
    # why each length has a call of its own; once this fails, one call for all would do
    policy = make_policy()
    encoded = policy.encode(PROMPTS[:1], [[make_image(1, 32, 32)]], 32, 32)
    x = policy.noise(generators(1), 32, 32)
    length = encoded.per_sample["prompt_length"] + 3
    padded = replace(encoded, per_sample={**encoded.per_sample, "prompt_length": length})
    with torch.no_grad():
        difference = policy.velocity(x, 0.5, padded) - policy.velocity(x, 0.5, encoded)
    assert difference.abs().max() > 1e-4


def test_both_references_are_seen_and_their_order(make_policy: MakePolicy, make_image: MakeImage) -> None:
    policy, first, second = make_policy(), make_image(1, 32, 32), make_image(2, 32, 32)
    x = policy.noise(generators(1), 32, 32)
    results = []
    with torch.no_grad():
        for images in ([first, second], [second, first], [first, make_image(3, 32, 32)]):
            results.append(policy.velocity(x, 0.5, policy.encode(PROMPTS[:1], [images], 32, 32)))
    assert (results[0] - results[1]).abs().max() > 2e-4  # rounding is below 1e-6
    assert (results[0] - results[2]).abs().max() > 2e-4


# Limits


def test_a_prompt_that_is_too_long_is_refused_with_its_length(
    make_policy: MakePolicy, make_image: MakeImage
) -> None:
    policy, references = make_policy(), [[make_image(1, 32, 32)]]
    length = int(policy.encode(PROMPTS[:1], references, 32, 32).per_sample["prompt_length"])
    policy.max_text_tokens = length  # it just fits
    policy.encode(PROMPTS[:1], references, 32, 32)
    policy.max_text_tokens = length - 1
    with pytest.raises(UserError, match=f"has {length} tokens.*{length - 1}.*red hat"):
        policy.encode(PROMPTS[:1], references, 32, 32)


def test_the_tokens_of_a_prompt_are_counted_as_it_is_encoded(make_policy: MakePolicy) -> None:
    policy = make_policy()
    (limit,) = policy.text_limits()
    for prompt in PROMPTS:
        embeds, _, _ = policy.pipe.encode_prompt(prompt=prompt, device=torch.device("cpu"))
        assert limit.count([prompt]) == [embeds.shape[1]]
    assert limit.limit == N_TEXT


def test_a_size_that_has_no_whole_slots_is_refused(make_policy: MakePolicy, make_image: MakeImage) -> None:
    policy = make_policy()
    with pytest.raises(UserError, match="multiples of 32"):
        policy.noise(generators(1), 64, 48)
    with pytest.raises(UserError, match="multiples of 32"):
        policy.encode(PROMPTS[:1], [[make_image(1, 32, 48)]], 32, 32)


def test_references_that_the_processor_resizes_are_refused(
    make_policy: MakePolicy, make_image: MakeImage
) -> None:
    policy = make_policy()
    with pytest.raises(UserError, match="have 80 image slots, but the text encoder makes"):
        policy.encode(PROMPTS[:1], [[make_image(1, 320, 256)]], 32, 32)


def test_velocity_refuses_conditioning_of_another_bucket(
    make_policy: MakePolicy, make_image: MakeImage
) -> None:
    policy = make_policy()
    encoded = policy.encode(PROMPTS[:1], [[make_image(1, 32, 32)]], 32, 32)
    x = policy.noise(generators(1), 32, 32)
    with pytest.raises(AssertionError, match="image tokens"):
        policy.velocity(policy.noise(generators(1), 32, 64), 0.5, encoded)
    for grids in ([[2, 4], [2, 2]], [[2, 2], [2, 4]]):
        with pytest.raises(AssertionError, match="grid"):
            shared = {**encoded.shared, "grids": torch.tensor(grids)}
            policy.velocity(x, 0.5, replace(encoded, shared=shared))
    wide = policy.encode(PROMPTS[:1], [[make_image(1, 32, 64)]], 32, 32)
    with pytest.raises(ValueError, match="grids"):
        Conditioning.cat([encoded, wide])


# Adapter


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_reach_the_whole_adapter_and_checkpointing_changes_no_bit(
    make_policy: MakePolicy, make_image: MakeImage, precision: str
) -> None:
    policy = make_policy(rank=4, precision=precision, guidance=2.0)
    move_adapter(policy)
    encoded = policy.encode(PROMPTS[:2], [[make_image(1)], [make_image(2)]], 32, 32)
    x = policy.noise(generators(1, 2), 32, 32)
    results = []
    for enabled in (False, True):
        policy.set_gradient_checkpointing(enabled)
        v = policy.velocity(x, 0.5, encoded)
        grads = torch.autograd.grad(v.square().mean() + v.mean(), policy.trainable_parameters())
        assert all(grad.isfinite().all() and grad.abs().max() > 0 for grad in grads)
        results.append([v.detach(), *grads])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_adapter_is_on_attention_alone(make_policy: MakePolicy) -> None:
    names = {name.rsplit(".", 2)[0] for name in make_policy(rank=2).adapter_tensors()}
    layers = ["to_q", "to_k", "to_v", "to_out.0"]
    assert names == {f"transformer_blocks.{block}.attn.{layer}" for block in (0, 1) for layer in layers}


def test_a_saved_adapter_makes_the_same_image_in_the_pipeline(
    make_policy: MakePolicy, make_image: MakeImage, tmp_path: Path
) -> None:
    policy, references = make_policy(rank=4), [make_image(0)]
    fresh = ours(policy, references, (64, 64))
    move_adapter(policy)
    mine = ours(policy, references, (64, 64))
    policy.save_lora(tmp_path)
    with quiet():
        pipe = tiny.build_pipeline()
        pipe.load_lora_weights(tmp_path)
    assert torch.allclose(mine, theirs(pipe, references, (64, 64)), atol=1e-5, rtol=0)
    assert (mine - fresh).abs().max() > 1e-3  # of 2.5; the comparison can fail


# Numerics


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_both_phases_see_the_same_bits(
    make_policy: MakePolicy, make_image: MakeImage, precision: str
) -> None:
    policy = make_policy(rank=4, precision=precision)
    move_adapter(policy)
    encoded = policy.encode(PROMPTS[:2], [[make_image(1)], [make_image(2)]], 32, 32)
    x = policy.noise(generators(1, 2), 32, 32)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):  # the caller's changes nothing
        rollout = policy.velocity(x, 0.7, encoded)
    training = policy.velocity(x, torch.tensor(0.7), encoded)
    assert training.requires_grad and rollout.dtype == training.dtype == torch.float32
    assert torch.equal(rollout, training)


def test_weights_held_in_bf16_give_fp32_velocities_close_to_those_of_fp32(
    make_policy: MakePolicy, make_image: MakeImage
) -> None:
    results = []
    for precision in ("fp32", "bf16"):
        policy = make_policy(rank=4, precision=precision)
        if precision == "bf16":
            policy.transformer.to(torch.bfloat16)
            policy.pipe.text_encoder.to(torch.bfloat16)
        encoded = policy.encode(PROMPTS[:1], [[make_image(1)]], 32, 32)
        v = policy.velocity(policy.noise(generators(1), 32, 32), 0.7, encoded)
        assert v.dtype == torch.float32
        results.append(v)
    assert 0 < (results[0] - results[1]).norm() / results[0].norm() < 0.1


# Loading


def test_a_checkpoint_with_a_processor_for_videos_is_loaded_without_torchvision(
    make_policy: MakePolicy, make_image: MakeImage, tmp_path: Path
) -> None:
    policy, references = make_policy(), [make_image(0)]
    folder = tiny.save_pipeline(policy.pipe, tmp_path / "checkpoint")
    with quiet():
        pipe = type(policy.pipe).from_pretrained(
            folder, processor=load_processor(str(folder), "Qwen3VLProcessor")
        )
    pipe.set_progress_bar_config(disable=True)
    loaded = QwenImage21Policy(pipe, PolicySettings(guidance=1.0, max_text_tokens=N_TEXT, precision="fp32"))
    mine, again = (ours(one, references, (64, 64)) for one in (policy, loaded))
    assert torch.allclose(mine, again, atol=1e-5, rtol=0)
