from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from customized_grpo.errors import UserError
from customized_grpo.policies.conditioning import Conditioning
from customized_grpo.policies.flux1 import Flux1Policy, token_ids
from customized_grpo.policies.options import Flux1Options
from customized_grpo.policies.settings import PolicySettings
from customized_grpo.policies.tokens import pack, unpack

MakePolicy = Callable[..., Flux1Policy]
MakeImage = Callable[..., Tensor]

PROMPTS = ["a fox with a red hat on the left", "a robot on a green floor"]
STEPS = 3


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def as_pil(image: Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())


@torch.no_grad()
def ode(policy: Flux1Policy, x: Tensor, conditioning: Conditioning) -> Tensor:
    sigmas = policy.sigmas(STEPS, x.shape[1])
    for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        x = x + (sigma_next - sigma) * policy.velocity(x, sigma, conditioning)
    return x


def ours(policy: Flux1Policy, references: list[Tensor], height: int, width: int) -> Tensor:
    encoded = policy.encode(PROMPTS, [[image] for image in references], height, width)
    return ode(policy, policy.noise(generators(1, 2), height, width), encoded)


def theirs(
    policy: Flux1Policy, references: list[Tensor], height: int, width: int, output: str = "latent"
) -> Tensor:
    return policy.pipe(
        image=[as_pil(image) for image in references] or None,
        prompt=PROMPTS,
        height=height,
        width=width,
        max_area=height * width,
        _auto_resize=False,
        max_sequence_length=policy.max_text_tokens,
        num_inference_steps=STEPS,
        guidance_scale=policy.guidance,
        generator=generators(1, 2),
        output_type=output,
    ).images


SIZES = {
    "square": ((64, 64), (64, 64)),
    "wide": ((64, 96), (64, 96)),
    "tall": ((96, 64), (96, 64)),
    "odd reference": ((64, 96), (80, 48)),
}


@pytest.mark.parametrize("kl_vae", [False, True], ids=["AutoencoderTiny", "AutoencoderKL"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_ode_sampling_is_the_pipelines_own(
    make_policy: MakePolicy, make_image: MakeImage, sizes: Any, kl_vae: bool
) -> None:
    (height, width), reference_size = sizes
    policy = make_policy(kl_vae=kl_vae)
    policy.pipe.vae.register_to_config(scaling_factor=0.36, shift_factor=0.12)  # as FLUX.1 has them
    references = [make_image(seed, *reference_size) for seed in (3, 4)]
    mine, pipes = ours(policy, references, height, width), theirs(policy, references, height, width)
    assert torch.allclose(mine, pipes, atol=1e-5, rtol=0)
    images = policy.decode(mine, height, width)
    assert images.shape == (2, 3, height, width)
    assert torch.allclose(images, theirs(policy, references, height, width, "pt"), atol=1e-5, rtol=0)
    assert pipes.std() > 0.5 and images.std() > 0.01  # the comparisons can fail


def test_a_prompt_alone_is_drawn_as_by_the_pipeline(make_policy: MakePolicy) -> None:
    policy = make_policy()
    encoded = policy.encode(PROMPTS, [[], []], 64, 96)
    mine = ode(policy, policy.noise(generators(1, 2), 64, 96), encoded)
    assert torch.allclose(mine, theirs(policy, [], 64, 96), atol=1e-5, rtol=0)
    assert mine.std() > 0.5


@pytest.mark.parametrize("wrong", [{"reference_ids": "uno"}, {"mu": 0.5}, {"guidance": 4.0}])
def test_parity_breaks_with_wrong_ids_shift_or_guidance(
    make_policy: MakePolicy, make_image: MakeImage, wrong: dict[str, Any]
) -> None:
    references = [make_image(3), make_image(4)]
    pipes = theirs(make_policy(), references, 64, 64)
    assert (ours(make_policy(**wrong), references, 64, 64) - pipes).abs().max() > 1e-4


def test_swapping_the_axes_of_the_ids_breaks_parity(make_policy: MakePolicy, make_image: MakeImage) -> None:
    policy, references = make_policy(), [make_image(3, 64, 96), make_image(4, 64, 96)]
    encoded = policy.encode(PROMPTS, [[image] for image in references], 64, 96)
    ids = encoded.shared["image_ids"][:, [0, 2, 1]]
    swapped = Conditioning(encoded.per_sample, {**encoded.shared, "image_ids": ids}, 64, 96)
    mine = ode(policy, policy.noise(generators(1, 2), 64, 96), swapped)
    assert (mine - theirs(policy, references, 64, 96)).abs().max() > 1e-4


def test_an_explicit_shift_moves_sigmas_as_its_formula_says(make_policy: MakePolicy) -> None:
    sigmas = make_policy(mu=0.7).sigmas(5, 16).double()
    plain = torch.linspace(1, 0.2, 5, dtype=torch.float64)
    by_hand = np.exp(0.7) / (np.exp(0.7) + 1 / plain - 1)
    assert torch.allclose(sigmas[:-1], by_hand, atol=1e-6)
    assert sigmas[0] == 1 and sigmas[-1] == 0


def test_the_shift_grows_with_the_image_and_asking_leaves_no_trace(make_policy: MakePolicy) -> None:
    policy = make_policy()
    # as published; the shift of ToyBox is the same at every size
    policy.pipe.scheduler.register_to_config(base_shift=0.5, max_shift=1.15)
    scheduler_before = policy.pipe.scheduler.timesteps.clone()
    first = policy.sigmas(4, 16)
    assert (policy.sigmas(4, 1024)[1:-1] > first[1:-1]).all()
    assert torch.equal(policy.sigmas(4, 16), first) and first.dtype == torch.float32
    assert torch.equal(policy.pipe.scheduler.timesteps, scheduler_before)


def test_a_shift_for_a_schedule_without_one_is_refused(make_policy: MakePolicy) -> None:
    pipe = make_policy().pipe
    pipe.scheduler.register_to_config(use_dynamic_shifting=False)
    settings = PolicySettings(guidance=1, max_text_tokens=24, mu=0.5, precision="fp32")
    with pytest.raises(UserError, match=r"model\.mu"):
        Flux1Policy(pipe, settings, Flux1Options())


def test_uno_ids_worked_out_by_hand() -> None:
    ids = token_ids((2, 3), [(1, 2), (2, 1)], "uno")
    image = [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 1, 2]]
    assert ids.tolist() == [*image, [0, 2, 3], [0, 2, 4], [0, 3, 5], [0, 4, 5]]
    assert ids.dtype == torch.float32


def test_kontext_ids_worked_out_by_hand() -> None:
    ids = token_ids((1, 1), [(1, 2), (2, 1), (1, 1)], "kontext")
    # the second reference goes below the first, the third beside both
    assert ids.tolist() == [[0, 0, 0], [1, 0, 0], [1, 0, 1], [1, 1, 0], [1, 2, 0], [1, 0, 2]]


def test_no_two_tokens_share_an_id() -> None:
    for convention in ("kontext", "uno"):
        ids = token_ids((4, 6), [(4, 4), (2, 6), (6, 2), (3, 3)], convention)  # type: ignore[arg-type]
        assert len(ids.unique(dim=0)) == len(ids)


def test_packing_is_undone_and_a_token_is_a_square() -> None:
    latents = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    tokens = pack(latents)
    assert tokens.shape == (2, 6, 12)
    assert torch.equal(tokens[1, 4], latents[1, :, 2:4, 2:4].flatten())
    assert torch.equal(unpack(tokens, (2, 3)), latents)


def test_noise_of_a_sample_does_not_depend_on_its_batch(make_policy: MakePolicy) -> None:
    policy = make_policy()
    both = policy.noise(generators(5, 6), 64, 96)
    channels = policy.transformer.config.in_channels
    assert both.shape == (2, policy.n_tokens(64, 96), channels) and both.dtype == torch.float32
    assert torch.equal(both[1:], policy.noise(generators(6), 64, 96))


@pytest.mark.parametrize("reference_ids", ["kontext", "uno"])
def test_a_batch_with_two_references_each_equals_its_samples_one_by_one(
    make_policy: MakePolicy, make_image: MakeImage, reference_ids: str
) -> None:
    policy = make_policy(reference_ids=reference_ids)
    references = [[make_image(10 * row), make_image(10 * row + 1, 32, 48)] for row in range(3)]
    prompts = [*PROMPTS, "a bird"]
    x = policy.noise(generators(1, 2, 3), 64, 64)
    sigma = torch.tensor([0.9, 0.5, 0.1])
    with torch.no_grad():
        batched = policy.velocity(x, sigma, policy.encode(prompts, references, 64, 64))
        for row in range(3):
            alone = policy.encode(prompts[row : row + 1], references[row : row + 1], 64, 64)
            single = policy.velocity(x[row : row + 1], float(sigma[row]), alone)
            assert torch.allclose(batched[row : row + 1], single, atol=1e-5, rtol=0)
        swapped = [list(reversed(images)) for images in references]
        other = policy.velocity(x, sigma, policy.encode(prompts, swapped, 64, 64))
    assert (other - batched).abs().max() > 1e-4  # both references are seen, and their order


def test_velocity_of_a_repeated_prompt_is_that_of_the_prompt(
    make_policy: MakePolicy, make_image: MakeImage
) -> None:
    policy = make_policy()
    encoded = policy.encode(PROMPTS, [[make_image(1)], [make_image(2)]], 64, 64)
    x = policy.noise(generators(1, 2, 3, 4), 64, 64)
    with torch.no_grad():
        group = policy.velocity(x, 0.5, encoded.repeat_interleave(2))
        second = policy.velocity(x[2:], 0.5, encoded.index([1, 1]))
    assert torch.allclose(group[2:], second, atol=1e-5, rtol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_both_phases_see_the_same_bits(
    make_policy: MakePolicy, make_image: MakeImage, precision: str
) -> None:
    policy = make_policy(rank=4, precision=precision)
    encoded = policy.encode(PROMPTS, [[make_image(1)], [make_image(2)]], 64, 64)
    x = policy.noise(generators(1, 2), 64, 64)
    with (
        torch.no_grad(),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):  # the caller's autocast changes nothing
        rollout = policy.velocity(x, 0.7, encoded)
    training = policy.velocity(x, torch.tensor(0.7), encoded)
    assert training.requires_grad and rollout.dtype == training.dtype == torch.float32
    assert torch.equal(rollout, training)


def test_a_rollout_inside_a_callers_autocast_does_not_take_the_gradients_away(
    make_policy: MakePolicy, make_image: MakeImage
) -> None:
    policy = make_policy(rank=4, precision="bf16")
    encoded = policy.encode(PROMPTS, [[make_image(1)], [make_image(2)]], 64, 64)
    x = policy.noise(generators(1, 2), 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.no_grad():
            policy.velocity(x, 0.7, encoded)
        policy.velocity(x, 0.7, encoded).square().mean().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.trainable_parameters())


def test_bf16_is_close_to_fp32_and_not_equal(make_policy: MakePolicy, make_image: MakeImage) -> None:
    results = []
    for precision in ("fp32", "bf16"):
        policy = make_policy(precision=precision)
        encoded = policy.encode(PROMPTS, [[make_image(1)], [make_image(2)]], 64, 64)
        with torch.no_grad():
            results.append(policy.velocity(policy.noise(generators(1, 2), 64, 64), 0.7, encoded))
    error = (results[0] - results[1]).norm() / results[0].norm()
    assert 0 < error < 0.1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradient_checkpointing_changes_no_bit(
    make_policy: MakePolicy, make_image: MakeImage, precision: str
) -> None:
    policy = make_policy(rank=4, precision=precision)
    encoded = policy.encode(PROMPTS, [[make_image(1)], [make_image(2)]], 64, 64)
    x = policy.noise(generators(1, 2), 64, 64)
    results = []
    for enabled in (False, True):
        policy.set_gradient_checkpointing(enabled)
        v = policy.velocity(x, 0.5, encoded)
        grads = torch.autograd.grad(v.square().mean(), policy.trainable_parameters())
        results.append([v.detach(), *grads])
    assert policy.transformer.gradient_checkpointing
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_encoding_and_decoding_record_no_gradients(make_policy: MakePolicy, make_image: MakeImage) -> None:
    policy = make_policy(rank=4)
    encoded = policy.encode(PROMPTS, [[make_image(1)], [make_image(2)]], 64, 64)
    images = policy.decode(policy.noise(generators(1, 2), 64, 64).requires_grad_(), 64, 64)
    assert not any(tensor.requires_grad for tensor in encoded.per_sample.values())
    assert not images.requires_grad and images.dtype == torch.float32
    assert images.shape == (2, 3, 64, 64) and images.min() >= 0 and images.max() <= 1


def test_only_the_adapter_is_trained(make_policy: MakePolicy) -> None:
    policy = make_policy(rank=4)
    parts = (policy.transformer, policy.pipe.vae, policy.pipe.text_encoder, policy.pipe.text_encoder_2)
    trained = {id(p) for module in parts for p in module.parameters() if p.requires_grad}
    assert trained == {id(p) for p in policy.trainable_parameters()}
    assert not any(module.training for part in parts for module in part.modules())


@pytest.mark.parametrize(
    "references",
    [
        [[torch.rand(3, 64, 64)], [torch.rand(3, 64, 96)]],
        [[torch.rand(3, 64, 64)], [torch.rand(3, 64, 64)] * 2],
        [[], [torch.rand(3, 64, 64)]],
        [[torch.rand(3, 64, 64)] for _ in range(3)],
    ],
    ids=["sizes", "numbers", "one without", "one too many"],
)
def test_mixed_buckets_are_refused(make_policy: MakePolicy, references: list[list[Tensor]]) -> None:
    with pytest.raises(ValueError, match="references"):
        make_policy().encode(PROMPTS, references, 64, 64)


@pytest.mark.parametrize(
    "image", [torch.rand(3, 64, 64) * 2 - 1, torch.rand(64, 64, 3), torch.zeros(3, 64, 64, dtype=torch.uint8)]
)
def test_a_reference_that_is_no_image_is_refused(make_policy: MakePolicy, image: Tensor) -> None:
    with pytest.raises(ValueError, match="fp32 image"):
        make_policy().encode(PROMPTS[:1], [[image]], 64, 64)


def test_a_size_that_has_no_whole_tokens_is_refused(make_policy: MakePolicy) -> None:
    with pytest.raises(UserError, match="multiples of 16"):
        make_policy().noise(generators(1), 64, 72)


def test_velocity_refuses_conditioning_of_another_size_and_rounded_latents(
    make_policy: MakePolicy, make_image: MakeImage
) -> None:
    policy = make_policy()
    encoded = policy.encode(PROMPTS, [[make_image(1)], [make_image(2)]], 64, 64)
    with pytest.raises(AssertionError, match="image tokens"):
        policy.velocity(policy.noise(generators(1, 2), 64, 96), 0.5, encoded)
    with pytest.raises(AssertionError, match="rounding"):
        policy.velocity(policy.noise(generators(1, 2), 64, 64).bfloat16(), 0.5, encoded)
    with pytest.raises(AssertionError, match="samples"):
        policy.velocity(policy.noise(generators(1), 64, 64), 0.5, encoded)
