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
from customized_grpo.policies.qwen_edit import QwenEditPolicy
from customized_grpo.policies.settings import PolicySettings

MakePolicy = Callable[..., QwenEditPolicy]
MakeImage = Callable[..., Tensor]
Size = tuple[int, int]

PROMPTS = ["a fox with a red hat on the left", "a robot", "a bird and a very small green cat on a red floor"]
N_TEXT = 96


with quiet():
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus

    import tiny_qwen_edit as tiny


@pytest.fixture(autouse=True)
def small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the vision-language model sees of a reference: 64x64 pixels, or 32x96, in 16 or 12 tokens."""
    monkeypatch.setattr(plus, "CONDITION_IMAGE_SIZE", 64 * 64)


@pytest.fixture
def make_policy() -> MakePolicy:
    """Build a policy over random weights, with a fresh adapter when a rank is given."""

    def make(
        *, rank: int | None = None, target: str | None = None, zero_cond_t: bool = False, **settings: Any
    ) -> QwenEditPolicy:
        with quiet():
            pipe = tiny.build_pipeline(zero_cond_t=zero_cond_t)
        defaults = {"guidance": 4.0, "max_text_tokens": N_TEXT, "precision": "fp32", "device": "cpu"}
        policy = QwenEditPolicy(pipe, PolicySettings(**{**defaults, **settings}))
        if rank is not None:
            policy.add_adapter(rank=rank, target=target, seed=7)
        return policy

    return make


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def move_adapter(policy: QwenEditPolicy) -> None:
    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise))


def theirs(pipe: Any, references: Sequence[Tensor], size: Size, **options: Any) -> Tensor:
    return tiny.run_pipeline(pipe, PROMPTS[0], references, size, generator=generators(1), **options)


@torch.no_grad()
def ode(policy: QwenEditPolicy, x: Tensor, conditioning: Conditioning, steps: int = 3) -> Tensor:
    sigmas = policy.sigmas(steps, x.shape[1])
    for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        x = x + (sigma_next - sigma) * policy.velocity(x, sigma, conditioning)
    return x


def ours(policy: QwenEditPolicy, references: Sequence[Tensor], size: Size, steps: int = 3) -> Tensor:
    encoded = policy.encode(PROMPTS[:1], [references], *size)
    return ode(policy, policy.noise(generators(1), *size), encoded, steps)


CASES: dict[str, dict[str, Any]] = {
    "square": {"size": (32, 32), "references": [(32, 32)]},
    "no guidance": {"size": (32, 32), "references": [(32, 64)], "steps": 2, "guidance": 1.0},
    "odd grid": {"size": (40, 24), "references": [(64, 32)], "steps": 4},
    "two references": {"size": (32, 64), "references": [(32, 64), (64, 32)]},
    "2511": {"size": (24, 40), "references": [(32, 64)] * 2, "guidance": 2.5, "zero_cond_t": True},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_ode_sampling_is_the_pipelines_own(
    make_policy: MakePolicy, make_image: MakeImage, case: dict[str, Any]
) -> None:
    size, steps, guidance = case["size"], case.get("steps", 3), case.get("guidance", 4.0)
    policy = make_policy(guidance=guidance, zero_cond_t=case.get("zero_cond_t", False))
    references = [make_image(seed, *shape) for seed, shape in enumerate(case["references"])]
    mine = ours(policy, references, size, steps)
    images = policy.decode(mine, *size)
    with tiny.token_types_forwarded(policy.pipe):
        options: dict[str, Any] = {"steps": steps, "guidance": guidance}
        pipes = theirs(policy.pipe, references, size, **options)
        decoded = theirs(policy.pipe, references, size, output="pt", **options)
    assert torch.allclose(mine, pipes, atol=1e-5, rtol=0)
    assert images.shape == (1, 3, *size)
    assert torch.allclose(images, decoded, atol=1e-5, rtol=0)
    assert pipes.std() > 0.5 and images.std() > 0.01  # the comparisons can fail


def test_the_stock_pipeline_still_forgets_which_tokens_are_images(
    make_policy: MakePolicy, make_image: MakeImage
) -> None:
    # once it does not, the module's docstring and `tiny.token_types_forwarded` are out of date
    policy, references = make_policy(), [make_image(0, 32, 64)]
    mine = ours(policy, references, (32, 32))
    assert (mine - theirs(policy.pipe, references, (32, 32))).abs().max() > 1e-2


@pytest.mark.parametrize("wrong", [{"mu": 1.15}, {"guidance": 3.0}, {"guidance": 1.0}])
def test_parity_breaks_with_wrong_shift_or_guidance(
    make_policy: MakePolicy, make_image: MakeImage, wrong: dict[str, Any]
) -> None:
    policy, references = make_policy(**wrong), [make_image(0)]
    with tiny.token_types_forwarded(policy.pipe):
        pipes = theirs(policy.pipe, references, (32, 32))
    assert (ours(policy, references, (32, 32)) - pipes).abs().max() > 1e-3


def test_parity_breaks_with_wrong_grids(make_policy: MakePolicy, make_image: MakeImage) -> None:
    policy, references = make_policy(), [make_image(0, 32, 64)]
    encoded = policy.encode(PROMPTS[:1], [references], 32, 32)
    grids = encoded.shared["grids"].clone()
    grids[1] = grids[1].flip(0)
    with tiny.token_types_forwarded(policy.pipe):
        pipes = theirs(policy.pipe, references, (32, 32))
    mine = ode(policy, policy.noise(generators(1), 32, 32), replace(encoded, shared={"grids": grids}))
    assert (mine - pipes).abs().max() > 1e-3


def test_sigmas_worked_out_by_hand_and_asking_for_them_leaves_no_trace(make_policy: MakePolicy) -> None:
    policy = make_policy()
    before = policy.pipe.scheduler.timesteps.clone()
    plain = torch.linspace(1, 0.25, 4, dtype=torch.float64)
    mu = torch.tensor(0.5 + (1000 - 256) / (8192 - 256) * (0.9 - 0.5), dtype=torch.float64)
    shifted = mu.exp() / (mu.exp() + 1 / plain - 1)
    stretched = 1 - (1 - shifted) * (1 - 0.02) / (1 - shifted[-1])
    sigmas = policy.sigmas(4, 1000)
    assert torch.allclose(sigmas[:-1].double(), stretched, atol=1e-6)
    assert sigmas[0] == 1 and sigmas[-1] == 0 and sigmas.dtype == torch.float32
    assert torch.equal(policy.pipe.scheduler.timesteps, before)


def test_a_shift_for_a_schedule_without_one_is_refused(make_policy: MakePolicy) -> None:
    pipe = make_policy().pipe
    pipe.scheduler.register_to_config(use_dynamic_shifting=False)
    settings = PolicySettings(guidance=1, max_text_tokens=N_TEXT, mu=0.5, precision="fp32")
    with pytest.raises(UserError, match=r"model\.mu"):
        QwenEditPolicy(pipe, settings)


@pytest.mark.parametrize("zero_cond_t", [False, True], ids=["2509", "2511"])
def test_a_batch_of_different_prompts_and_references_equals_its_samples_one_by_one(
    make_policy: MakePolicy, make_image: MakeImage, zero_cond_t: bool
) -> None:
    policy = make_policy(zero_cond_t=zero_cond_t)
    references = [[make_image(10 * row, 32, 32), make_image(10 * row + 1, 32, 48)] for row in range(3)]
    x = policy.noise(generators(1, 2, 3), 40, 24)
    sigma = torch.tensor([0.9, 0.5, 0.1])
    encoded = policy.encode(PROMPTS, references, 40, 24)
    assert len(set(encoded.per_sample["prompt_mask"].sum(dim=1).tolist())) == 3
    with torch.no_grad():
        batched = policy.velocity(x, sigma, encoded)
        for row in range(3):
            alone = policy.encode(PROMPTS[row : row + 1], references[row : row + 1], 40, 24)
            assert torch.equal(
                alone.per_sample["prompt_embeds"], encoded.per_sample["prompt_embeds"][row : row + 1]
            )
            single = policy.velocity(x[row : row + 1], float(sigma[row]), alone)
            assert torch.allclose(batched[row : row + 1], single, atol=2e-6, rtol=0)
        turned = [2, 0, 1]
        other = policy.velocity(x[turned], sigma[turned], encoded.index(turned))
    assert torch.allclose(other, batched[turned], atol=2e-6, rtol=0)
    assert batched.std() > 0.1


def test_both_references_are_seen_and_their_order(make_policy: MakePolicy, make_image: MakeImage) -> None:
    policy, first, second = make_policy(), make_image(1, 32, 32), make_image(2, 32, 32)
    x = policy.noise(generators(1), 32, 32)
    with torch.no_grad():
        results = [
            policy.velocity(x, 0.5, policy.encode(PROMPTS[:1], [images], 32, 32))
            for images in ([first, second], [second, first], [first, make_image(3, 32, 32)])
        ]
    assert (results[0] - results[1]).abs().max() > 1e-3
    assert (results[0] - results[2]).abs().max() > 1e-3


def test_what_is_padded_changes_nothing(make_policy: MakePolicy, make_image: MakeImage) -> None:
    policy, references = make_policy(), [[make_image(1, 32, 32)]]
    encoded = policy.encode(PROMPTS[:1], references, 32, 32)
    x = policy.noise(generators(1), 32, 32)
    garbled = {
        name: torch.where(encoded.per_sample[f"{text}_mask"][..., None], encoded.per_sample[name], 7.0)
        for text in ("prompt", "negative")
        if (name := f"{text}_embeds")
    }
    policy.max_text_tokens = 2 * N_TEXT
    longer = policy.encode(PROMPTS[:1], references, 32, 32)
    with torch.no_grad():
        v = policy.velocity(x, 0.5, encoded)
        other = replace(encoded, per_sample={**encoded.per_sample, **garbled})
        assert torch.equal(policy.velocity(x, 0.5, other), v)
        assert torch.allclose(policy.velocity(x, 0.5, longer), v, atol=1e-6, rtol=0)


def test_a_prompt_that_is_too_long_is_refused_with_its_length(
    make_policy: MakePolicy, make_image: MakeImage
) -> None:
    policy, references = make_policy(), [[make_image(1, 32, 32)]]
    length = int(policy.encode(PROMPTS[:1], references, 32, 32).per_sample["prompt_mask"].sum())
    policy.max_text_tokens = length  # it just fits
    assert policy.encode(PROMPTS[:1], references, 32, 32).per_sample["prompt_mask"].all()
    policy.max_text_tokens = length - 1
    with pytest.raises(UserError, match=f"has {length} tokens.*{length - 1}.*red hat"):
        policy.encode(PROMPTS[:1], references, 32, 32)


def test_the_tokens_of_a_prompt_are_counted_as_it_is_encoded(make_policy: MakePolicy) -> None:
    policy = make_policy()
    (limit,) = policy.text_limits()
    for prompt in (PROMPTS[0], "a cat"):
        text = policy.pipe.prompt_template_encode.format(prompt)
        expected = policy.pipe.processor(text=[text], return_tensors="pt").input_ids.shape[1]
        assert limit.count([prompt]) == [expected - policy.pipe.prompt_template_encode_start_idx]
    assert limit.limit == N_TEXT


def test_noise_of_a_sample_does_not_depend_on_its_batch(make_policy: MakePolicy) -> None:
    policy = make_policy()
    both = policy.noise(generators(5, 6), 32, 40)
    channels = policy.transformer.config.in_channels
    assert both.shape == (2, policy.n_tokens(32, 40), channels) and both.dtype == torch.float32
    assert torch.equal(both[1:], policy.noise(generators(6), 32, 40))


def test_guidance_keeps_the_length_of_each_tokens_velocity(
    make_policy: MakePolicy, make_image: MakeImage
) -> None:
    policy = make_policy(guidance=4.0)
    encoded = policy.encode(PROMPTS[:1], [[make_image(1)]], 32, 32)
    x = policy.noise(generators(1), 32, 32)
    with torch.no_grad():
        guided = policy.velocity(x, 0.5, encoded)
        policy.guidance = 1.0
        plain = policy.velocity(x, 0.5, encoded)
    assert torch.allclose(guided.norm(dim=-1), plain.norm(dim=-1), rtol=1e-5)
    assert (guided - plain).abs().max() > 1e-3
    assert "negative_embeds" not in policy.encode(PROMPTS[:1], [[make_image(1)]], 32, 32).per_sample


# Adapter


def test_the_adapter_off_is_the_base_bit_for_bit(make_policy: MakePolicy, make_image: MakeImage) -> None:
    policy = make_policy()
    encoded = policy.encode(PROMPTS[:1], [[make_image(1)]], 32, 32)
    x = policy.noise(generators(1), 32, 32)
    with torch.no_grad():
        base = policy.velocity(x, 0.5, encoded)
        policy.add_adapter(rank=4, seed=7)
        assert torch.equal(policy.velocity(x, 0.5, encoded), base)
        move_adapter(policy)
        assert (policy.velocity(x, 0.5, encoded) - base).abs().max() > 1e-3
        with policy.reference():
            assert torch.equal(policy.velocity(x, 0.5, encoded), base)
    with policy.reference(), pytest.raises(RuntimeError, match="no_grad"):
        policy.velocity(x, 0.5, encoded)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_reach_the_whole_adapter_and_checkpointing_changes_no_bit(
    make_policy: MakePolicy, make_image: MakeImage, precision: str
) -> None:
    policy = make_policy(rank=4, precision=precision)
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
    assert policy.transformer.gradient_checkpointing
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_adapter_is_on_attention_alone_and_where_it_matters(make_policy: MakePolicy) -> None:
    names = {name.rsplit(".", 2)[0] for name in make_policy(rank=2).adapter_tensors()}
    layers = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
    every = {f"transformer_blocks.{block}.attn.{layer}" for block in (0, 1) for layer in layers}
    text_only = {f"transformer_blocks.1.attn.{layer}" for layer in ("add_q_proj", "to_add_out")}
    assert names == every - text_only
    chosen = make_policy(rank=2, target=QwenEditPolicy.LORA_TARGET).adapter_tensors()
    assert {name.rsplit(".", 2)[0] for name in chosen} == every


def test_a_saved_adapter_makes_the_same_image_in_the_pipeline(
    make_policy: MakePolicy, make_image: MakeImage, tmp_path: Path
) -> None:
    policy, references = make_policy(rank=4), [make_image(0)]
    fresh = ours(policy, references, (32, 32))
    move_adapter(policy)
    mine = ours(policy, references, (32, 32))
    policy.save_lora(tmp_path)
    with quiet():
        pipe = tiny.build_pipeline()
        pipe.load_lora_weights(tmp_path)
    with tiny.token_types_forwarded(pipe):
        assert torch.allclose(mine, theirs(pipe, references, (32, 32)), atol=1e-5, rtol=0)
    assert (mine - fresh).abs().max() > 1e-2
    other = make_policy(rank=4)
    other.load_lora(tmp_path)
    assert torch.equal(ours(other, references, (32, 32)), mine)


def test_only_the_adapter_is_trained(make_policy: MakePolicy) -> None:
    policy = make_policy(rank=4)
    parts = (policy.transformer, policy.pipe.vae, policy.pipe.text_encoder)
    trained = {id(p) for module in parts for p in module.parameters() if p.requires_grad}
    assert trained == {id(p) for p in policy.trainable_parameters()}
    assert not any(module.training for part in parts for module in part.modules())
    assert "to" not in vars(policy.pipe.vae)


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
    assert rollout.isfinite().all()
    assert torch.equal(rollout, training)


def test_bf16_is_close_to_fp32_and_not_equal(make_policy: MakePolicy, make_image: MakeImage) -> None:
    results = []
    for precision in ("fp32", "bf16"):
        policy = make_policy(precision=precision)
        encoded = policy.encode(PROMPTS[:1], [[make_image(1)]], 32, 32)
        x = policy.noise(generators(1), 32, 32)
        with torch.no_grad():
            results.append((policy.velocity(x, 0.7, encoded), policy.decode(x, 32, 32)))
    (v, image), (v_half, image_half) = results
    assert 0 < (v - v_half).norm() / v.norm() < 0.1
    assert 0 < (image - image_half).abs().max() < 0.1


def test_weights_held_in_bf16_give_fp32_velocities(make_policy: MakePolicy, make_image: MakeImage) -> None:
    policy = make_policy(rank=4, precision="bf16")
    policy.transformer.to(torch.bfloat16)
    policy.pipe.text_encoder.to(torch.bfloat16)
    encoded = policy.encode(PROMPTS[:1], [[make_image(1)]], 32, 32)
    v = policy.velocity(policy.noise(generators(1), 32, 32), 0.7, encoded)
    assert v.dtype == torch.float32 and v.isfinite().all()


def test_encoding_and_decoding_record_no_gradients(make_policy: MakePolicy, make_image: MakeImage) -> None:
    policy = make_policy(rank=4)
    encoded = policy.encode(PROMPTS[:2], [[make_image(1)], [make_image(2)]], 32, 40)
    images = policy.decode(policy.noise(generators(1, 2), 32, 40).requires_grad_(), 32, 40)
    assert not any(tensor.requires_grad for tensor in encoded.per_sample.values())
    assert not images.requires_grad and images.dtype == torch.float32
    assert images.shape == (2, 3, 32, 40) and images.min() >= 0 and images.max() <= 1


# Loading


def test_a_checkpoint_with_a_processor_for_videos_is_loaded_without_torchvision(
    make_policy: MakePolicy, make_image: MakeImage, tmp_path: Path
) -> None:
    policy, references = make_policy(), [make_image(0)]
    folder = tiny.save_pipeline(policy.pipe, tmp_path / "checkpoint")
    with quiet():
        pipe = type(policy.pipe).from_pretrained(
            folder, processor=load_processor(str(folder), "Qwen2VLProcessor")
        )
    pipe.set_progress_bar_config(disable=True)
    loaded = QwenEditPolicy(pipe, PolicySettings(guidance=4.0, max_text_tokens=N_TEXT, precision="fp32"))
    mine, again = (ours(one, references, (32, 32)) for one in (policy, loaded))
    assert torch.allclose(mine, again, atol=1e-5, rtol=0)


# Buckets


@pytest.mark.parametrize(
    "references",
    [
        [[torch.rand(3, 32, 32)], [torch.rand(3, 32, 64)]],
        [[torch.rand(3, 32, 32)], [torch.rand(3, 32, 32)] * 2],
        [[], []],
        [[torch.rand(3, 32, 32)] for _ in range(3)],
    ],
    ids=["sizes", "numbers", "none", "one too many"],
)
def test_mixed_buckets_are_refused(make_policy: MakePolicy, references: list[list[Tensor]]) -> None:
    with pytest.raises(ValueError, match="references"):
        make_policy().encode(PROMPTS[:2], references, 32, 32)


def test_a_size_that_has_no_whole_tokens_is_refused(make_policy: MakePolicy, make_image: MakeImage) -> None:
    policy = make_policy()
    with pytest.raises(UserError, match="multiples of 8"):
        policy.noise(generators(1), 32, 36)
    with pytest.raises(UserError, match="multiples of 8"):
        policy.encode(PROMPTS[:1], [[make_image(1, 32, 36)]], 32, 32)


def test_velocity_refuses_conditioning_of_another_bucket_and_rounded_latents(
    make_policy: MakePolicy, make_image: MakeImage
) -> None:
    policy = make_policy()
    encoded = policy.encode(PROMPTS[:1], [[make_image(1, 32, 32)]], 32, 32)
    x = policy.noise(generators(1), 32, 32)
    with pytest.raises(AssertionError, match="image tokens"):
        policy.velocity(policy.noise(generators(1), 32, 40), 0.5, encoded)
    with pytest.raises(AssertionError, match="rounding"):
        policy.velocity(x.bfloat16(), 0.5, encoded)
    with pytest.raises(AssertionError, match="samples"):
        policy.velocity(policy.noise(generators(1, 2), 32, 32), 0.5, encoded)
    for grids in ([[2, 8], [4, 4]], [[4, 4], [4, 8]]):
        with pytest.raises(AssertionError, match="grid"):
            policy.velocity(x, 0.5, replace(encoded, shared={"grids": torch.tensor(grids)}))
    wide = policy.encode(PROMPTS[:1], [[make_image(1, 32, 40)]], 32, 32)
    with pytest.raises(ValueError, match="grids"):
        Conditioning.cat([encoded, wide])
