from __future__ import annotations

from typing import Any

import pytest
import torch

from customized_grpo.toybox import models, prompts, render, world


def weights(pipe: Any) -> dict[str, torch.Tensor]:
    parts = ("transformer", "text_encoder", "text_encoder_2", "vae")
    return {f"{part}.{k}": v for part in parts for k, v in getattr(pipe, part).state_dict().items()}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return models.build_pipeline(0)


def test_weights_are_a_function_of_the_seed(pipe: Any) -> None:
    first, same, other = weights(pipe), weights(models.build_pipeline(0)), weights(models.build_pipeline(1))
    assert all(torch.equal(value, same[name]) for name, value in first.items())
    assert not all(torch.equal(value, other[name]) for name, value in first.items())


def test_building_leaves_the_global_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    models.build_pipeline(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_size_that_is_shipped(pipe: Any) -> None:
    """A change of size is a change of the shipped weights and of every measured number."""
    counts = {
        part: sum(p.numel() for p in getattr(pipe, part).parameters())
        for part in ("transformer", "text_encoder", "text_encoder_2", "vae")
    }
    assert counts == {
        "transformer": 5_917_728,
        "text_encoder": 179_616,
        "text_encoder_2": 197_408,
        "vae": 660_523,
    }


@torch.no_grad()
def test_the_transformer_sees_16_image_16_reference_and_18_text_tokens(pipe: Any) -> None:
    """In the pipeline of diffusers itself."""
    seen: list[dict[str, Any]] = []
    handle = pipe.transformer.register_forward_pre_hook(lambda m, a, k: seen.append(k), with_kwargs=True)
    scene = world.scene(0, 0)
    image = torch.from_numpy(render.render([(world.subject(0, 0), scene)])[0])
    pipe.set_progress_bar_config(disable=True)
    latents = pipe(
        image=image,
        prompt=prompts.to_prompt(scene),
        height=models.IMAGE_SIZE,
        width=models.IMAGE_SIZE,
        num_inference_steps=1,
        max_sequence_length=models.TEXT_TOKENS,
        max_area=models.IMAGE_SIZE**2,
        _auto_resize=False,
        output_type="latent",
    ).images
    handle.remove()
    assert len(seen) == 1
    assert seen[0]["hidden_states"].shape == (1, 16 + 16, 4 * models.LATENT_CHANNELS)
    assert seen[0]["img_ids"][:, 0].tolist() == [0.0] * 16 + [1.0] * 16
    assert seen[0]["encoder_hidden_states"].shape == (1, 18, models.TEXT_WIDTH)
    assert seen[0]["pooled_projections"].shape == (1, models.TEXT_WIDTH)
    assert latents.shape == (1, 16, 4 * models.LATENT_CHANNELS)


@torch.no_grad()
def test_the_autoencoder_halves_three_times_and_back(pipe: Any) -> None:
    latents = pipe.vae.encode(torch.zeros(2, 3, 64, 64)).latents
    assert latents.shape == (2, models.LATENT_CHANNELS, 8, 8)
    assert pipe.vae.decode(latents).sample.shape == (2, 3, 64, 64)


@torch.no_grad()
def test_the_pooled_text_depends_on_every_word(pipe: Any) -> None:
    """It is read at the end token; a wrong id there would make it the same for every prompt."""
    encode = lambda text: pipe.encode_prompt(text, max_sequence_length=models.TEXT_TOKENS)  # noqa: E731
    sentence = "a toy with a blue ball on the left on a red floor at night"
    embeds, pooled, _ = encode(sentence)
    for other in (sentence.replace("a toy", "our toy"), sentence.replace("night", "sunset")):
        other_embeds, other_pooled, _ = encode(other)
        assert not torch.allclose(pooled, other_pooled, atol=1e-4)
        assert not torch.allclose(embeds, other_embeds, atol=1e-4)
