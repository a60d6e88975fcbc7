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
from customized_grpo.policies.flux3 import WINDOW, Flux3Policy
from customized_grpo.policies.options import Flux3Options
from customized_grpo.policies.other_programs import flux3_place
from customized_grpo.policies.settings import PolicySettings

MakeImage = Callable[..., Tensor]
Size = tuple[int, int]

LONG = " ".join(["a bird and a very small green cat on a red floor"] * 6)
PROMPTS = ["a fox with a red hat on the left", LONG, "a robot"]
N_TEXT = 240

with quiet():
    import tiny_flux3 as tiny


def make_policy(*, rank: int | None = None, **settings: Any) -> Flux3Policy:
    """Build a policy over random weights, with a fresh adapter when a rank is given."""
    with quiet():
        pipe = tiny.build_pipeline()
    defaults = {"guidance": 4.0, "max_text_tokens": N_TEXT, "precision": "fp32", "device": "cpu"}
    options = Flux3Options(text_layers=tiny.TEXT_LAYERS)
    policy = Flux3Policy(pipe, PolicySettings(**{**defaults, **settings}), options)
    if rank is not None:
        policy.add_adapter(rank=rank, seed=7)
    return policy


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def move_adapter(policy: Flux3Policy) -> None:
    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise))


def theirs(pipe: Any, references: Sequence[Tensor], size: Size, **options: Any) -> Tensor:
    return tiny.run_pipeline(pipe, PROMPTS[0], references, size, generator=generators(1)[0], **options)


@torch.no_grad()
def ode(policy: Flux3Policy, x: Tensor, conditioning: Conditioning, steps: int = 3) -> Tensor:
    sigmas = policy.sigmas(steps, x.shape[1])
    for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        x = x + (sigma_next - sigma) * policy.velocity(x, sigma, conditioning)
    return x


def ours(policy: Flux3Policy, references: Sequence[Tensor], size: Size, steps: int = 3) -> Tensor:
    encoded = policy.encode(PROMPTS[:1], [references], *size)
    return ode(policy, policy.noise(generators(1), *size), encoded, steps)


CASES: dict[str, dict[str, Any]] = {
    "one reference": {"size": (64, 64), "references": [(64, 64)]},
    "no guidance": {"size": (64, 96), "references": [(64, 80)], "steps": 2, "guidance": 1.0},
    "two references": {"size": (96, 64), "references": [(64, 96), (80, 64)], "steps": 4},
    "a prompt alone": {"size": (64, 96), "references": [], "guidance": 2.5},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_ode_sampling_is_the_pipelines_own(make_image: MakeImage, case: dict[str, Any]) -> None:
    size, steps, guidance = case["size"], case.get("steps", 3), case.get("guidance", 4.0)
    policy = make_policy(guidance=guidance)
    references = [make_image(seed, *shape) for seed, shape in enumerate(case["references"])]
    mine = ours(policy, references, size, steps)
    images = policy.decode(mine, *size)
    options: dict[str, Any] = {"steps": steps, "guidance": guidance}
    drawn = theirs(policy.pipe, references, size, output="images", **options)
    assert images.shape == (1, 3, *size)
    assert torch.allclose(images, drawn, atol=1e-5, rtol=0)
    assert images.std() > 0.01  # the comparison can fail


def wrong(encoded: Conditioning, name: str, change: Callable[[Tensor], Tensor]) -> Conditioning:
    return replace(encoded, shared={**encoded.shared, name: change(encoded.shared[name])})


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("image_ids", lambda ids: 2 * ids),
        ("image_ids", lambda ids: ids[:, [0, 2, 1, 3]]),
        ("reference_ids", lambda ids: ids * torch.tensor([1, 1, 1, 0])),
        ("reference_ids", lambda ids: -ids),
    ],
    ids=["whole steps", "axes swapped", "references at l = 0", "l = 1"],
)
def test_wrong_ids_draw_something_else(
    make_image: MakeImage, name: str, change: Callable[[Tensor], Tensor]
) -> None:
    policy = make_policy(guidance=1.0)
    encoded = policy.encode(PROMPTS[:1], [[make_image(1, 64, 96), make_image(2, 64, 96)]], 64, 96)
    noise = policy.noise(generators(1), 64, 96)
    difference = ode(policy, noise, encoded) - ode(policy, noise, wrong(encoded, name, change))
    assert difference.abs().max() > 1e-4  # rounding is below 1e-6


def test_the_shift_is_the_schedulers_own_and_cannot_be_set() -> None:
    sigmas = make_policy().sigmas(4, 16)
    plain = torch.linspace(1, 0.25, 4, dtype=torch.float64)
    assert torch.allclose(sigmas[:-1].double(), 6.93 * plain / (1 + 5.93 * plain), atol=1e-6)
    with pytest.raises(UserError, match=r"model\.mu"):
        make_policy(mu=1.0)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_batch_of_several_windows_equals_its_samples_one_by_one(
    make_image: MakeImage, guidance: float
) -> None:
    policy = make_policy(guidance=guidance)
    references = [[make_image(row, 64, 64)] for row in range(3)]
    x = policy.noise(generators(1, 2, 3), 64, 32)
    sigma = torch.tensor([0.9, 0.5, 0.1])
    encoded = policy.encode(PROMPTS, references, 64, 32)
    windows = encoded.per_sample["prompt_length"].tolist()
    assert windows[0] == windows[2] == WINDOW and windows[1] > WINDOW
    with torch.no_grad():
        batched = policy.velocity(x, sigma, encoded)
        for row in range(3):
            alone = policy.encode(PROMPTS[row : row + 1], references[row : row + 1], 64, 32)
            single = policy.velocity(x[row : row + 1], float(sigma[row]), alone)
            assert torch.allclose(batched[row : row + 1], single, atol=2e-6, rtol=0)
    assert batched.std() > 0.1


def test_a_larger_window_would_change_the_velocity(make_image: MakeImage) -> None:
    # why each window has a call of its own
    policy = make_policy(guidance=1.0)
    encoded = policy.encode(PROMPTS[:1], [[make_image(1)]], 64, 64)
    length = encoded.per_sample["prompt_length"] + WINDOW
    padded = replace(encoded, per_sample={**encoded.per_sample, "prompt_length": length})
    x = policy.noise(generators(1), 64, 64)
    with torch.no_grad():
        difference = policy.velocity(x, 0.5, padded) - policy.velocity(x, 0.5, encoded)
    assert difference.abs().max() > 1e-5


def test_the_tokens_of_a_prompt_are_counted_as_it_is_encoded() -> None:
    policy = make_policy()
    (limit,) = policy.text_limits()
    for prompt in PROMPTS:
        expected = len(policy.pipe.tokenizer.tokenizer(policy._formatted(prompt))["input_ids"])
        assert limit.count([prompt]) == [expected]


def test_the_step_distilled_checkpoint_is_refused() -> None:
    with quiet():
        pipe = tiny.build_pipeline()
    pipe.transformer.register_to_config(flow_map=True)
    settings = PolicySettings(guidance=1.0, max_text_tokens=N_TEXT, precision="fp32")
    with pytest.raises(UserError, match="step-distilled"):
        Flux3Policy(pipe, settings, Flux3Options())


def test_a_guidance_below_1_is_refused_also_when_evaluations_alone_have_it(make_image: MakeImage) -> None:
    with pytest.raises(UserError, match="guidance 0.5: classifier-free guidance starts at 1"):
        make_policy(guidance=0.5)
    policy = make_policy(guidance=1.0)
    with policy.guided(0.5), pytest.raises(UserError, match="starts at 1") as error:
        policy.encode(PROMPTS[:1], [[make_image(1)]], 64, 64)
    assert "evaluation.guidance" in str(error.value.hint)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_reach_the_whole_adapter_and_both_phases_see_the_same_bits(
    make_image: MakeImage, precision: str
) -> None:
    policy = make_policy(rank=4, precision=precision)
    move_adapter(policy)
    encoded = policy.encode(PROMPTS[:2], [[make_image(1)], [make_image(2)]], 64, 64)
    x = policy.noise(generators(1, 2), 64, 64)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):  # the caller's changes nothing
        rollout = policy.velocity(x, 0.7, encoded)
    for enabled in (False, True):
        policy.set_gradient_checkpointing(enabled)
        training = policy.velocity(x, torch.tensor(0.7), encoded)
        assert torch.equal(rollout, training)
        grads = torch.autograd.grad(training.square().mean() + training.mean(), policy.trainable_parameters())
        assert all(grad.isfinite().all() and grad.abs().max() > 0 for grad in grads)


def test_a_saved_adapter_makes_the_same_image_in_the_pipeline(make_image: MakeImage, tmp_path: Path) -> None:
    policy, references = make_policy(rank=4), [make_image(0)]
    fresh = policy.decode(ours(policy, references, (64, 64)), 64, 64)
    move_adapter(policy)
    mine = policy.decode(ours(policy, references, (64, 64)), 64, 64)
    policy.save_lora(tmp_path)
    with quiet():
        pipe = tiny.build_pipeline()
        pipe.load_lora_weights(tmp_path)
    drawn = theirs(pipe, references, (64, 64), output="images")
    assert torch.allclose(mine, drawn, atol=1e-5, rtol=0)
    assert (mine - fresh).abs().max() > 1e-3


def test_every_adapted_layer_has_the_original_name_that_diffusers_reads() -> None:
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_flux3_lora_to_diffusers as read

    layers = {name.rsplit(".", 2)[0] for name in make_policy(rank=2).adapter_tensors()}
    assert len(layers) == 4 * (3 * 2 + 2)  # four layers in each block
    for layer in layers:
        place = flux3_place(layer)
        assert place is not None and place.rows is None
        (key,) = read({f"diffusion_model.{place.name}.lora_A.weight": torch.zeros(1)})
        assert key == f"transformer.{layer}.lora_A.weight"
    assert flux3_place("x_embedders.image") is None
