"""The update: its gradient against one written by hand, its weights, and what it refuses to do."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from customized_grpo.algorithms import advantages
from customized_grpo.algorithms.rules import Rule, combine
from customized_grpo.algorithms.schedules import Tdw, prompt_weights
from customized_grpo.config import Config
from customized_grpo.data.examples import Example
from customized_grpo.engine.engine import Engine
from customized_grpo.errors import UserError
from customized_grpo.kinds import PAIR
from customized_grpo.policies.conditioning import Conditioning
from customized_grpo.policies.flux1 import Flux1Policy
from customized_grpo.rollout.batches import sample_conditioning
from customized_grpo.rollout.collect import NoiseKey, collect
from customized_grpo.rollout.encoding import PromptEncoder
from customized_grpo.rollout.sampler import Sampler, StepPlan, build_sampler
from customized_grpo.rollout.trajectory import Trajectory
from customized_grpo.training import signal
from customized_grpo.training.losses import UpdateLoss
from customized_grpo.training.parts import build_policy
from customized_grpo.training.signal import LearningSignal
from customized_grpo.training.update_report import UpdateReport
from customized_grpo.training.updater import Updater, average_decay, rate_factor, ratio_tolerance

Recipe = Callable[..., Config]
GROUP, STEPS = 3, 8
SIDE = 32  # pixels; nothing here depends on the size of images
TRAINED = [0, 2, 5]  # three phases of the schedule, and not consecutive
UNCLIPPED = "train.max_grad_norm=1e9"


@dataclass
class Parts:
    """One iteration's samples, and everything that updates on them."""

    config: Config
    policy: Flux1Policy
    sampler: Sampler
    trajectory: Trajectory
    signal: LearningSignal
    updater: Updater

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return self.policy.trainable_parameters()

    def values(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.parameters]

    def update(self, **changes: Tensor) -> UpdateReport:
        """Update on the trajectory, some of its tensors replaced."""
        trajectory = dataclasses.replace(self.trajectory, **changes)  # type: ignore[arg-type]
        return self.updater.update(trajectory, self.signal, 0)

    def gradient(self) -> Tensor:
        """Return what the last update left on the parameters, as one vector."""
        gradients = []
        for parameter in self.parameters:
            assert parameter.grad is not None
            gradients.append(parameter.grad.flatten())
        return torch.cat(gradients)


MakeParts = Callable[..., Parts]


@pytest.fixture(scope="module")
def make_parts(
    recipe: Recipe, make_adapted: Callable[[Config], Flux1Policy], examples: list[Example]
) -> MakeParts:
    # by all that they depend on: policies of one recipe are equal, and nothing writes into a trajectory
    drawn: dict[object, Trajectory] = {}

    def make(
        *overrides: str,
        trained: list[int] = TRAINED,
        rewards: Tensor | None = None,
        fresh: bool = False,
        keeps_graphs: bool = False,
    ) -> Parts:
        config = recipe(f"rollout.steps={STEPS}", UNCLIPPED, *overrides)
        policy = build_policy(config) if fresh else make_adapted(config)
        sampler = build_sampler(policy, config.rollout, SIDE, SIDE)
        keeps_means = config.train.ratio_normalisation
        key = (repr(config.model), repr(config.rollout), tuple(trained), fresh, keeps_means)
        trajectory = None if keeps_graphs else drawn.get(key)
        if trajectory is None:
            trajectory = collect(
                policy,
                sampler,
                examples,
                config.rollout,
                encoder=PromptEncoder(policy, (SIDE, SIDE)),
                group_size=GROUP,
                plan=StepPlan(frozenset(range(STEPS - 1)), trained),
                noise_key=NoiseKey(0, 0),
                keep_means=keeps_means,
                keep_graphs=lambda buckets, conditionings: keeps_graphs,
            )
        if not keeps_graphs:
            drawn[key] = trajectory
        if rewards is None:
            rewards = torch.randn(2 * GROUP, 2, generator=torch.Generator().manual_seed(4))
        signal = LearningSignal(
            names=("clip_t", "dino"),
            scores=rewards,
            asked=torch.ones_like(rewards, dtype=torch.bool),
            kinds=PAIR,
            advantages=advantages.group_advantages(rewards, GROUP),
            rewards=rewards,
            present=torch.ones_like(rewards, dtype=torch.bool),
            valid=advantages.valid_samples(rewards, GROUP),
            weights=prompt_weights(Tdw(), STEPS),
            quality_weight=config.advantage.quality_weight,
        )
        engine = Engine(policy.device)
        partition = engine.partition(config.train.updates_per_iteration)
        updater = Updater(config, UpdateLoss(config, policy, sampler, partition), engine)
        return Parts(config, policy, sampler, trajectory, signal, updater)

    return make


def gradient_by_hand(parts: Parts, kept: list[int]) -> Tensor:
    """Differentiate Customized-GRPO's loss, written out on the whole batch from the paper's equations.

    At ratio 1, L = -1/(N S) sum over samples n and steps t of A_n(t) log p(x'_nt | x_nt), with
    A_n(t) = w(t) A_p + (1 - w(t)) A_id + gamma s tanh(A_p A_id).
    """
    trajectory, eta = parts.trajectory, parts.config.rollout.eta
    prompt, identity = parts.signal.advantages.unbind(1)
    sign = torch.where((prompt <= 0) & (identity <= 0), -1.0, 1.0)
    bonus = 0.4 * sign * torch.tanh(prompt * identity)
    everyone = conditioning_of_all(trajectory)
    total = torch.zeros(())
    for k, step in enumerate(trajectory.steps):
        sigma, sigma_next = trajectory.sigmas[step], trajectory.sigmas[step + 1]
        u = step / STEPS
        weight = 0.7 if u < 0.24 else 0.5 if u >= 0.88 else 0.3 + 0.4 / (1 + math.exp(20 * (u - 0.4)))
        advantage = (weight * prompt + (1 - weight) * identity + bonus).clamp(-5, 5)
        x = trajectory.x[k]
        velocity = parts.policy.velocity(x, float(sigma), everyone)
        noise = x + (1 - sigma) * velocity
        delta = sigma - sigma_next
        mean = x - delta * velocity - eta**2 / 2 * delta / sigma * noise
        normal = torch.distributions.Normal(mean, eta * delta.sqrt())
        log_prob = normal.log_prob(trajectory.x_next[k]).mean((1, 2))
        total = total - (advantage * log_prob)[kept].sum()
    loss = total / (len(kept) * len(trajectory.steps))
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parts.parameters)])


def conditioning_of_all(trajectory: Trajectory) -> Conditioning:
    return sample_conditioning(trajectory.conditionings, GROUP, slice(0, len(trajectory)))


def relative_difference(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).norm() / expected.norm())


# The first pass


@pytest.mark.parametrize("sampler", ["dance", "cps"])
def test_the_first_pass_has_ratio_exactly_1_and_clips_nothing(make_parts: MakeParts, sampler: str) -> None:
    report = make_parts(f"rollout.sampler={sampler}").update()
    assert report.first.terms == len(TRAINED) * 2 * GROUP
    assert report.first.deviation == 0.0
    assert report.metrics()["policy/ratio_mean"] == 1.0
    assert report.metrics()["policy/clip_fraction"] == 0.0
    assert report.metrics()["policy/grad_norm"] > 0


def test_another_policy_than_the_one_that_drew_the_samples_is_found_out(make_parts: MakeParts) -> None:
    parts = make_parts()
    with torch.no_grad():
        parts.parameters[1].add_(0.1)
    before = parts.values()
    with pytest.raises(UserError, match="ratio 1"):
        parts.update()
    assert all(map(torch.equal, before, parts.values()))


@pytest.mark.parametrize(
    ("precision", "clip_range", "tolerance"),
    [("bf16", 1e-4, 5e-5), ("bf16", 0.2, 1e-3), ("fp32", 1e-4, 1e-5), ("fp32", 1e-6, 5e-7)],
)
def test_a_first_pass_may_not_come_near_the_clip_range(
    recipe: Recipe, precision: str, clip_range: float, tolerance: float
) -> None:
    config = recipe(f"model.precision={precision}", f"train.clip_range={clip_range}")
    assert ratio_tolerance(config) == pytest.approx(tolerance)


def test_a_second_pass_moves_the_ratio_and_clips(make_parts: MakeParts) -> None:
    report = make_parts("train.inner_epochs=2", "train.learning_rate=1e-2").update()
    assert report.first.deviation == 0.0
    assert report.all.deviation > 1e-4
    assert report.metrics()["policy/clip_fraction"] > 0


# The gradient


@pytest.mark.parametrize("micro_batch_size", [6, 4, 1])
def test_the_gradient_is_that_of_the_whole_batch_written_by_hand(
    make_parts: MakeParts, micro_batch_size: int
) -> None:
    parts = make_parts(f"train.micro_batch_size={micro_batch_size}")
    expected = gradient_by_hand(parts, kept=list(range(2 * GROUP)))
    report = parts.update()
    assert relative_difference(parts.gradient(), expected) < 1e-5
    assert report.grad_norms == [pytest.approx(float(expected.norm()), rel=1e-5)]


def test_each_update_sees_its_own_whole_groups(make_parts: MakeParts) -> None:
    parts = make_parts("train.updates_per_iteration=2")
    first_group = gradient_by_hand(parts, kept=[0, 1, 2])
    report = parts.update()
    assert len(report.grad_norms) == 2
    assert report.grad_norms[0] == pytest.approx(float(first_group.norm()), rel=1e-5)


def test_long_gradients_are_scaled_down_to_the_limit(make_parts: MakeParts) -> None:
    parts = make_parts("train.max_grad_norm=1e-6")
    report = parts.update()
    assert report.grad_norms[0] > 1e-5, "what is reported is the norm before"
    assert float(parts.gradient().norm()) == pytest.approx(1e-6, rel=1e-3)


# Advantages and weights


@pytest.mark.parametrize(
    "order", [[0, 2, 5], [5, 0, 2], [2], [6, 4, 3, 1]], ids=lambda order: f"steps {order}"
)
def test_two_advantages_reach_every_step_with_the_weights_of_its_true_index(
    make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch, order: list[int]
) -> None:
    parts = make_parts(trained=sorted(order))
    rows = [sorted(order).index(step) for step in order]
    trajectory = parts.trajectory
    shuffled = dataclasses.replace(
        trajectory,
        steps=order,
        x=trajectory.x[rows],
        x_next=trajectory.x_next[rows],
        log_prob=trajectory.log_prob[rows],
    )
    seen: list[tuple[Tensor, Tensor]] = []

    def spy(rule: Rule, values: Tensor, weights: Tensor, **options: Any) -> Tensor:
        seen.append((values, weights))
        return combine(rule, values, weights, **options)

    monkeypatch.setattr(signal, "combine", spy)
    parts.updater.update(shuffled, parts.signal, 0)
    weights = prompt_weights(Tdw(), STEPS)
    assert weights.unique().numel() > 4, "the test needs weights that tell steps apart"
    assert [float(w[0]) for _, w in seen] == [float(weights[step]) for step in order]
    assert [float(w[1]) for _, w in seen] == [float(1 - weights[step]) for step in order]
    assert all(torch.equal(values, parts.signal.advantages) for values, _ in seen)
    assert parts.signal.advantages.shape == (2 * GROUP, 2)


def test_the_order_in_which_steps_are_visited_does_not_change_the_gradient(make_parts: MakeParts) -> None:
    straight, turned = make_parts(), make_parts()
    straight.update()
    trajectory = turned.trajectory
    turned.updater.update(
        dataclasses.replace(
            trajectory,
            steps=trajectory.steps[::-1],
            x=trajectory.x.flip(0),
            x_next=trajectory.x_next.flip(0),
            log_prob=trajectory.log_prob.flip(0),
        ),
        turned.signal,
        0,
    )
    assert relative_difference(turned.gradient(), straight.gradient()) < 1e-5


def some_missing() -> Tensor:
    rewards = torch.randn(2 * GROUP, 2, generator=torch.Generator().manual_seed(4))
    rewards[1, 1] = math.nan
    return rewards


def test_a_sample_without_a_reward_has_no_influence(make_parts: MakeParts) -> None:
    parts = make_parts(rewards=some_missing())
    assert parts.signal.valid.tolist() == [True, False, True, True, True, True]
    expected = gradient_by_hand(parts, kept=[0, 2, 3, 4, 5])
    parts.update()
    clean = parts.gradient()
    assert relative_difference(clean, expected) < 1e-5
    garbled = make_parts(rewards=some_missing())
    x_next, log_prob = garbled.trajectory.x_next.clone(), garbled.trajectory.log_prob.clone()
    x_next[:, 1] += 3.0
    log_prob[:, 1] = math.nan
    garbled.update(x_next=x_next, log_prob=log_prob)
    assert torch.equal(garbled.gradient(), clean)


def test_an_iteration_without_any_reward_changes_nothing(make_parts: MakeParts) -> None:
    parts = make_parts(rewards=torch.full((2 * GROUP, 2), math.nan))
    before = parts.values()
    report = parts.update()
    assert all(map(torch.equal, before, parts.values()))
    assert report.metrics()["policy/loss"] == 0.0


# What is not finite


def broken(parts: Parts) -> Tensor:
    log_prob = parts.trajectory.log_prob.clone()
    log_prob[1, 2] = math.nan
    return log_prob


def test_a_loss_that_is_not_finite_skips_the_step_and_leaves_every_bit(make_parts: MakeParts) -> None:
    parts = make_parts("train.ema_decay=0.5")
    assert parts.updater.average is not None
    before = parts.values()
    report = parts.update(log_prob=broken(parts))
    assert report.skipped == 1
    assert report.grad_norms == []
    assert report.metrics()["health/skipped_updates"] == 1
    assert all(map(torch.equal, before, parts.values()))
    assert all(map(torch.equal, before, parts.updater.average))
    assert parts.updater.optimizer.state_dict()["state"] == {}


def test_a_gradient_that_is_not_finite_skips_the_step(make_parts: MakeParts) -> None:
    parts = make_parts()
    before = parts.values()
    parts.parameters[0].register_hook(lambda gradient: gradient * math.inf)
    report = parts.update()
    assert report.skipped == 1
    assert math.isfinite(report.metrics()["policy/loss"])
    assert all(map(torch.equal, before, parts.values()))


def test_skips_in_a_row_stop_the_run_after_the_budget_and_a_good_step_resets_it(
    make_parts: MakeParts,
) -> None:
    parts = make_parts("train.max_nonfinite_steps=2", "train.learning_rate=1e-12")
    bad = broken(parts)
    parts.update(log_prob=bad)
    parts.update(log_prob=bad)
    assert parts.updater.skipped_in_a_row == 2
    parts.update()
    assert parts.updater.skipped_in_a_row == 0
    parts.update(log_prob=bad)
    parts.update(log_prob=bad)
    with pytest.raises(UserError, match="3 updates in a row") as stopped:
        parts.update(log_prob=bad)
    assert stopped.value.hint is not None and "learning_rate" in stopped.value.hint


# KL, warm-up, average, ratio normalisation


def test_the_kl_of_a_fresh_adapter_is_0_and_grows_once_it_moves(make_parts: MakeParts) -> None:
    parts = make_parts("train.kl_weight=1.0", "train.inner_epochs=2", "train.learning_rate=1e-2", fresh=True)
    report = parts.update()
    assert report.first.kl == 0.0
    assert report.all.kl > 0.0


def test_the_kl_penalty_is_weight_times_the_closed_form(make_parts: MakeParts) -> None:
    plain, penalised = make_parts(), make_parts("train.kl_weight=0.5")
    trajectory, kl = plain.trajectory, 0.0
    everyone = conditioning_of_all(trajectory)
    with torch.no_grad():
        for k, step in enumerate(trajectory.steps):
            mean, std = plain.sampler.transition(plain.policy, trajectory.x[k], step, everyone)
            with plain.policy.reference():
                base, _ = plain.sampler.transition(plain.policy, trajectory.x[k], step, everyone)
            kl += float(((mean - base) ** 2 / (2 * std**2)).mean()) / len(trajectory.steps)
    without, with_penalty = plain.update().metrics(), penalised.update().metrics()
    assert kl > 0
    assert "policy/kl" not in without  # not measured, and so not 0
    assert with_penalty["policy/kl"] == pytest.approx(kl, rel=1e-4)
    assert with_penalty["policy/loss"] - without["policy/loss"] == pytest.approx(0.5 * kl, rel=1e-3)


def test_the_learning_rate_warms_up_linearly_and_then_stays(make_parts: MakeParts) -> None:
    parts = make_parts("train.warmup_iterations=4", "train.learning_rate=8e-4")
    rates = [parts.updater.learning_rate(iteration) for iteration in range(6)]
    assert rates == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 8e-4, 8e-4])
    parts.updater.update(parts.trajectory, parts.signal, 1)
    assert parts.updater.optimizer.param_groups[0]["lr"] == pytest.approx(4e-4)
    assert make_parts("train.learning_rate=8e-4").updater.learning_rate(0) == 8e-4


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_after_the_warm_up_the_learning_rate_falls_as_diffusers_has_it(recipe: Recipe, name: str) -> None:
    from diffusers.optimization import get_scheduler

    settings = ("train.iterations=20", "train.warmup_iterations=4", f"train.learning_rate_schedule={name}")
    train = recipe(*settings).train
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    kind = "constant_with_warmup" if name == "constant" else name
    reference = get_scheduler(kind, optimizer, num_warmup_steps=4, num_training_steps=20)
    expected = [reference.lr_lambdas[0](iteration) for iteration in range(4, 21)]
    assert [rate_factor(train, iteration) for iteration in range(4, 21)] == pytest.approx(expected)
    assert [rate_factor(train, iteration) for iteration in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_the_average_forgets_its_beginning_as_diffusers_has_it(recipe: Recipe) -> None:
    train = recipe("train.ema_decay=0.9", "train.ema_warmup=true").train
    # EMAModel.get_decay without its warm-up: (1 + step) / (10 + step), at most the decay
    assert average_decay(train, 0) == 0.1
    assert average_decay(train, 10) == 11 / 20
    assert average_decay(train, 1000) == 0.9
    assert average_decay(recipe("train.ema_decay=0.9").train, 0) == 0.9


def test_the_average_follows_its_formula_after_every_optimizer_step(make_parts: MakeParts) -> None:
    parts = make_parts("train.ema_decay=0.9", "train.updates_per_iteration=2", "train.learning_rate=1e-2")
    expected, steps = [value.double() for value in parts.values()], []

    def after_step(*_: Any) -> None:
        steps.append(parts.values())

    parts.updater.optimizer.register_step_post_hook(after_step)
    parts.update()
    assert len(steps) == 2
    for values in steps:
        pairs = zip(expected, values, strict=True)
        expected = [0.9 * average + 0.1 * value.double() for average, value in pairs]
    assert parts.updater.average is not None
    for average, wanted in zip(parts.updater.average, expected, strict=True):
        assert torch.allclose(average.double(), wanted, atol=1e-6, rtol=0)
        assert not average.requires_grad


def test_ratio_normalisation_starts_at_1_and_rescales_the_gradient_of_a_step(make_parts: MakeParts) -> None:
    plain = make_parts(trained=[2])
    guarded = make_parts("train.ratio_normalisation=true", trained=[2])
    plain.update()
    report = guarded.update()
    assert report.first.deviation == 0.0
    assert report.metrics()["policy/clip_fraction"] == 0.0
    delta = float(plain.trajectory.sigmas[2] - plain.trajectory.sigmas[3])
    std = plain.config.rollout.eta * math.sqrt(delta)
    assert relative_difference(guarded.gradient(), plain.gradient() * std / delta) < 1e-4


def test_ratio_normalisation_goes_on_after_the_first_pass(make_parts: MakeParts) -> None:
    report = make_parts(
        "train.ratio_normalisation=true", "train.inner_epochs=2", "train.learning_rate=1e-2"
    ).update()
    assert report.first.deviation == 0.0
    assert report.all.deviation > 0.0
    assert report.skipped == 0


def test_attention_in_fp32_moves_the_gradient_by_its_rounding_and_no_sample(make_parts: MakeParts) -> None:
    native = make_parts("model.precision=bf16")
    wide = make_parts("model.precision=bf16", "train.attention_gradients=fp32")
    assert torch.equal(native.trajectory.images, wide.trajectory.images)
    native.update()
    assert wide.update().first.deviation == 0.0
    assert 0 < relative_difference(wide.gradient(), native.gradient()) < 0.02


# Graphs kept from the rollout


@pytest.mark.slow  # all of them together
@pytest.mark.parametrize(
    "overrides",
    [
        ["train.kl_weight=0.1", "rollout.batch_size=4", "train.micro_batch_size=4"],
        ["model.precision=bf16", "train.ratio_normalisation=true"],
        ["model.precision=bf16", "model.gradient_checkpointing=true"],
        ["model.precision=bf16", "model.gradient_checkpointing=true", "model.last_block=image"],
    ],
    ids=["fp32, kl, batches", "bf16, ratio normalisation", "bf16, checkpointing", "bf16, last block cut"],
)
def test_kept_graphs_give_the_same_samples_and_gradient_bit_for_bit_without_a_forward_pass(
    make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    again = make_parts(*overrides)
    kept = make_parts(*overrides, keeps_graphs=True)
    for name in ("x", "x_next", "log_prob", "images"):
        assert torch.equal(getattr(kept.trajectory, name), getattr(again.trajectory, name)), name
    calls: list[bool] = []
    velocity = kept.policy.velocity

    def counting(*arguments: Any) -> Tensor:
        calls.append(torch.is_grad_enabled())
        return velocity(*arguments)

    monkeypatch.setattr(kept.policy, "velocity", counting)
    reports = [again.update(), kept.update()]
    assert not any(calls), "only the base's transitions are computed, without gradients"
    assert torch.equal(kept.gradient(), again.gradient())
    assert reports[0].metrics() == reports[1].metrics()
    assert all(map(torch.equal, kept.values(), again.values()))


def test_no_graph_outlives_the_update_even_of_samples_that_teach_nothing(make_parts: MakeParts) -> None:
    parts = make_parts(keeps_graphs=True, rewards=torch.full((2 * GROUP, 2), math.nan))
    assert len(parts.trajectory.graphs) == len(TRAINED)
    parts.update()
    assert not parts.trajectory.graphs
