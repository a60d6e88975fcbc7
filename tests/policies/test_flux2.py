from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import tiny_flux2 as tiny
from customized_grpo.errors import UserError
from customized_grpo.policies.conditioning import Conditioning
from customized_grpo.policies.flux2 import Flux2Policy, text_ids, token_ids
from customized_grpo.policies.options import Flux2Options
from customized_grpo.policies.settings import PolicySettings

MakeImage = Callable[..., Tensor]

PROMPTS = ["a fox with a red hat on the left", "a robot on a green floor"]
TOLERANCE = 1e-5
FAR = 1e-3  # how much at least an image changes when something is wrong


# how to build each checkpoint, and the guidance it is published with
CHECKPOINTS: dict[str, tuple[Callable[[], Any], float]] = {
    "klein": (lambda: tiny.klein(distilled=True), 1.0),
    "klein-base": (tiny.klein, 4.0),
    "dev": (tiny.dev, 4.0),
}


@pytest.fixture(params=CHECKPOINTS)
def checkpoint(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make_policy(
    checkpoint: str,
    *,
    rank: int | None = None,
    alpha: float | None = None,
    half: bool = False,
    text_layers: tuple[int, ...] | None = tiny.TEXT_LAYERS,
    **settings: Any,
) -> Flux2Policy:
    build, guidance = CHECKPOINTS[checkpoint]
    pipe = build()
    if half:  # as load_pipeline holds weights with precision "bf16"
        pipe.transformer.to(torch.bfloat16)
        pipe.text_encoder.to(torch.bfloat16)
    defaults = {
        "guidance": guidance,
        "max_text_tokens": tiny.MAX_TEXT_TOKENS,
        "precision": "fp32",
        "device": "cpu",
    }
    options = Flux2Options(text_layers=text_layers)
    policy = Flux2Policy(pipe, PolicySettings(**{**defaults, **settings}), options)
    if rank is not None:
        policy.add_adapter(rank=rank, alpha=alpha, seed=7)
    return policy


def train(policy: Flux2Policy) -> None:
    """Stand in for training: give every B some weight."""
    drawn = torch.Generator().manual_seed(3)
    tensors = policy.adapter_tensors()
    for name, tensor in tensors.items():
        if ".lora_B." in name:
            tensors[name] = 0.1 * torch.randn(tensor.shape, generator=drawn)
    policy.load_adapter_tensors(tensors)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def as_pil(image: Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())


@torch.no_grad()
def ode(policy: Flux2Policy, x: Tensor, conditioning: Conditioning, steps: int) -> Tensor:
    """Images by Euler's method."""
    sigmas = policy.sigmas(steps, x.shape[1])
    for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        x = x + (sigma_next - sigma) * policy.velocity(x, sigma, conditioning)
    return policy.decode(x, conditioning.height, conditioning.width)


def ours(
    policy: Flux2Policy, references: Sequence[Tensor], size: tuple[int, int] = (64, 64), steps: int = 2
) -> Tensor:
    """Images of the two prompts, both with these references."""
    encoded = policy.encode(PROMPTS, [references] * 2, *size)
    return ode(policy, policy.noise(generators(1, 2), *size), encoded, steps)


def theirs(
    pipe: Any,
    references: Sequence[Tensor],
    size: tuple[int, int] = (64, 64),
    steps: int = 2,
    *,
    prompts: list[str] = PROMPTS,
    seeds: tuple[int, ...] = (1, 2),
    **options: Any,
) -> Tensor:
    """What the pipeline itself makes of the same."""
    defaults = {
        "guidance_scale": 4.0,  # the distilled klein ignores it, with a warning
        "max_sequence_length": tiny.MAX_TEXT_TOKENS,
        "text_encoder_out_layers": tiny.TEXT_LAYERS,
    }
    images: Tensor = pipe(
        image=[as_pil(image) for image in references] or None,
        prompt=prompts,
        height=size[0],
        width=size[1],
        num_inference_steps=steps,
        generator=generators(*seeds),
        output_type="pt",
        **{**defaults, **options},
    ).images
    return images


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, atol=TOLERANCE, rtol=0)


GEOMETRIES = {
    "one reference": ((64, 64), [(64, 64)], 2),
    "two references, wide": ((64, 96), [(96, 64), (80, 64)], 3),
    "tall, four steps": ((96, 64), [(64, 80)], 4),
    "a prompt alone": ((64, 96), [], 2),
}


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())
def test_ode_sampling_is_the_pipelines_own(checkpoint: str, make_image: MakeImage, geometry: Any) -> None:
    size, reference_sizes, steps = geometry
    references = [make_image(seed, *shape) for seed, shape in enumerate(reference_sizes)]
    policy = make_policy(checkpoint)
    mine = ours(policy, references, size, steps)
    assert close(mine, theirs(policy.pipe, references, size, steps))
    assert mine.shape == (2, 3, *size) and mine.std() > 0.05  # the comparison can fail


def test_a_batch_with_its_own_references_is_the_pipeline_one_by_one(
    checkpoint: str, make_image: MakeImage
) -> None:
    policy = make_policy(checkpoint)
    references = [[make_image(10 * row), make_image(10 * row + 1, 64, 80)] for row in range(2)]
    encoded = policy.encode(PROMPTS, references, 64, 64)
    batch = ode(policy, policy.noise(generators(1, 2), 64, 64), encoded, 2)
    for row in range(2):
        alone = theirs(policy.pipe, references[row], prompts=PROMPTS[row : row + 1], seeds=(row + 1,))
        assert close(batch[row : row + 1], alone)


def altered(encoded: Conditioning, name: str, change: Callable[[Tensor], Tensor]) -> Conditioning:
    shared = {**encoded.shared, name: change(encoded.shared[name])}
    return Conditioning(encoded.per_sample, shared, encoded.height, encoded.width)


WRONG_IDS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "references at t = 0": ("image_ids", lambda ids: ids * torch.tensor([0, 1, 1, 1])),
    "references at t = 1, 2": ("image_ids", lambda ids: ids * torch.tensor([0.1, 1, 1, 1])),
    "references swapped": ("image_ids", lambda ids: torch.cat([ids[:24], ids[48:], ids[24:48]])),
    "axes swapped": ("image_ids", lambda ids: ids[:, [0, 2, 1, 3]]),
    "all text at l = 0": ("text_ids", torch.zeros_like),
    "text on another axis": ("text_ids", lambda ids: ids[:, [3, 1, 2, 0]]),
}


@pytest.mark.parametrize("wrong", WRONG_IDS.values(), ids=WRONG_IDS.keys())
def test_wrong_ids_break_parity(make_image: MakeImage, wrong: Any) -> None:
    policy, references = make_policy("klein"), [make_image(3, 64, 96), make_image(4, 64, 96)]
    encoded = policy.encode(PROMPTS, [references] * 2, 64, 96)
    x = policy.noise(generators(1, 2), 64, 96)
    pipes = theirs(policy.pipe, references, (64, 96))
    assert close(ode(policy, x, encoded, 2), pipes)
    assert (ode(policy, x, altered(encoded, *wrong), 2) - pipes).abs().max() > FAR


@pytest.mark.parametrize(
    ("checkpoint", "wrong"),
    [
        ("klein", {"mu": 1.15}),
        ("klein-base", {"guidance": 3.0}),
        ("klein-base", {"guidance": 1.0}),
        ("dev", {"guidance": 1.0}),
        ("dev", {"mu": 1.15}),
        ("klein", {"max_text_tokens": tiny.MAX_TEXT_TOKENS + 8}),
        ("klein", {"text_layers": (1, 2, 2)}),
    ],
)
def test_another_shift_guidance_or_text_breaks_parity(
    make_image: MakeImage, checkpoint: str, wrong: dict[str, Any]
) -> None:
    policy = make_policy(checkpoint, **wrong)
    pipes = theirs(policy.pipe, [make_image(3)], steps=3)
    assert (ours(policy, [make_image(3)], steps=3) - pipes).abs().max() > FAR


def test_forgetting_the_vaes_statistics_breaks_parity(make_image: MakeImage) -> None:
    policy = make_policy("klein")
    pipes = theirs(policy.pipe, [make_image(3)])
    encoded = policy.encode(PROMPTS, [[make_image(3)]] * 2, 64, 64)
    x = policy.noise(generators(1, 2), 64, 64)
    mean, deviation = policy._token_statistics()
    raw = encoded.per_sample["reference_tokens"] * deviation + mean
    per_sample = {**encoded.per_sample, "reference_tokens": raw}
    wrong = Conditioning(per_sample, encoded.shared, 64, 64)
    assert (ode(policy, x, wrong, 2) - pipes).abs().max() > FAR


def test_ids_worked_out_by_hand() -> None:
    ids = token_ids((1, 2), [(2, 1), (1, 1)])
    image = [[0, 0, 0, 0], [0, 0, 1, 0]]
    assert ids.tolist() == [*image, [10, 0, 0, 0], [10, 1, 0, 0], [20, 0, 0, 0]]
    assert text_ids(3).tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 2]]
    assert ids.dtype == text_ids(3).dtype == torch.float32


def test_classifier_free_guidance_is_its_formula_with_the_empty_prompt(make_image: MakeImage) -> None:
    guided, plain = make_policy("klein-base"), make_policy("klein-base", guidance=1.0)
    references = [[make_image(1)], [make_image(2)]]
    x = plain.noise(generators(1, 2), 64, 64)
    with torch.no_grad():
        with_prompt = plain.velocity(x, 0.7, plain.encode(PROMPTS, references, 64, 64))
        without = plain.velocity(x, 0.7, plain.encode(["", ""], references, 64, 64))
        v = guided.velocity(x, 0.7, guided.encode(PROMPTS, references, 64, 64))
    assert torch.allclose(v, without + 4 * (with_prompt - without), atol=1e-5, rtol=0)
    assert (v - with_prompt).abs().max() > FAR


def test_klein_base_without_guidance_is_the_pipeline_without(make_image: MakeImage) -> None:
    policy = make_policy("klein-base", guidance=1.0)
    assert policy.guidance_mode == "none"
    assert close(ours(policy, [make_image(3)]), theirs(policy.pipe, [make_image(3)], guidance_scale=1.0))


def test_another_guidance_inside_a_block_is_that_of_a_policy_with_it(make_image: MakeImage) -> None:
    guided, plain = make_policy("klein-base"), make_policy("klein-base", guidance=1.0)
    before = ours(guided, [make_image(3)])
    with guided.guided(1.0):
        assert guided.guidance_mode == "none"
        assert torch.equal(ours(guided, [make_image(3)]), ours(plain, [make_image(3)]))
    assert torch.equal(ours(guided, [make_image(3)]), before)
    distilled = make_policy("klein")
    with distilled.guided(2.0), pytest.raises(UserError, match="takes no guidance"):
        ours(distilled, [make_image(3)])


def test_conditionings_of_separate_calls_join_under_guidance(make_image: MakeImage) -> None:
    policy = make_policy("klein-base")
    parts = [policy.encode([prompt], [[make_image(1)]], 64, 64) for prompt in PROMPTS]
    joined, together = Conditioning.cat(parts), policy.encode(PROMPTS, [[make_image(1)]] * 2, 64, 64)
    x = policy.noise(generators(1, 2), 64, 64)
    with torch.no_grad():
        assert close(policy.velocity(x, 0.5, joined), policy.velocity(x, 0.5, together))


@pytest.mark.parametrize(
    ("checkpoint", "guidance", "message"),
    [("klein", 4.0, "distilled"), ("klein", 0.0, "distilled"), ("klein-base", 0.5, "starts at 1")],
)
def test_guidance_without_effect_is_refused(checkpoint: str, guidance: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_policy(checkpoint, guidance=guidance)


@pytest.mark.parametrize(("checkpoint", "overhead"), [("klein", 8), ("dev", 37)])
def test_a_text_without_room_for_a_prompt_is_refused(checkpoint: str, overhead: int) -> None:
    with pytest.raises(UserError, match=rf"max_text_tokens {overhead}.*take {overhead} tokens"):
        make_policy(checkpoint, max_text_tokens=overhead)
    make_policy(checkpoint, max_text_tokens=overhead + 1)


@pytest.mark.parametrize(("checkpoint", "overhead"), [("klein", 8), ("dev", 37)])
def test_the_tokens_of_a_prompt_count_with_its_template(checkpoint: str, overhead: int) -> None:
    policy = make_policy(checkpoint)
    (limit,) = policy.text_limits()
    words = policy.pipe.tokenizer("a red robot", add_special_tokens=False).input_ids
    assert limit.count(["", "a red robot"]) == [overhead, overhead + len(words)]
    assert limit.limit == tiny.MAX_TEXT_TOKENS


def test_text_layers_are_the_pipelines_own_unless_given(make_image: MakeImage) -> None:
    settings = PolicySettings(guidance=1.0, max_text_tokens=tiny.MAX_TEXT_TOKENS, precision="fp32")
    pipe = tiny.klein(distilled=True, text_depth=27)
    policy = Flux2Policy(pipe, settings, Flux2Options())
    pipes = theirs(pipe, [make_image(3)], text_encoder_out_layers=(9, 18, 27))
    assert close(ours(policy, [make_image(3)]), pipes)


def test_the_shift_depends_on_the_image_and_on_the_steps_and_asking_leaves_no_trace() -> None:
    policy = make_policy("klein")
    scheduler_before = policy.pipe.scheduler.timesteps.clone()
    first = policy.sigmas(4, 1024)
    assert (policy.sigmas(4, 4096)[1:-1] > first[1:-1]).all()
    assert policy.sigmas(8, 1024)[2] < first[1]  # the level 3/4, shifted less for more steps
    assert torch.equal(policy.sigmas(4, 1024), first) and first.dtype == torch.float32
    assert torch.equal(policy.pipe.scheduler.timesteps, scheduler_before)


def test_an_explicit_shift_moves_sigmas_as_its_formula_says() -> None:
    sigmas = make_policy("klein", mu=0.7).sigmas(5, 16).double()
    plain = torch.linspace(1, 0.2, 5, dtype=torch.float64)
    by_hand = np.exp(0.7) / (np.exp(0.7) + 1 / plain - 1)
    assert torch.allclose(sigmas[:-1], by_hand, atol=1e-6)
    assert sigmas[0] == 1 and sigmas[-1] == 0


def test_a_shift_for_a_schedule_without_one_is_refused() -> None:
    pipe = tiny.klein(distilled=True)
    pipe.scheduler.register_to_config(use_dynamic_shifting=False)
    settings = PolicySettings(guidance=1.0, max_text_tokens=96, mu=0.5, precision="fp32")
    with pytest.raises(UserError, match=r"model\.mu"):
        Flux2Policy(pipe, settings, Flux2Options())


def test_noise_of_a_sample_does_not_depend_on_its_batch() -> None:
    policy = make_policy("klein")
    both = policy.noise(generators(5, 6), 64, 96)
    assert both.shape == (2, policy.n_tokens(64, 96), 4 * tiny.LATENT_CHANNELS)
    assert both.dtype == torch.float32 and both.is_contiguous()
    assert torch.equal(both[1:], policy.noise(generators(6), 64, 96))


def test_a_batch_equals_its_samples_in_any_order_and_one_by_one(
    checkpoint: str, make_image: MakeImage
) -> None:
    policy = make_policy(checkpoint)
    references = [[make_image(10 * row), make_image(10 * row + 1, 32, 48)] for row in range(3)]
    prompts = [*PROMPTS, "a bird"]
    x, sigma = policy.noise(generators(1, 2, 3), 64, 64), torch.tensor([0.9, 0.5, 0.1])
    encoded = policy.encode(prompts, references, 64, 64)
    order = [2, 0, 1]
    with torch.no_grad():
        batched = policy.velocity(x, sigma, encoded)
        assert torch.equal(policy.velocity(x[order], sigma[order], encoded.index(order)), batched[order])
        for row in range(3):
            alone = policy.encode(prompts[row : row + 1], references[row : row + 1], 64, 64)
            single = policy.velocity(x[row : row + 1], float(sigma[row]), alone)
            assert (batched[row] - single[0]).norm() < 1e-6 * single.norm()
        swapped = policy.encode(prompts, [references[1], *references[1:]], 64, 64)
        other = policy.velocity(x, sigma, swapped)
    assert (other[0] - batched[0]).abs().max() > FAR  # a sample's own references are seen
    assert torch.equal(other[1:], batched[1:])


def some(policy: Flux2Policy, make_image: MakeImage) -> tuple[Tensor, float, Conditioning]:
    encoded = policy.encode(PROMPTS, [[make_image(1)], [make_image(2)]], 64, 64)
    return policy.noise(generators(1, 2), 64, 64), 0.7, encoded


PRECISIONS = {
    "fp32": {"precision": "fp32"},
    "bf16": {"precision": "bf16"},
    "bf16 weights": {"precision": "bf16", "half": True},
}


@pytest.mark.parametrize("options", PRECISIONS.values(), ids=PRECISIONS.keys())
def test_both_phases_see_the_same_bits(
    checkpoint: str, make_image: MakeImage, options: dict[str, Any]
) -> None:
    policy = make_policy(checkpoint, rank=2, **options)
    train(policy)
    inputs = some(policy, make_image)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):  # the caller's changes nothing
        rollout = policy.velocity(*inputs)
    training = policy.velocity(*inputs)
    assert training.requires_grad and rollout.dtype == training.dtype == torch.float32
    assert torch.equal(rollout, training) and bool(rollout.isfinite().all())


def test_bf16_is_close_to_fp32_and_not_equal(checkpoint: str, make_image: MakeImage) -> None:
    results = []
    for options in PRECISIONS.values():
        policy = make_policy(checkpoint, **options)
        with torch.no_grad():
            results.append(policy.velocity(*some(policy, make_image)))
    for rounded in results[1:]:
        assert 0 < (rounded - results[0]).norm() / results[0].norm() < 0.1


@pytest.mark.parametrize("options", PRECISIONS.values(), ids=PRECISIONS.keys())
def test_without_its_adapter_the_policy_is_the_base_bit_for_bit(
    make_image: MakeImage, checkpoint: str, options: dict[str, Any]
) -> None:
    policy = make_policy(checkpoint, **options)
    with torch.no_grad():
        base = policy.velocity(*some(policy, make_image))
        policy.add_adapter(rank=2, seed=0)
        assert torch.equal(policy.velocity(*some(policy, make_image)), base)
        train(policy)
        assert not torch.equal(policy.velocity(*some(policy, make_image)), base)
        with policy.reference():
            assert torch.equal(policy.velocity(*some(policy, make_image)), base)


def test_gradients_inside_reference_are_refused(make_image: MakeImage) -> None:
    policy = make_policy("klein-base", rank=2)
    with pytest.raises(RuntimeError, match="no_grad"), policy.reference():
        policy.velocity(*some(policy, make_image))


def test_gradients_reach_the_whole_adapter_and_checkpointing_changes_no_bit(
    checkpoint: str, make_image: MakeImage
) -> None:
    policy = make_policy(checkpoint, rank=2)
    train(policy)
    inputs, results = some(policy, make_image), []
    for enabled in (False, True):
        policy.set_gradient_checkpointing(enabled)
        v = policy.velocity(*inputs)
        grads = torch.autograd.grad(v.square().mean(), policy.trainable_parameters())
        assert all(bool(grad.isfinite().all()) and bool((grad != 0).any()) for grad in grads)
        results.append([v.detach(), *grads])
    assert policy.transformer.gradient_checkpointing
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_guidance_differentiates_both_of_its_calls(make_image: MakeImage) -> None:
    policy = make_policy("klein-base", rank=2)
    train(policy)
    x, sigma, encoded = some(policy, make_image)
    parameters = policy.trainable_parameters()
    level = torch.full((2,), sigma)
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))

    def gradient(v: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad((weights * v).sum(), parameters)])

    with_prompt = gradient(policy._transform(x, level, encoded, encoded.per_sample["prompt_embeds"]))
    empty = encoded.shared["empty_embeds"].expand(2, -1, -1)
    without = gradient(policy._transform(x, level, encoded, empty))
    expected = 4 * with_prompt - 3 * without
    assert torch.allclose(
        gradient(policy.velocity(x, sigma, encoded)), expected, atol=1e-4 * float(expected.norm()), rtol=0
    )


def test_the_adapter_covers_the_attention_and_the_fused_layers_only(checkpoint: str) -> None:
    layers = {name.rsplit(".lora_", 1)[0] for name in make_policy(checkpoint, rank=2).adapter_tensors()}
    double = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    expected = {f"transformer_blocks.0.attn.{part}" for part in double}
    expected |= {f"single_transformer_blocks.0.attn.{part}" for part in ("to_qkv_mlp_proj", "to_out")}
    assert layers == expected


def test_a_saved_adapter_makes_the_same_image_in_a_fresh_pipeline(
    checkpoint: str, make_image: MakeImage, tmp_path: Path
) -> None:
    policy = make_policy(checkpoint, rank=2, alpha=4.0)
    base = ours(policy, [make_image(3)])
    train(policy)
    mine = ours(policy, [make_image(3)])
    policy.save_lora(tmp_path)
    fresh = CHECKPOINTS[checkpoint][0]()
    fresh.load_lora_weights(str(tmp_path))
    assert close(mine, theirs(fresh, [make_image(3)]))
    assert (mine - base).abs().max() > FAR
    again = make_policy(checkpoint, rank=2, alpha=4.0)
    again.load_lora(tmp_path)
    assert torch.equal(ours(again, [make_image(3)]), mine)


def test_only_the_adapter_is_trained_and_encoding_and_decoding_record_nothing(
    checkpoint: str, make_image: MakeImage
) -> None:
    policy = make_policy(checkpoint, rank=2)
    parts = (policy.transformer, policy.pipe.vae, policy.pipe.text_encoder)
    trained = {id(p) for module in parts for p in module.parameters() if p.requires_grad}
    assert trained == {id(p) for p in policy.trainable_parameters()}
    assert not any(module.training for part in parts for module in part.modules())
    x, _, encoded = some(policy, make_image)
    images = policy.decode(x.requires_grad_(), 64, 64)
    tensors = [*encoded.per_sample.values(), *encoded.shared.values(), images]
    assert not any(tensor.requires_grad for tensor in tensors)
    assert images.dtype == torch.float32 and images.min() >= 0 and images.max() <= 1


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
def test_mixed_buckets_are_refused(references: list[list[Tensor]]) -> None:
    with pytest.raises(ValueError, match="references"):
        make_policy("klein").encode(PROMPTS, references, 64, 64)


def test_conditionings_of_other_buckets_do_not_join(make_image: MakeImage) -> None:
    policy = make_policy("klein")
    one = policy.encode(PROMPTS, [[make_image(1, 64, 96)]] * 2, 64, 64)
    other = policy.encode(PROMPTS, [[make_image(1, 96, 64)]] * 2, 64, 64)
    with pytest.raises(ValueError, match="image_ids"):
        Conditioning.cat([one, other])


def test_a_size_that_has_no_whole_tokens_is_refused(make_image: MakeImage) -> None:
    policy = make_policy("klein")
    with pytest.raises(UserError, match="multiples of 16"):
        policy.noise(generators(1), 64, 72)
    with pytest.raises(UserError, match="multiples of 16"):
        policy.encode(PROMPTS[:1], [[make_image(1, 64, 72)]], 64, 64)


def test_velocity_refuses_what_does_not_belong_together(make_image: MakeImage) -> None:
    policy = make_policy("klein")
    x, _, encoded = some(policy, make_image)
    with pytest.raises(AssertionError, match="image tokens"):
        policy.velocity(policy.noise(generators(1, 2), 64, 96), 0.5, encoded)
    with pytest.raises(AssertionError, match="rounding"):
        policy.velocity(x.bfloat16(), 0.5, encoded)
    with pytest.raises(AssertionError, match="samples"):
        policy.velocity(x[:1], 0.5, encoded)
    with pytest.raises(AssertionError, match=r"ids for 16 \+ 16 tokens"):
        policy.velocity(x, 0.5, altered(encoded, "image_ids", lambda ids: token_ids((4, 4), [(4, 6)])))
    with pytest.raises(AssertionError, match="text tokens"):
        policy.velocity(x, 0.5, altered(encoded, "text_ids", lambda ids: ids[1:]))
    with pytest.raises(AssertionError, match="bf16 ids"):
        policy.velocity(x, 0.5, altered(encoded, "image_ids", lambda ids: ids.bfloat16()))
