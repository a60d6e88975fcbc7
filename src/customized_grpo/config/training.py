"""The settings of the optimisation: `train`, and the sections in it that one algorithm has."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from customized_grpo.fields import Count, CountOrZero, NonNegative, Positive, Section, Share

Algorithm = Literal["grpo", "nft", "awm"]
OldShare = Annotated[float, Field(ge=0, lt=1)]


class ForwardConfig(Section):
    """What nft and awm have in common: noise levels, and the old policy, which draws the samples."""

    levels: Count = 4
    """Noise levels at which every sample is trained in an iteration, drawn anew each time."""
    old_growth: NonNegative = 0.001
    """By how much the share that the old policy keeps of itself grows with every iteration."""
    old_largest: OldShare = 0.5
    """Largest such share; 0 makes the old policy the trained one of the iteration before."""


class NftConfig(Section):
    """What only nft has."""

    beta: Positive = 1.0
    """How far the implicit policies are from the old one; smaller values take larger steps."""


class AwmConfig(Section):
    """What only awm has."""

    weighting: Literal["uniform", "sigma", "sigma_squared"] = "sigma_squared"
    """Weight of a noise level in the log-probability, as a function of sigma."""
    clip_range: Positive = 1.0
    """Distance from 1 at which the ratio is clipped."""


class DynamicSamplingConfig(Section):
    """Groups that teach nothing are replaced by groups of further prompts (DAPO)."""

    budget: Count = 8
    """Further prompts that an iteration may draw, over all processes; what is left then stays."""
    largest_std: NonNegative = 0.0
    """A group teaches nothing where no reward's std exceeds this, in its unit; 0: all scores are equal."""


class TrainConfig(Section):
    """The optimisation."""

    algorithm: Algorithm = "grpo"
    """What the loss is about: grpo (steps of the rollout), nft or awm (its samples, noised again)."""
    iterations: Count = 300
    """Number of rounds of sampling, scoring and updating."""
    prompts_per_iteration: Count = 8
    """Prompts, and so groups, sampled in an iteration, over all processes."""
    group_size: Annotated[int, Field(ge=2, le=10_000)] = 12
    """Samples per prompt, which are compared with each other: one would have nothing to compare with."""
    dynamic_sampling: DynamicSamplingConfig | None = None
    """Replaces prompts whose groups teach nothing; null trains on the first ones, whatever they teach."""
    updates_per_iteration: Count = 1
    """Optimizer steps per pass over an iteration's samples; each sees the same number of whole groups."""
    inner_epochs: Count = 1
    """Passes over an iteration's samples before new ones are drawn."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """AdamW of torch, or that of bitsandbytes, whose moments take a quarter of the memory."""
    learning_rate: Positive = 2e-5
    """Peak learning rate of AdamW, per optimizer step."""
    warmup_iterations: CountOrZero = 0
    """Iterations over which the learning rate rises linearly to its peak."""
    learning_rate_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate goes on from its peak: it stays, or falls to near 0 by the last iteration."""
    weight_decay: NonNegative = 1.1e-4
    """Decoupled weight decay of AdamW, relative to the learning rate."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of AdamW's mean of gradients, per optimizer step."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of AdamW's mean of squared gradients, per optimizer step."""
    max_grad_norm: Positive = 1.0
    """Gradients with a larger L2 norm, over all adapter parameters, are scaled down to it."""
    clip_range: Positive = 1e-4
    """Distance from 1 at which the ratio is clipped; small, as log-probs are means over the latent."""
    kl_weight: NonNegative = 0.0
    """Weight of the KL divergence from train.kl_reference, per trained step; 0 switches it off."""
    kl_reference: Literal["base", "start", "old"] = "base"
    """Model that the KL is from: the frozen base, the one with model.start_lora, or nft's and awm's old."""
    ratio_normalisation: bool = False
    """Whether ratios are brought to one scale over all steps before clipping (GRPO-Guard)."""
    trained_fraction: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Share of a sample's noisy steps that are trained, drawn anew in each iteration."""
    forward: ForwardConfig = ForwardConfig()
    nft: NftConfig = NftConfig()
    awm: AwmConfig = AwmConfig()
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of the moving average of the adapter, per optimizer step; null keeps none."""
    ema_warmup: bool = False
    """Whether that decay rises from 0.1 to its value: (1 + i) / (10 + i) after i iterations, if smaller."""
    micro_batch_size: Count = 12
    """Samples in one backward pass, per process: a matter of memory and speed, not of results."""
    reuse_rollout_graph: Literal["auto", "never"] = "auto"
    """Whether the update goes back through the rollout's own passes: auto where recipe and memory allow."""
    attention_gradients: Literal["native", "fp32"] = "native"
    """Arithmetic of attention's backward pass on a CPU: in bf16 fp32 is faster there, and nearer to exact."""
    max_nonfinite_steps: Count = 3
    """Optimizer steps in a row that may be skipped for a non-finite loss or gradient before a stop."""
    max_unscored_share: Share = 0.5
    """Share of an iteration's samples that may lack a reward; with more, the iteration is a wasted one."""
    max_wasted_iterations: Count = 5
    """Iterations in a row that may be wasted (too few scores, no gradient) before the run stops."""
