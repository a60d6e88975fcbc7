"""Rollouts: what a sample depends on, what is kept of it, and that training sees the same transitions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from customized_grpo.algorithms import samplers
from customized_grpo.algorithms.samplers import ODE
from customized_grpo.config import Config
from customized_grpo.data.examples import Example
from customized_grpo.policies.conditioning import Conditioning
from customized_grpo.policies.flux1 import Flux1Policy
from customized_grpo.rollout.batches import sample_batches, sample_conditioning
from customized_grpo.rollout.collect import NoiseKey, collect
from customized_grpo.rollout.encoding import PromptEncoder
from customized_grpo.rollout.ode import sample_images
from customized_grpo.rollout.sampler import Sampler, StepPlan, build_sampler, plan_steps
from customized_grpo.rollout.trajectory import Trajectory

Recipe = Callable[..., Config]
GROUP = 3
SIZE = (64, 64)
EVERY_STEP = StepPlan(frozenset({0, 1, 2}), [0, 1, 2])  # of the preset's four: the last draws no noise


@pytest.fixture(scope="module")
def policy(recipe: Recipe, make_adapted: Callable[[Config], Flux1Policy]) -> Flux1Policy:
    return make_adapted(recipe())


def draw(
    policy: Flux1Policy,
    config: Config,
    examples: Sequence[Example],
    plan: StepPlan = EVERY_STEP,
    seeds: tuple[int, int] = (0, 0),
    **options: Any,
) -> Trajectory:
    sampler = build_sampler(policy, config.rollout, *SIZE)
    return collect(
        policy,
        sampler,
        examples,
        config.rollout,
        encoder=PromptEncoder(policy, SIZE),
        group_size=GROUP,
        plan=plan,
        noise_key=NoiseKey(*seeds),
        **options,
    )


def conditioning_of(trajectory: Trajectory, samples: slice) -> Conditioning:
    return sample_conditioning(trajectory.conditionings, trajectory.group_size, samples)


def assert_close(first: Trajectory, second: Trajectory, rows: slice = slice(None)) -> None:
    """Compare `first` with the samples `rows` of `second`."""
    for name in ("x", "x_next", "log_prob"):
        ours, theirs = getattr(first, name), getattr(second, name)[:, rows]
        assert torch.allclose(ours, theirs, atol=1e-5, rtol=0), name
    assert torch.allclose(first.images, second.images[rows], atol=1e-5, rtol=0)


def assert_same_bits(first: Trajectory, second: Trajectory) -> None:
    for name in ("x", "x_next", "log_prob", "images"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name


# Conditioning


def test_every_prompt_is_encoded_once(
    policy: Flux1Policy, recipe: Recipe, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []
    encode = policy.encode

    def spy(prompts: Sequence[str], *arguments: Any) -> Conditioning:
        encoded.extend(prompts)
        return encode(prompts, *arguments)

    monkeypatch.setattr(policy, "encode", spy)
    trajectory = draw(policy, recipe("rollout.batch_size=2"), examples)
    assert encoded == [example.prompt for example in examples]
    assert len(trajectory) == 2 * GROUP
    assert len(trajectory.conditionings) == 2


def test_a_sample_is_made_for_the_prompt_of_its_group(
    policy: Flux1Policy, recipe: Recipe, examples: list[Example]
) -> None:
    trajectory = draw(policy, recipe(), examples)
    tokens = torch.cat([c.per_sample["reference_tokens"] for c in trajectory.conditionings])
    assert not torch.equal(tokens[0], tokens[1])
    of_samples = conditioning_of(trajectory, slice(1, 5)).per_sample["reference_tokens"]
    assert torch.equal(of_samples, tokens[[0, 0, 1, 1]])


# What a sample depends on


@pytest.mark.parametrize("shared", ["true", "false"], ids=["shared noise", "independent noise"])
def test_a_sample_does_not_depend_on_its_batch(
    policy: Flux1Policy, recipe: Recipe, examples: list[Example], shared: str
) -> None:
    noise = f"rollout.shared_noise={shared}"
    whole = draw(policy, recipe(noise, "rollout.batch_size=6"), examples)
    assert_close(draw(policy, recipe(noise, "rollout.batch_size=1"), examples), whole)
    assert_close(draw(policy, recipe(noise, "rollout.batch_size=4"), examples), whole)
    assert_close(draw(policy, recipe(noise), examples[1:]), whole, rows=slice(GROUP, None))


def test_a_group_starts_from_one_noise_only_when_it_is_shared(
    policy: Flux1Policy, recipe: Recipe, examples: list[Example]
) -> None:
    shared = draw(policy, recipe("rollout.shared_noise=true"), examples)
    start = shared.x[0].unflatten(0, (2, GROUP))
    assert torch.equal(start, start[:, :1].expand_as(start))
    assert not torch.equal(start[0, 0], start[1, 0]), "groups must not share their noise"
    alone = draw(policy, recipe("rollout.shared_noise=false"), examples)
    for trajectory, step in ((shared, 1), (alone, 0), (alone, 1)):
        states = trajectory.x[step].flatten(1)
        assert torch.cdist(states, states).fill_diagonal_(1).min() > 1e-3, "two samples are the same"


@pytest.mark.parametrize("shared", ["true", "false"], ids=["shared noise", "independent noise"])
def test_a_row_drawn_twice_gives_no_sample_twice(
    policy: Flux1Policy, recipe: Recipe, examples: list[Example], shared: str
) -> None:
    config = recipe(f"rollout.shared_noise={shared}")
    once = draw(policy, config, examples)
    twice = draw(policy, config, [examples[0], examples[1], examples[0]])
    assert_close(once, twice, rows=slice(2 * GROUP))
    images = twice.images.flatten(1)
    assert torch.cdist(images, images).fill_diagonal_(1).min() > 1e-3, "two samples are the same"
    # a process that is given the second group only
    alone = draw(policy, config, examples[:1], repeats=[1])
    assert_close(alone, twice, rows=slice(2 * GROUP, None))


def test_the_same_seeds_give_the_same_bits_and_others_do_not(
    policy: Flux1Policy, recipe: Recipe, examples: list[Example]
) -> None:
    config = recipe()
    first = draw(policy, config, examples, seeds=(5, 7))
    torch.manual_seed(1)  # no global generator may matter
    assert_same_bits(first, draw(policy, config, examples, seeds=(5, 7)))
    for seeds in ((6, 7), (5, 8)):
        other = draw(policy, config, examples, seeds=seeds)
        assert not torch.isclose(first.x[0], other.x[0]).all(-1).any(), seeds
        assert not torch.isclose(first.x_next[0], other.x_next[0]).all(-1).any(), seeds


def test_prompts_with_other_references_are_denoised_apart_and_to_the_same_samples(
    policy: Flux1Policy, recipe: Recipe, examples: list[Example]
) -> None:
    first, second = examples
    both = dataclasses.replace(second, references=(*second.references, *first.references))
    mixed = draw(policy, recipe("rollout.batch_size=6"), [first, both, first])
    assert_close(draw(policy, recipe(), [first]), mixed, rows=slice(0, GROUP))
    assert_close(draw(policy, recipe(), [both]), mixed, rows=slice(GROUP, 2 * GROUP))
    assert not torch.equal(draw(policy, recipe(), [second]).images, mixed.images[GROUP : 2 * GROUP])
    assert list(sample_batches(mixed.buckets, GROUP, slice(0, 9), 6)) == [
        slice(0, 3),
        slice(3, 6),
        slice(6, 9),
    ]


def test_batches_fill_up_within_a_bucket_and_never_cross_one() -> None:
    def split(buckets: str, size: int, rows: slice = slice(0, 12)) -> list[tuple[int, int]]:
        return [(b.start, b.stop) for b in sample_batches(buckets, 3, rows, size)]

    assert split("aaaa", 5) == [(0, 5), (5, 10), (10, 12)]
    assert split("aabb", 12) == [(0, 6), (6, 12)]
    assert split("abba", 4) == [(0, 3), (3, 7), (7, 9), (9, 12)]
    assert split("aabb", 4, slice(3, 9)) == [(3, 6), (6, 9)]


# What is kept


def test_states_chain_through_the_trained_steps(
    policy: Flux1Policy, recipe: Recipe, examples: list[Example]
) -> None:
    trajectory = draw(policy, recipe(), examples)
    assert trajectory.x.shape == (3, 2 * GROUP, 16, 160)
    for step in range(2):
        assert torch.equal(trajectory.x_next[step], trajectory.x[step + 1])


def test_steps_are_true_indices_of_the_states_they_name(
    policy: Flux1Policy, recipe: Recipe, examples: list[Example]
) -> None:
    every = draw(policy, recipe(), examples)
    some = draw(policy, recipe(), examples, plan=StepPlan(frozenset({0, 1, 2}), [0, 2]))
    assert some.steps == [0, 2]
    for name in ("x", "x_next", "log_prob"):
        assert torch.equal(getattr(some, name), getattr(every, name)[[0, 2]]), name
    assert torch.equal(some.images, every.images), "what is trained must not change what is drawn"


@pytest.mark.parametrize("name", ["dance", "flow", "cps", "ddim", "dance_exact", "flow_exact"])
def test_replaying_stored_states_as_training_does_gives_the_same_log_prob_bit_for_bit(
    policy: Flux1Policy, recipe: Recipe, examples: list[Example], name: str
) -> None:
    config = recipe(f"rollout.sampler={name}", "rollout.eta=0.7")
    trajectory = draw(policy, config, examples)
    sampler = build_sampler(policy, config.rollout, *SIZE)
    everyone = conditioning_of(trajectory, slice(0, len(trajectory)))
    for k, step in enumerate(trajectory.steps):
        mean, std = sampler.transition(policy, trajectory.x[k], step, everyone)
        assert mean.requires_grad, "the replay is the pass that carries the gradient"
        replayed = samplers.log_prob(trajectory.x_next[k], mean, std)
        assert torch.equal(replayed, trajectory.log_prob[k]), step


def test_means_are_kept_only_when_asked_for(
    policy: Flux1Policy, recipe: Recipe, examples: list[Example]
) -> None:
    assert draw(policy, recipe(), examples).mean is None
    trajectory = draw(policy, recipe(), examples, keep_means=True)
    assert trajectory.mean is not None
    drawn = trajectory.x_next - trajectory.mean
    assert 0.9 < float((drawn[0] / (0.8 * (trajectory.sigmas[0] - trajectory.sigmas[1]).sqrt())).std()) < 1.1


# The window of noise


def test_noise_is_drawn_inside_the_window_only(
    policy: Flux1Policy, recipe: Recipe, examples: list[Example]
) -> None:
    config = recipe()
    start = draw(policy, config, examples).x[0]
    windowed = draw(policy, config, examples, plan=StepPlan(frozenset({1}), [1]), keep_means=True)
    ode = Sampler(ODE, 0.0, windowed.sigmas)
    everyone = conditioning_of(windowed, slice(0, len(windowed)))
    assert windowed.mean is not None
    with torch.no_grad():
        before, _ = ode.transition(policy, start, 0, everyone)
        assert torch.equal(windowed.x[0], before), "the step before the window drew noise"
        assert (windowed.x_next[0] - windowed.mean[0]).std() > 0.1, "the step in the window drew none"
        x = windowed.x_next[0]
        for step in (2, 3):
            x, _ = ode.transition(policy, x, step, everyone)
        assert torch.equal(windowed.images, policy.decode(x, *SIZE)), "a step after the window drew noise"


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.trained_fraction=1.0"],
        ["train.trained_fraction=0.6"],
        ["train.trained_fraction=0.01"],
        ["rollout.sde_window={size: 4, shift_every: 2, start: 0}"],
        ["rollout.sde_window={size: 1, shift_every: 1, start: 9}"],
        ["rollout.sde_window={size: 3, shift_every: 0, start: 2}"],
    ],
    ids=" ".join,
)
def test_the_last_step_is_never_noisy_nor_trained(recipe: Recipe, overrides: list[str]) -> None:
    config = recipe("rollout.steps=12", *overrides)
    for iteration in range(40):
        plan = plan_steps(config.rollout, config.train.trained_fraction, iteration, 0)
        assert 11 not in plan.noisy
        assert set(plan.trained) <= plan.noisy <= set(range(11))
        assert plan.trained == sorted(set(plan.trained))
        assert plan.trained


def test_a_window_slides_and_stays_when_told_to(recipe: Recipe) -> None:
    def first_steps(shift_every: int) -> list[int]:
        config = recipe(
            "rollout.steps=6", f"rollout.sde_window={{size: 2, shift_every: {shift_every}, start: 1}}"
        )
        return [plan_steps(config.rollout, 1.0, iteration, 0).trained[0] for iteration in range(8)]

    assert first_steps(2) == [1, 1, 2, 2, 3, 3, 3, 3]
    assert first_steps(0) == [1] * 8


def test_trained_steps_are_drawn_anew_in_each_iteration_and_again_for_the_same_one(recipe: Recipe) -> None:
    config = recipe("rollout.steps=11")
    plans = [plan_steps(config.rollout, 0.6, iteration, 0).trained for iteration in range(30)]
    assert all(len(steps) == 6 for steps in plans)
    assert {step for steps in plans for step in steps} == set(range(10))
    assert len({tuple(steps) for steps in plans}) > 10
    assert plan_steps(config.rollout, 0.6, 3, 0).trained == plans[3]


# Stopping and evaluation


def test_a_rollout_can_be_stopped_before_every_batch(
    policy: Flux1Policy, recipe: Recipe, examples: list[Example]
) -> None:
    calls = []

    def before_batch() -> None:
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(policy, recipe("rollout.batch_size=2"), examples, before_batch=before_batch)
    assert len(calls) == 3


def as_pil(image: Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())


def test_sampling_without_noise_is_the_pipelines_own_call(
    policy: Flux1Policy, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    references = [(e.references[0] * 255).round() / 255 for e in examples]  # as a PNG holds them
    prompts = [example.prompt for example in examples]

    def seeds() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in (1, 2)]

    def theirs(output: str) -> Any:
        return policy.pipe(
            image=[as_pil(image) for image in references],
            prompt=prompts,
            height=64,
            width=64,
            max_area=64 * 64,
            _auto_resize=False,
            max_sequence_length=policy.max_text_tokens,
            num_inference_steps=4,
            guidance_scale=policy.guidance,
            generator=seeds(),
            output_type=output,
        ).images

    policy.pipe.set_progress_bar_config(disable=True)
    decoded = []
    decode = policy.decode

    def keep(x: Tensor, height: int, width: int) -> Tensor:
        decoded.append(x)
        return decode(x, height, width)

    monkeypatch.setattr(policy, "decode", keep)
    conditioning = policy.encode(prompts, [[image] for image in references], *SIZE)
    images = sample_images(policy, conditioning, seeds(), policy.sigmas(4, policy.n_tokens(*SIZE)), 1)
    assert torch.allclose(torch.cat(decoded), theirs("latent"), atol=1e-4, rtol=0)
    assert torch.allclose(images, theirs("pt"), atol=1e-4, rtol=0)
