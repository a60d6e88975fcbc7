"""The promises of the monitors, on honest and copied images made here."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from customized_grpo.algorithms.advantages import group_advantages
from customized_grpo.statistics.monitors import (
    MIN_ANGLE,
    angle,
    background_similarity,
    copy_score,
    image_statistics,
    in_group_diversity,
    nan_share,
    reward_correlation,
    zero_std_share,
)

SIZE = 32


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scene(background: int, column: int, colour: float = 0.9) -> tuple[Tensor, Tensor]:
    """A square subject at a column on a smooth background; image [3, H, W] and mask [1, H, W]."""
    coarse = torch.rand(1, 3, 4, 4, generator=rng(background))
    image = torch.nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bilinear")[0]
    mask = torch.zeros(1, SIZE, SIZE)
    mask[:, 10:22, column : column + 12] = 1
    return torch.where(mask.bool(), torch.tensor([colour, 0.2, 0.1])[:, None, None], image), mask


def stack(*scenes: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.stack([image for image, _ in scenes]), torch.stack([mask for _, mask in scenes])


def embed(images: Tensor) -> Tensor:
    """A stand-in encoder that sees layout and colour: the pixels of a thumbnail, centred."""
    return torch.nn.functional.adaptive_avg_pool2d(images, 8).flatten(1) - 0.5


def unit(*angles: float) -> Tensor:
    return torch.tensor([[math.cos(a), math.sin(a)] for a in angles], dtype=torch.float64)


# --- copy score


def test_a_literal_copy_scores_one_and_the_target_itself_minus_one() -> None:
    reference, _ = stack(*(scene(i, 2) for i in range(6)))
    target, _ = stack(*(scene(i + 50, 16) for i in range(6)))
    assert torch.equal(copy_score(embed(reference), embed(reference), embed(target)), torch.ones(6))
    assert torch.equal(copy_score(embed(target), embed(reference), embed(target)), -torch.ones(6))


def test_honest_samples_score_about_zero_and_near_copies_about_one() -> None:
    count = 60
    reference, _ = stack(*(scene(i, 2) for i in range(count)))
    target, _ = stack(*(scene(i + 500, 16) for i in range(count)))
    honest, _ = stack(*(scene(i + 900, 9) for i in range(count)))
    noise = 0.05 * torch.randn(reference.shape, generator=rng(0))
    assert abs(copy_score(embed(honest), embed(reference), embed(target)).mean()) < 0.1
    assert copy_score(embed(reference + noise), embed(reference), embed(target)).min() > 0.85


def test_a_sample_as_far_from_both_scores_exactly_zero() -> None:
    assert copy_score(unit(0.0), unit(0.7), unit(-0.7)).item() == 0
    assert copy_score(unit(0.2), unit(0.3), unit(-0.7)).item() == pytest.approx(0.8)  # (.9 - .1) / 1


def test_no_copy_score_where_target_and_reference_are_the_same_image() -> None:
    reference, target = unit(0.3, 0.3, 0.3), unit(0.3, 0.3 + 5e-4, 0.3 + 5e-3)
    assert copy_score(unit(1, 1, 1), reference, target).isnan().tolist() == [True, True, False]


def test_no_copy_score_for_zero_or_broken_embeddings() -> None:
    good, bad = unit(1.0, 2.0, 3.0), torch.tensor([[0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0]])
    assert copy_score(bad.double(), good, unit(2.0, 3.0, 4.0)).isnan().all()
    with pytest.raises(ValueError, match="must all be"):
        copy_score(good[:1], good, good)


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), width=st.integers(2, 40), scale=st.floats(1e-3, 1e3))
def test_the_copy_score_stays_within_one_and_ignores_length(seed: int, width: int, scale: float) -> None:
    generated, reference, target = torch.randn(3, 16, width, generator=rng(seed))
    score = copy_score(generated, reference, target)
    measurable = angle(target, reference) >= MIN_ANGLE
    assert torch.equal(score.isfinite(), measurable)
    assert (score[measurable].abs() <= 1 + 1e-6).all()
    assert torch.allclose(score, copy_score(generated * scale, reference, target), atol=1e-5, equal_nan=True)
    assert torch.allclose(score, -copy_score(generated, target, reference), atol=1e-5, equal_nan=True)


def test_small_angles_keep_their_digits() -> None:
    assert angle(unit(0.0), unit(1e-9)).item() == pytest.approx(1e-9, rel=1e-6)
    assert angle(unit(0.0), unit(math.pi)).item() == pytest.approx(math.pi)
    vector = torch.randn(1, 384, generator=rng(0))
    assert angle(vector, vector).item() == 0


# --- backgrounds


def test_a_copied_background_scores_one_even_if_the_subject_moved_or_changed() -> None:
    reference, reference_mask = stack(scene(1, 2), scene(2, 4))
    moved, moved_mask = stack(scene(1, 18, colour=0.1), scene(2, 10))
    similarity = background_similarity(moved, reference, moved_mask, reference_mask)
    assert torch.equal(similarity, torch.ones(2))


def test_a_kept_subject_on_a_new_background_is_at_the_chance_level() -> None:
    count = 24
    reference, mask = stack(*(scene(i, 2) for i in range(count)))
    honest, honest_mask = stack(*(scene(i + 100, 2) for i in range(count)))
    honest_score = background_similarity(honest, reference, honest_mask, mask).mean().item()
    # By chance: the similarity with references that these samples never saw.
    chance = background_similarity(honest, reference.roll(1, 0), honest_mask, mask.roll(1, 0)).mean().item()
    assert honest_score == pytest.approx(chance, abs=0.05)
    copied, copied_mask = stack(*(scene(i, 12) for i in range(count)))
    assert background_similarity(copied, reference, copied_mask, mask).mean() > chance + 0.4


def test_uniform_noise_scores_zero_and_black_on_white_never_less() -> None:
    none = torch.zeros(1, 128, 128)
    first, second = torch.rand(2, 1, 3, 128, 128, generator=rng(0))
    assert background_similarity(first, second, none, none).item() == pytest.approx(0, abs=0.01)
    assert background_similarity(first * 0, first * 0 + 1, none, none).item() == 0


def test_a_background_that_is_not_visible_is_nan() -> None:
    image, _ = scene(1, 2)
    mask = torch.ones(1, 1, SIZE, SIZE)
    assert background_similarity(image[None], image[None], mask, torch.zeros(1, SIZE, SIZE)).isnan()
    mask[..., :1] = 0  # 1 / 32 of the pixels
    assert background_similarity(image[None], image[None], mask, mask).item() == 1


def test_masks_of_another_size_are_an_error() -> None:
    image, mask = scene(1, 2)
    for wrong in (mask[..., :-1][None], torch.zeros(2, SIZE, SIZE), torch.zeros(1, 3, SIZE, SIZE)):
        with pytest.raises(ValueError, match="mask has shape"):
            background_similarity(image[None], image[None], wrong, mask)
    with pytest.raises(ValueError, match="images"):
        background_similarity(image[None], image[None, :1], mask, mask)


# --- image statistics


def flat(*colour: float) -> Tensor:
    return torch.tensor(colour)[None, :, None, None].expand(1, 3, SIZE, SIZE)


def stripes(period: int) -> Tensor:
    x = torch.arange(SIZE)
    return (0.5 + 0.5 * torch.cos(2 * math.pi * x / period)).expand(1, 3, SIZE, SIZE)


@pytest.mark.parametrize(
    ("name", "image", "value"),
    [
        ("saturation", flat(1.0, 0.0, 0.0), 1.0),
        ("saturation", flat(0.8, 0.4, 0.6), 0.5),
        ("saturation", flat(0.0, 0.0, 0.0), 0.0),
        ("dark_share", flat(0.0, 0.0, 0.0), 1.0),
        ("dark_share", flat(0.5, 0.5, 0.5), 0.0),
        ("bright_share", flat(1.0, 1.0, 1.0), 1.0),
        ("bright_share", flat(0.0, 0.0, 1.0), 0.0),  # pure blue is dark to the eye
        ("edge_density", flat(0.3, 0.3, 0.3), 0.0),
        ("colour_entropy", flat(0.3, 0.3, 0.3), 0.0),
        ("colour_entropy", torch.cat([flat(0, 0, 0)[..., :16], flat(1, 1, 1)[..., :16]], -1), 1 / 6),
        ("high_frequency", flat(0.1, 0.1, 0.1), 0.0),
        ("high_frequency", stripes(16), 0.0),
        ("high_frequency", stripes(2), 1.0),
        ("edge_density", torch.cat([flat(0, 0, 0)[..., :16], flat(1, 1, 1)[..., :16]], -1), 2 / 30),
    ],
)
def test_each_image_statistic_has_its_value(name: str, image: Tensor, value: float) -> None:
    assert image_statistics(image)[name].item() == pytest.approx(value, abs=1e-5)


def test_noise_has_more_edges_high_frequencies_and_colours_than_a_scene() -> None:
    plain = image_statistics(scene(3, 4)[0][None])
    noise = image_statistics(torch.rand(1, 3, SIZE, SIZE, generator=rng(0)))
    assert all(noise[name] > plain[name] for name in ("edge_density", "high_frequency", "colour_entropy"))


def test_statistics_of_a_batch_are_those_of_its_images_and_lie_in_the_unit_interval() -> None:
    images = torch.rand(4, 3, 16, 20, generator=rng(1))
    together = image_statistics(images)
    for name, values in together.items():
        assert values.shape == (4,) and values.dtype == torch.float32
        assert values.min() >= 0 and values.max() <= 1 + 1e-6
        alone = torch.cat([image_statistics(image[None])[name] for image in images])
        assert torch.allclose(values, alone, atol=1e-6)
    with pytest.raises(ValueError, match="images"):
        image_statistics(images[:, :1])


# --- diversity


def test_diversity_is_the_mean_cosine_distance_of_all_pairs() -> None:
    embeddings = torch.randn(12, 7, generator=rng(0))
    found = in_group_diversity(embeddings, 4)
    for group, value in zip(embeddings.split(4), found, strict=True):
        pairs = [
            1 - torch.cosine_similarity(group[i], group[j], dim=0)
            for i in range(4)
            for j in range(4)
            if i != j
        ]
        assert value.item() == pytest.approx(sum(pairs).item() / 12, abs=1e-6)


def test_diversity_is_zero_for_one_image_and_one_for_orthogonal_ones() -> None:
    same, orthogonal = torch.ones(4, 4), torch.eye(4)
    assert in_group_diversity(torch.cat([same, orthogonal * 3]), 4).tolist() == pytest.approx(
        [0, 1], abs=1e-6
    )
    assert in_group_diversity(torch.cat([same * 0, orthogonal]), 4).isnan().tolist() == [True, False]
    for size in (1, 3):
        with pytest.raises(ValueError, match="groups of"):
            in_group_diversity(same, size)


# --- reward health


def test_zero_std_share_counts_groups_whose_advantages_are_all_zero() -> None:
    rewards = torch.tensor(
        [[1.0, 1.0], [2.0, 1.0], [0.1, 0.3], [0.1, 0.1 + 0.2], [5.0, math.nan], [6.0, 2.0]]
    )
    assert zero_std_share(rewards, 2).tolist() == pytest.approx([1 / 3, 1.0])


def test_nan_share_counts_what_could_not_be_scored() -> None:
    rewards = torch.tensor([[1.0, math.nan], [math.inf, math.nan], [1.0, 1.0], [1.0, 1.0]])
    assert nan_share(rewards).tolist() == [0.25, 0.5]


def correlated(rho: float, groups: int = 400, size: int = 12) -> Tensor:
    a, noise = torch.randn(2, groups * size, generator=rng(7), dtype=torch.float64)
    level = 50 * torch.randn(groups, generator=rng(8)).repeat_interleave(size)  # prompts differ in difficulty
    return torch.stack([a + level, 3 * (rho * a + math.sqrt(1 - rho**2) * noise) + 5 * level], 1)


@pytest.mark.parametrize("rho", [-0.9, -0.5, 0.0, 0.5, 0.9])
def test_the_correlation_is_that_within_groups(rho: float) -> None:
    assert reward_correlation(correlated(rho), 12) == pytest.approx(rho, abs=0.03)


def test_the_correlation_equals_that_of_the_advantages_where_all_is_scored() -> None:
    rewards = correlated(0.3, groups=5)
    expected = torch.corrcoef(group_advantages(rewards, 12).T)[0, 1].item()
    assert reward_correlation(rewards, 12) == pytest.approx(expected)


def test_unscored_samples_and_constant_groups_do_not_enter_the_correlation() -> None:
    rewards = torch.tensor([[0.0, 0.0], [1.0, 2.0], [2.0, 4.0], [-9.0, math.nan]], dtype=torch.float64)
    constant = torch.tensor([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0], [4.0, 5.0]], dtype=torch.float64)
    assert reward_correlation(torch.cat([rewards, constant]), 4) == pytest.approx(1)
    assert math.isnan(reward_correlation(constant, 4))
    with pytest.raises(ValueError, match="must be"):
        reward_correlation(torch.zeros(4, 3), 2)
