"""Monitors against reward hacking: measures of what the rewards do not see. Pure functions over tensors.

Embeddings come from encoders that are not used in training. NaN means "cannot be measured" and never 0.
Shapes in docstrings: N samples, D embedding width, B images, K rewards, G samples per group.
The quadrants of two advantages and their null are in `algorithms.conflict`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from customized_grpo.algorithms.advantages import group_advantages

MIN_ANGLE = 1e-3
"""Radians. A target closer to its reference than this is the same image; no direction leads to it."""

BACKGROUND_SCALE = 1 / 3
"""Mean absolute difference of two independent uniform values: unrelated noise has similarity 0."""

MIN_BACKGROUND = 0.01
"""Share of pixels outside both masks below which a background cannot be compared."""

_LUMA = (0.299, 0.587, 0.114)


def angle(first: Tensor, second: Tensor) -> Tensor:
    """Return the angle between embeddings in radians, [N], in fp64; NaN where one is zero or not finite.

    2 atan2(|a - b|, |a + b|) of the unit vectors: exact at 0, where the arc cosine loses half the digits.
    """
    a = _unit(first)
    b = _unit(second)
    return 2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1))


def copy_score(generated: Tensor, reference: Tensor, target: Tensor) -> Tensor:
    """Return whether each sample is nearer to its reference photo than another true view is.

        (theta(generated, target) - theta(generated, reference)) / theta(target, reference)

    A literal copy of the reference scores 1, a sample as far from the reference as from the target 0, the
    target itself -1; angles obey the triangle inequality, so nothing lies outside [-1, 1].

    Args:
        generated: Embeddings of the samples, [N, D].
        reference: Embedding of the reference of each sample, [N, D].
        target: Embedding of another view of the same subject, [N, D].

    Returns:
        fp32 [N]; NaN where target and reference are the same image (angle below MIN_ANGLE) or an
        embedding is zero or not finite.

    Raises:
        ValueError: Shapes differ.
    """
    if not generated.shape == reference.shape == target.shape or generated.ndim != 2:
        shapes = [list(t.shape) for t in (generated, reference, target)]
        raise ValueError(f"embeddings must all be [N, D], got {shapes}")
    span = angle(target, reference)
    score = (angle(generated, target) - angle(generated, reference)) / span
    return torch.where(span >= MIN_ANGLE, score, math.nan).float()


def background_similarity(
    generated: Tensor, reference: Tensor, subject_mask_generated: Tensor, subject_mask_reference: Tensor
) -> Tensor:
    """Return how similar two backgrounds are, pixel by pixel, where neither image shows the subject.

        max(0, 1 - mean |generated - reference| / BACKGROUND_SCALE)

    The mean is over colours and over pixels outside both masks. A repeated background scores 1, unrelated
    uniform noise 0. Real backgrounds are smooth and share tones, so unrelated ones score well above 0:
    compare with the base model's value and not with 0.

    Args:
        generated: [B, 3, H, W] in [0, 1].
        reference: [B, 3, H, W] in [0, 1].
        subject_mask_generated: [B, H, W] or [B, 1, H, W]; at least .5 is subject.
        subject_mask_reference: The same of the reference.

    Returns:
        fp32 [B] in [0, 1]; NaN where less than MIN_BACKGROUND of the pixels is outside both masks.

    Raises:
        ValueError: Shapes do not fit.
    """
    if generated.shape != reference.shape or generated.ndim != 4 or generated.shape[1] != 3:
        raise ValueError(f"images must be [B, 3, H, W], got {list(generated.shape)}, {list(reference.shape)}")
    visible = ~(_subject(subject_mask_generated, generated) | _subject(subject_mask_reference, generated))
    difference = (generated.float() - reference.float()).abs().mean(1)
    count = visible.sum((1, 2))
    # 0 / 0 where nothing is visible; the last line makes NaN of it.
    mean = (difference * visible).sum((1, 2)) / count
    similarity = (1 - mean / BACKGROUND_SCALE).clamp_min(0)
    return torch.where(count >= MIN_BACKGROUND * visible[0].numel(), similarity, math.nan)


def image_statistics(images: Tensor) -> dict[str, Tensor]:
    """Return simple statistics of each image; reward hacking often moves them before it looks odd.

    Args:
        images: [B, 3, H, W] in [0, 1], at least 3 x 3 pixels.

    Returns:
        fp32 [B] each, all in [0, 1]:
        saturation: mean of (max - min) / max over the colours of a pixel, 0 for black (HSV);
        dark_share, bright_share: share of pixels with luma (BT.601) below .1, above .9;
        edge_density: share of inner pixels whose luma gradient (Sobel / 8) is longer than .1 a pixel;
        colour_entropy: entropy of the histogram of 4 x 4 x 4 colours, divided by its maximum of 6 bits;
        high_frequency: share of luma variance at spatial frequencies above .25 cycles a pixel.

    Raises:
        ValueError: Another shape.
    """
    if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < 3:
        raise ValueError(f"images must be [B, 3, H >= 3, W >= 3], got {list(images.shape)}")
    images = images.float()
    high = images.amax(1)
    saturation = torch.where(high > 0, (high - images.amin(1)) / high.clamp_min(1e-12), 0.0)
    luma = torch.einsum("bchw,c->bhw", images, images.new_tensor(_LUMA))
    return {
        "saturation": saturation.mean((1, 2)),
        "dark_share": (luma < 0.1).float().mean((1, 2)),
        "bright_share": (luma > 0.9).float().mean((1, 2)),
        "edge_density": _edge_density(luma),
        "colour_entropy": _colour_entropy(images),
        "high_frequency": _high_frequency(luma),
    }


def in_group_diversity(embeddings: Tensor, group_size: int) -> Tensor:
    """Return the mean cosine distance between the samples of each group, fp32 [N / G].

    0 when all samples of a group look the same to the encoder, 1 when they are orthogonal on average.
    A group with a zero or non-finite embedding is NaN.

    Args:
        embeddings: [N, D], groups are consecutive rows.
        group_size: G >= 2.

    Raises:
        ValueError: G < 2, or N is not a multiple of G.
    """
    if group_size < 2 or embeddings.ndim != 2 or len(embeddings) % group_size:
        raise ValueError(f"cannot split embeddings {list(embeddings.shape)} into groups of {group_size}")
    unit = _grouped(_unit(embeddings), group_size)
    # |sum|^2 = G + (sum of the G (G - 1) cosines of different samples)
    cosines = unit.sum(1).square().sum(-1) - group_size
    return (1 - cosines / (group_size * (group_size - 1))).float()


def zero_std_share(rewards: Tensor, group_size: int) -> Tensor:
    """Return, per reward, the share of groups that teach nothing: all their advantages are 0.

    Groups with fewer than two finite rewards also count: which groups are constant is decided in one place,
    `algorithms.advantages.group_advantages`.

    Args:
        rewards: [N, K], groups are consecutive rows.
        group_size: G.

    Returns:
        fp32 [K].
    """
    advantages = _grouped(group_advantages(rewards, group_size), group_size)
    return (advantages == 0).all(1).float().mean(0)


def nan_share(rewards: Tensor) -> Tensor:
    """Return, per reward, the share of samples that could not be scored (NaN or infinite), fp32 [K]."""
    return (~rewards.isfinite()).float().mean(0)


def reward_correlation(rewards: Tensor, group_size: int) -> float:
    """Return Pearson's correlation of two rewards within groups: the rho of the conflict null.

    Rewards are normalised per group first, as the advantages are, so differences between prompts do not
    count. Only groups are used that carry a signal in both rewards; NaN when there are none.

    Args:
        rewards: [N, 2], groups are consecutive rows.
        group_size: G.

    Raises:
        ValueError: Not two rewards, or as `group_advantages`.
    """
    if rewards.ndim != 2 or rewards.shape[1] != 2:
        raise ValueError(f"rewards must be [N, 2], got {list(rewards.shape)}")
    scored = rewards.isfinite().all(1, keepdim=True)
    # A sample that lacks one reward is dropped from both before normalising: both must share their samples.
    advantages = group_advantages(torch.where(scored, rewards.double(), math.nan), group_size)
    groups = _grouped(advantages, group_size)
    informative = (groups != 0).any(1).all(1)
    if not informative.any():
        return math.nan
    a, b = groups[informative].flatten(0, 1).unbind(1)
    return float(((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt()).clamp(-1, 1))


def _unit(embeddings: Tensor) -> Tensor:
    """Return unit vectors in fp64; a zero or non-finite embedding becomes NaN."""
    precise = embeddings.double()
    unit: Tensor = precise / precise.norm(dim=-1, keepdim=True)
    return unit


def _grouped(rows: Tensor, group_size: int) -> Tensor:
    """Return [N / G, G, ...] for [N, ...]."""
    return rows.reshape(-1, group_size, *rows.shape[1:])


def _subject(mask: Tensor, images: Tensor) -> Tensor:
    """Return a mask as boolean [B, H, W]."""
    flat = mask[:, 0] if mask.ndim == 4 and mask.shape[1] == 1 else mask
    if flat.shape != (images.shape[0], *images.shape[2:]):
        raise ValueError(f"mask has shape {list(mask.shape)}, its images {list(images.shape)}")
    return flat >= 0.5


def _edge_density(luma: Tensor) -> Tensor:
    # The weights of one side sum to 4, two pixels apart: / 8 makes it a slope per pixel.
    sobel = luma.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
    kernels = torch.stack([sobel, sobel.T]).unsqueeze(1)
    gradient = torch.nn.functional.conv2d(luma.unsqueeze(1), kernels)
    is_edge: Tensor = gradient.square().sum(1).sqrt() > 0.1
    return is_edge.float().mean((1, 2))


def _colour_entropy(images: Tensor) -> Tensor:
    # 1.0 belongs to the last of the four levels.
    levels = (images * 4).long().clamp(0, 3)
    colour = (levels[:, 0] * 16 + levels[:, 1] * 4 + levels[:, 2]).flatten(1)
    share = torch.nn.functional.one_hot(colour, 64).float().mean(1)
    entropy: Tensor = torch.special.entr(share).sum(1)
    return entropy / math.log(64)


def _high_frequency(luma: Tensor) -> Tensor:
    height, width = luma.shape[1:]
    centred = luma.double() - luma.double().mean((1, 2), keepdim=True)
    power = torch.fft.fft2(centred).abs().square()
    # cycles a pixel, from -.5 to .5 on either axis
    y = torch.fft.fftfreq(height, device=luma.device)
    x = torch.fft.fftfreq(width, device=luma.device)
    is_high = (y[:, None].square() + x.square()).sqrt() > 0.25
    total = power.sum((1, 2))
    flat = centred.abs().amax((1, 2)) < 1e-6  # a constant image has no variance to share out
    return torch.where(flat, 0.0, (power * is_high).sum((1, 2)) / total).float()
