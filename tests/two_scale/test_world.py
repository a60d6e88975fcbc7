from __future__ import annotations

import pytest
import torch

from customized_grpo.errors import UserError
from customized_grpo.policies.tokens import pack
from customized_grpo.two_scale import world


def test_the_codes_are_orthogonal() -> None:
    codes = world.CODES.flatten(1)
    assert torch.equal(codes @ codes.T, world.WIDTH * torch.eye(8))


def test_images_keep_all_of_a_sample() -> None:
    pixels = world.latents(torch.arange(8), torch.arange(8).flip(0))
    pixels += 0.1 * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    images = world.enlarge(pixels) / 2 + 0.5
    assert images.shape == (8, 3, world.IMAGE_SIZE, world.IMAGE_SIZE)
    torch.testing.assert_close(world.shrink(images), pixels)
    scene, pattern = world.halves(world.shrink(images))
    assert world.similarities(scene).argmax(1).tolist() == list(range(8))
    assert world.similarities(pattern).argmax(1).tolist() == list(range(7, -1, -1))


def test_the_first_two_tokens_are_the_scene() -> None:
    tokens = pack(world.latents(torch.tensor([3]), torch.tensor([5])))
    assert tokens.abs().amax(2).tolist() == [[world.SCENE_AMPLITUDE] * 2 + [world.PATTERN_AMPLITUDE] * 2]


def test_a_prompt_names_its_scene() -> None:
    prompts = [world.prompt(scene) for scene in range(8)]
    assert list(map(world.prompted_scene, prompts)) == list(range(8))
    with pytest.raises(UserError, match="names no scene") as error:
        world.prompted_scene("the toy on the moon")
    assert "snow" in str(error.value.hint)
