"""NFT and AWM in the loop: gradients against ones written by hand, the old policy, and what a sample sees."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from customized_grpo.algorithms.advantages import group_advantages, valid_samples
from customized_grpo.config import Config, load_config
from customized_grpo.errors import UserError
from customized_grpo.kinds import PAIR
from customized_grpo.policies.policy import Policy
from customized_grpo.rollout.batches import sample_conditioning
from customized_grpo.rollout.clean_images import CleanSamples
from customized_grpo.training.algorithm import Draw, ForwardProcess, build_algorithm
from customized_grpo.training.parts import Parts, build_engine, open_parts
from customized_grpo.training.signal import LearningSignal
from customized_grpo.training.updater import Updater

GROUP, PROMPTS = 3, 2
N = GROUP * PROMPTS
SMALL = (f"train.group_size={GROUP}", f"train.prompts_per_iteration={PROMPTS}", "train.max_grad_norm=1e9")
ODE = ("rollout.sampler=ode", "rollout.eta=0", "rollout.shared_noise=false")


@dataclass
class Setting:
    """One iteration of a small run in the world of two scales, whose adapter does something."""

    parts: Parts
    algorithm: ForwardProcess

    @property
    def config(self) -> Config:
        return self.parts.config

    @property
    def policy(self) -> Policy:
        return self.parts.policy

    def draw(self, iteration: int = 0, batch: int | None = None) -> CleanSamples:
        examples = [self.parts.data.train[row] for row in range(PROMPTS)]
        return self.algorithm.draw(Draw(examples, iteration))

    def gradient(self, samples: CleanSamples, signal: LearningSignal) -> Tensor:
        """Return the gradient of the sum of all terms, as one vector."""
        for parameter in self.policy.trainable_parameters():
            parameter.grad = None
        for term in self.algorithm.loss.terms(samples, signal, 0):
            term.loss.backward()  # type: ignore[no-untyped-call]
        gradients = []
        for parameter in self.policy.trainable_parameters():
            assert parameter.grad is not None
            gradients.append(parameter.grad.flatten())
        return torch.cat(gradients)

    def disturb(self, seed: int, size: float = 0.05) -> None:
        """Move the trained adapter."""
        noise = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.policy.trainable_parameters():
                parameter.add_(size * torch.randn(parameter.shape, generator=noise))


MakeSetting = Callable[..., Setting]


@pytest.fixture
def make_setting() -> Iterator[MakeSetting]:
    opened: list[Any] = []

    def make(*overrides: str) -> Setting:
        config = load_config("two-scale", [*SMALL, "run.dir=runs/unused", *overrides])
        context = open_parts(config, build_engine(config))
        parts = context.__enter__()
        opened.append(context)
        algorithm = build_algorithm(parts, parts.engine.partition(config.train.updates_per_iteration))
        assert isinstance(algorithm, ForwardProcess)
        setting = Setting(parts, algorithm)
        setting.disturb(1)
        algorithm.finish_iteration(0)  # the old policy is the trained one now
        return setting

    yield make
    for context in opened:
        context.__exit__(None, None, None)


def make_signal(setting: Setting, rewards: Tensor | None = None) -> LearningSignal:
    if rewards is None:
        rewards = torch.randn(N, 2, generator=torch.Generator().manual_seed(4))
    return LearningSignal(
        names=("two_scale_prompt", "two_scale_identity"),
        scores=rewards,
        asked=torch.ones_like(rewards, dtype=torch.bool),
        kinds=PAIR,
        advantages=group_advantages(rewards, GROUP),
        rewards=rewards,
        present=torch.ones_like(rewards, dtype=torch.bool),
        valid=valid_samples(rewards, GROUP),
        weights=torch.full((setting.config.rollout.steps,), math.nan),  # those of steps are never asked for
        quality_weight=0.5,
    )


def advantage_by_hand(signal: LearningSignal, progress: float) -> Tensor:
    """SARS + TDW from the paper's equations, at a progress between steps."""
    prompt, identity = signal.advantages.unbind(1)
    falling = 0.3 + 0.4 / (1 + math.exp(20 * (progress - 0.4)))
    weight = 0.7 if progress < 0.24 else 0.5 if progress >= 0.88 else falling
    sign = torch.where((prompt <= 0) & (identity <= 0), -1.0, 1.0)
    bonus = 0.4 * sign * torch.tanh(prompt * identity)
    return (weight * prompt + (1 - weight) * identity + bonus).clamp(-5, 5)


def gradient_by_hand(setting: Setting, samples: CleanSamples, signal: LearningSignal) -> Tensor:
    """Differentiate the loss written out on the whole batch, level after level."""
    config = setting.config
    everyone = sample_conditioning(samples.conditionings, GROUP, slice(0, N))
    total = torch.zeros(())
    kept = signal.valid
    for level in range(len(samples.sigmas)):
        sigma = float(samples.sigmas[level])
        advantage = advantage_by_hand(signal, float(samples.progress[level]))
        noise = samples.noise(setting.policy, level, slice(0, N))
        x = (1 - sigma) * samples.clean + sigma * noise
        velocity = setting.policy.velocity(x, sigma, everyone)
        with setting.algorithm.old.in_place():
            old = setting.policy.velocity(x, sigma, everyone)
        if config.train.algorithm == "awm":
            distances = [(v - noise + samples.clean).square().mean((1, 2)) for v in (velocity, old)]
            ratio = (sigma * (distances[1] - distances[0])).exp()
            each = -advantage * ratio
            clipped = -advantage * ratio.clamp(1 - 0.02, 1 + 0.02)
            each = torch.maximum(each, clipped)
        else:
            each = nft_by_hand(x, samples.clean, sigma, velocity, old, advantage, config.train.nft.beta)
        total = total + each[kept].sum()
    loss = total / (int(kept.sum()) * len(samples.sigmas))
    gradients = torch.autograd.grad(loss, setting.policy.trainable_parameters())
    return torch.cat([gradient.flatten() for gradient in gradients])


def nft_by_hand(
    x: Tensor, clean: Tensor, sigma: float, velocity: Tensor, old: Tensor, advantage: Tensor, beta: float
) -> Tensor:
    share = (0.5 + advantage / 10).clamp(0, 1)
    total = torch.zeros(N)
    for policy, weight in (
        ((1 - beta) * old + beta * velocity, share),
        ((1 + beta) * old - beta * velocity, 1 - share),
    ):
        error = x - sigma * policy - clean
        scale = error.detach().abs().mean((1, 2)).clamp_min(1e-5)
        total = total + weight * error.square().mean((1, 2)) / scale
    return 5 / beta * total


def relative_difference(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).norm() / expected.norm())


@pytest.mark.parametrize("micro_batch_size", [6, 4, 1])
@pytest.mark.parametrize(
    "overrides",
    [
        ("train.algorithm=nft", "train.nft.beta=0.3"),
        ("train.algorithm=nft", *ODE),
        ("train.algorithm=awm", "train.awm.weighting=sigma", "train.awm.clip_range=0.02"),
    ],
    ids=["nft", "nft-ode", "awm"],
)
def test_the_gradient_is_that_of_the_whole_batch_written_by_hand(
    make_setting: MakeSetting, overrides: tuple[str, ...], micro_batch_size: int
) -> None:
    setting = make_setting(f"train.micro_batch_size={micro_batch_size}", *overrides)
    samples, signal = setting.draw(), make_signal(setting)
    setting.disturb(2)  # off-policy: the old and the trained velocity differ
    expected = gradient_by_hand(setting, samples, signal)
    assert relative_difference(setting.gradient(samples, signal), expected) < 1e-5


def test_a_sample_without_a_reward_has_no_influence(make_setting: MakeSetting) -> None:
    setting = make_setting("train.algorithm=nft")
    samples = setting.draw()
    rewards = torch.randn(N, 2, generator=torch.Generator().manual_seed(4))
    rewards[1, 1] = math.nan
    signal = make_signal(setting, rewards)
    gradient = setting.gradient(samples, signal)
    assert relative_difference(gradient, gradient_by_hand(setting, samples, signal)) < 1e-5
    setting.disturb(2)  # on-policy a sample without advantage has no gradient in any case
    gradient = setting.gradient(samples, signal)
    assert relative_difference(gradient, gradient_by_hand(setting, samples, signal)) < 1e-5
    samples.clean[1] += 3.0
    assert torch.equal(setting.gradient(samples, signal), gradient)


# The old policy


def test_the_old_policy_draws_and_not_the_trained_one(make_setting: MakeSetting) -> None:
    setting = make_setting("train.algorithm=nft")
    before = setting.draw().clean
    setting.disturb(2)
    assert torch.equal(setting.draw().clean, before)
    setting.algorithm.finish_iteration(0)
    assert not torch.equal(setting.draw().clean, before)


def test_the_old_policy_follows_by_its_schedule(make_setting: MakeSetting) -> None:
    setting = make_setting("train.algorithm=awm", "train.forward.old_growth=0.1")
    old = setting.algorithm.old
    first = old.tensors()
    setting.disturb(2)
    trained = setting.policy.adapter_tensors()
    old.follow(2)
    for name, tensor in old.tensors().items():
        assert torch.allclose(tensor, 0.2 * first[name] + 0.8 * trained[name], atol=1e-7), name
    old.follow(0)
    assert all(torch.equal(tensor, trained[name]) for name, tensor in old.tensors().items())


def test_on_policy_the_ratios_of_awm_are_1_and_nft_has_none(make_setting: MakeSetting) -> None:
    setting = make_setting("train.algorithm=awm")
    terms = list(setting.algorithm.loss.terms(setting.draw(), make_signal(setting), 0))
    assert all(term.ratio is not None and torch.equal(term.ratio, torch.ones(N)) for term in terms)
    assert [term.clip_fraction for term in terms] == [0.0] * 4
    nft = make_setting("train.algorithm=nft")
    report = Updater(nft.config, nft.algorithm.loss, nft.parts.engine).update(nft.draw(), make_signal(nft), 0)
    metrics = report.metrics()
    assert not {"policy/ratio_mean", "policy/ratio_max_deviation", "policy/clip_fraction"} & set(metrics)
    assert metrics["policy/grad_norm"] > 0 and math.isfinite(metrics["policy/loss"])


@pytest.mark.parametrize("reference", ["base", "old"])
def test_the_kl_is_the_distance_of_velocities_from_its_reference(
    make_setting: MakeSetting, reference: str
) -> None:
    overrides = ("train.algorithm=nft", "train.kl_weight=0.5", f"train.kl_reference={reference}")
    setting = make_setting(*overrides)
    samples, signal = setting.draw(), make_signal(setting)
    setting.disturb(2)
    everyone = sample_conditioning(samples.conditionings, GROUP, slice(0, N))
    other = setting.policy.reference if reference == "base" else setting.algorithm.old.in_place
    for level, term in enumerate(setting.algorithm.loss.terms(samples, signal, 0)):
        sigma = float(samples.sigmas[level])
        x = torch.lerp(samples.clean, samples.noise(setting.policy, level, slice(0, N)), sigma)
        with torch.no_grad():
            velocity = setting.policy.velocity(x, sigma, everyone)
            with other():
                distance = (velocity - setting.policy.velocity(x, sigma, everyone)).square().mean()
        assert term.kl == pytest.approx(float(distance), rel=1e-5)
        assert term.kl > 0


# What is drawn


def test_all_samples_share_the_levels_of_an_iteration_and_iterations_differ(
    make_setting: MakeSetting,
) -> None:
    setting = make_setting("train.algorithm=nft", "train.forward.levels=3")
    first, again, later = setting.draw(0), setting.draw(0), setting.draw(1)
    assert first.sigmas.shape == (3,)
    assert torch.equal(first.sigmas, again.sigmas)
    assert not torch.equal(first.sigmas, later.sigmas)
    assert bool((first.sigmas.diff() < 0).all()), "progress ascends, levels fall"


def test_samples_and_the_noise_they_get_do_not_depend_on_the_batch(make_setting: MakeSetting) -> None:
    whole = make_setting("train.algorithm=nft", "rollout.batch_size=6").draw()
    setting = make_setting("train.algorithm=nft", "rollout.batch_size=4")
    cut = setting.draw()
    assert torch.allclose(whole.clean, cut.clean, atol=1e-5)
    noise = cut.noise(setting.policy, 1, slice(0, N))
    assert torch.equal(noise[2:5], cut.noise(setting.policy, 1, slice(2, 5)))
    assert len(torch.unique(noise[:, 0, 0])) == N, "every sample has its own"
    assert not torch.equal(noise, cut.noise(setting.policy, 2, slice(0, N)))


def test_a_group_that_takes_the_place_of_another_is_trained_as_if_it_had_been_drawn_there(
    make_setting: MakeSetting,
) -> None:
    setting = make_setting("train.algorithm=nft", f"rollout.batch_size={GROUP}")
    rows = setting.parts.data.train

    def draw(*numbers: int, repeats: list[int]) -> CleanSamples:
        return setting.algorithm.draw(Draw([rows[number] for number in numbers], 0, repeats=repeats))

    samples = draw(0, 1, repeats=[0, 0])
    samples.replace_groups([1], draw(0, repeats=[1]))
    expected = draw(0, 0, repeats=[0, 1])
    everyone = slice(0, N)
    for name in ("clean", "images", "prompt_ids", "first_numbers", "buckets"):
        ours, theirs = getattr(samples, name), getattr(expected, name)
        assert torch.equal(ours, theirs) if isinstance(ours, Tensor) else ours == theirs, name
    noise = [drawn.noise(setting.policy, 0, everyone) for drawn in (samples, expected)]
    assert torch.equal(*noise)
    given = [sample_conditioning(drawn.conditionings, GROUP, everyone) for drawn in (samples, expected)]
    for name, tensor in given[1].per_sample.items():
        assert torch.equal(given[0].per_sample[name], tensor), name


def test_a_checkpoint_of_grpo_has_no_old_policy(make_setting: MakeSetting) -> None:
    setting = make_setting("train.algorithm=nft")
    with pytest.raises(UserError, match="no old policy"):
        setting.algorithm.load({"adapter": {}})
    with pytest.raises(UserError, match="other tensors"):
        setting.algorithm.load({"old": {"elsewhere": torch.zeros(1)}})
