"""Competitive degradation in ten seconds: naive GRPO forgets the prompt where SARS does not.

    python examples/toy_degradation.py

A sample is a vector x = (subject, context) drawn from N(mean, SPREAD^2); the policy is the mean. The identity
reward should look at the subject alone but leaks: it also rises when the context resembles that of the
reference image, as it does when a model copies. The prompt reward asks for the opposite context. Below a
critical prompt weight the naive weighted sum copies the reference; SARS at the same weights resists longer,
the more so the larger gamma. Rewards, samples and start are the same for all.

The fourth line of each block is a control: constant weights and a step size that
match SARS to first order (`conflict.matched_constant_weights`). In this toy they do about as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from customized_grpo.algorithms.advantages import group_advantages
from customized_grpo.algorithms.conflict import matched_constant_weights
from customized_grpo.algorithms.rules import Linear, Rule, Sars, combine

SUBJECT, CONTEXT = 6, 6
LEAK, SPREAD = 0.35, 0.15
GROUPS, GROUP_SIZE = 8, 12
LEARNING_RATE, ITERATIONS = 0.01, 3000
CORRELATION = -0.4
"""Correlation of the two rewards over samples of the first policy."""


@dataclass(frozen=True)
class Outcome:
    """The policy's mean after training; one entry for each seed.

    Attributes:
        prompt: Prompt reward of the context, in (-1, 1); below 0 the prompt has been abandoned.
        identity: True similarity of the subject, in (0, 1].
        measured_identity: The leaky reward; above 1 it is deceived.
    """

    prompt: Tensor
    identity: Tensor
    measured_identity: Tensor


def rewards(x: Tensor, reference: Tensor) -> Tensor:
    """Score x [S, n, SUBJECT + CONTEXT] against references [S, 1, SUBJECT]: [S, n, (prompt, identity)]."""
    subject, context = x.split([SUBJECT, CONTEXT], dim=-1)
    toward_reference = context.mean(-1)
    identity = _similarity(subject, reference) + LEAK * toward_reference.tanh()
    prompt = (-1.5 * toward_reference).tanh() - 0.1 * (subject - 0.3 * reference).square().mean(-1)
    return torch.stack([prompt, identity], dim=-1)


def train(rule: Rule, prompt_weight: float, *, step_scale: float = 1.0, seeds: int = 24) -> Outcome:
    """Train one policy per seed with plain policy gradient and return their outcome."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(seeds, 1, SUBJECT, generator=generator) / SUBJECT**0.5
    mean = torch.cat([0.3 * reference, torch.full((seeds, 1, CONTEXT), -0.7)], dim=-1)
    weights = torch.tensor([prompt_weight, 1 - prompt_weight])
    for _ in range(ITERATIONS):
        noise = torch.randn(seeds, GROUPS * GROUP_SIZE, SUBJECT + CONTEXT, generator=generator)
        scores = rewards(mean + SPREAD * noise, reference).flatten(0, 1)
        advantages = group_advantages(scores, GROUP_SIZE)
        advantage = combine(rule, advantages, weights, rewards=scores, group_size=GROUP_SIZE)
        gradient = (advantage.reshape(seeds, -1, 1) * noise).mean(1, keepdim=True)
        mean = mean + step_scale * LEARNING_RATE * gradient
    subject, context = mean.squeeze(1).split([SUBJECT, CONTEXT], dim=-1)
    return Outcome(
        prompt=(-1.5 * context.mean(-1)).tanh(),
        identity=_similarity(subject, reference.squeeze(1)),
        measured_identity=rewards(mean, reference)[:, 0, 1],
    )


def main() -> None:
    """Print the outcome of each rule at three prompt weights."""
    torch.set_num_threads(1)  # the tensors are too small to share
    print(f"{'advantage':<18}{'w_p':>6}{'prompt':>9}{'identity':>10}{'measured':>10}{'collapsed':>11}")
    for prompt_weight in (0.38, 0.40, 0.42):
        matched = matched_constant_weights(prompt_weight, 0.4, CORRELATION, GROUP_SIZE)
        ends = {
            "linear": train(Linear(), prompt_weight),
            "sars, gamma .4": train(Sars(gamma=0.4), prompt_weight),
            "sars, gamma 1": train(Sars(gamma=1.0), prompt_weight),
            "linear, matched": train(Linear(), matched.prompt, step_scale=matched.step_scale),
        }
        for label, end in ends.items():
            prompt = f"{float(end.prompt.mean()):>9.2f}"
            identity = f"{float(end.identity.mean()):>10.2f}"
            measured = f"{float(end.measured_identity.mean()):>10.2f}"
            collapsed = f"{int((end.prompt < 0).sum())}/{len(end.prompt)}"
            print(f"{label:<18}{prompt_weight:>6.2f}{prompt}{identity}{measured}{collapsed:>11}")


def _similarity(subject: Tensor, reference: Tensor) -> Tensor:
    return (-(subject - reference).square().mean(-1)).exp()


if __name__ == "__main__":
    main()
