"""The FLUX.2 family: FLUX.2-klein, distilled and base (Flux2KleinPipeline), and FLUX.2-dev (Flux2Pipeline).

Legend: B samples, N image tokens, R reference tokens, T text tokens, D channels of the text embeddings,
C = 4 x latent channels of a token.

An image is encoded by the VAE (its mode), each 2x2 square of latent pixels is one token, and tokens are
normalised by the running statistics of the VAE's BatchNorm, channel by channel; there is no scaling factor.
The transformer sees [text tokens, image tokens, reference tokens]; its answer for the references is dropped.

What this adapter does where the family has a choice; each is what the checkpoint's own pipeline does:

* Guidance. FLUX.2-dev embeds the scale. klein-base has true classifier-free guidance above 1,
  v = v_empty + scale (v_prompt - v_empty), with the empty prompt but the same references; 1 means none. The
  distilled klein has none: the pipeline ignores a scale with a warning, here any but 1 is refused.
* Shift. mu is an empirical function of N, references not counted, and of the number of steps; or it is given.
* Ids (t, y, x, l). Image: t = 0. i-th reference: t = 10 + 10 i, its own origin. Text: l = 0, 1, 2, ...
  The transformer takes the ids of the first sample for all, so a batch is one bucket.
* Text has no mask: padding takes part in attention, so that `max_text_tokens` is part of the model. The
  published models use 512.

Two departures: each sample has references of its own, where the pipeline repeats one set over the batch, and
references are taken at the size they come in, where the pipeline shrinks those above 1024 x 1024 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from customized_grpo.errors import UserError
from customized_grpo.policies.base import Conditioning
from customized_grpo.policies.offload import EVERYTHING_STAYS, Offload
from customized_grpo.policies.pipeline_policy import PipelinePolicy, Precision, reference_shapes
from customized_grpo.policies.tokens import Grid, pack, unpack

if TYPE_CHECKING:
    from diffusers import Flux2KleinPipeline, Flux2Pipeline

GuidanceMode = Literal["none", "embedded", "classifier_free"]

REFERENCE_SPACING = 10  # distance in t between the image and its first reference, and from one to the next


class Flux2Policy(PipelinePolicy):
    """A `Policy` around a Flux2KleinPipeline or Flux2Pipeline, whose transformer only `velocity` calls.

    Args:
        pipe: The pipeline; it is moved to its places, frozen and put into eval mode.
        guidance: Scale, see `guidance_mode` for what the checkpoint makes of it; 1 means none for klein.
        mu: Shift of the noise levels, sigma' = e^mu / (e^mu + 1 / sigma - 1); None computes it from the
            numbers of image tokens and of steps, as the pipeline does.
        max_text_tokens: Length T to which prompts, chat template and system message included, are padded or
            cut, always the same, so that a sample does not depend on its batch.
        precision: Type of the products in the transformer and in decoding; in and out of `velocity` all is
            fp32, and so is what encodes prompts and references.
        device: Where everything runs.
        offload: Which parts wait on the CPU between their calls.
        text_layers: Which hidden states of the text encoder are joined into a text token, 0 being its input
            embeddings; None takes the pipeline's choice: 9, 18, 27 (klein) or 10, 20, 30 (dev).

    Raises:
        UserError: The checkpoint has no use for this guidance or mu, or the text is too short for a prompt.
    """

    LORA_TARGET = (
        r"transformer_blocks\.\d+\.attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)|"
        r"single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)"
    )

    def __init__(
        self,
        pipe: Flux2KleinPipeline | Flux2Pipeline,
        *,
        guidance: float,
        mu: float | None = None,
        max_text_tokens: int,
        precision: Precision,
        device: torch.device | str,
        offload: Offload = EVERYTHING_STAYS,
        text_layers: tuple[int, ...] | None = None,
    ) -> None:
        self.guidance_mode = guidance_mode(pipe, guidance)
        _check_text_length(pipe, max_text_tokens)
        super().__init__(
            pipe,
            guidance=guidance,
            mu=mu,
            max_text_tokens=max_text_tokens,
            precision=precision,
            device=device,
            offload=offload,
        )
        self.text_layers = text_layers

    # Conditioning

    @torch.no_grad()
    def encode(
        self, prompts: Sequence[str], references: Sequence[Sequence[Tensor]], height: int, width: int
    ) -> Conditioning:
        """Encode prompts and references of one bucket; call it once per prompt and repeat the result.

        Args:
            prompts: B prompts.
            references: For each prompt the same number, at least one, of fp32 images [3, h, w] in [0, 1]; the
                i-th images of all prompts have one size, a multiple of the side of a token.
            height: Height of the images to generate, in pixels.
            width: Width of the images to generate, in pixels.

        Raises:
            ValueError: The samples are not of one bucket, or a reference is not an fp32 image in [0, 1].
            UserError: A size, of the images or of a reference, is not a multiple of the side of a token.
        """
        if not prompts or len(prompts) != len(references):
            raise ValueError(f"{len(prompts)} prompts and {len(references)} lists of references")
        grids = [self.grid(*shape) for shape in reference_shapes(references)]
        ids = token_ids(self.grid(height, width), grids)
        shared = {
            "image_ids": ids.to(self.device),
            "text_ids": text_ids(self.max_text_tokens).to(self.device),
        }
        with self._autocast_off():
            with self.placement.text_encoders():
                embeds = self._text_tokens(prompts)
                if self.guidance_mode == "classifier_free":
                    shared["empty_embeds"] = self._empty_embeds
            tokens = self._all_reference_tokens(references)
        per_sample = {"prompt_embeds": embeds, "reference_tokens": tokens}
        return Conditioning(per_sample, shared, height, width)

    def _text_tokens(self, prompts: Sequence[str]) -> Tensor:
        """Map prompts to embeddings [B, T, D], in the text encoder's dtype."""
        layers = {} if self.text_layers is None else {"text_encoder_out_layers": self.text_layers}
        embeds: Tensor = self.pipe.encode_prompt(
            prompt=list(prompts), device=self.device, max_sequence_length=self.max_text_tokens, **layers
        )[0]
        return embeds

    @cached_property
    def _empty_embeds(self) -> Tensor:
        """Embeddings [T, D] of the empty prompt: computed once, so that all conditionings share the bits."""
        with torch.no_grad(), self._autocast_off():
            return self._text_tokens([""])[0]

    def _reference_tokens(self, images: Tensor) -> Tensor:
        """Map images [B, 3, h, w] in [0, 1] to tokens [B, R, C], fp32."""
        from diffusers.pipelines.flux2.pipeline_flux2_klein import retrieve_latents

        vae = self.pipe.vae
        pixels = (images * 2 - 1).to(device=self.device, dtype=vae.dtype)
        latents = retrieve_latents(vae.encode(pixels), sample_mode="argmax").float()
        mean, deviation = self._token_statistics()
        return (pack(latents) - mean) / deviation

    def _token_statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation [C], fp32, of a token's channels, from the VAE's BatchNorm."""
        vae = self.pipe.vae
        variance = vae.bn.running_var.float() + vae.config.batch_norm_eps
        return vae.bn.running_mean.float(), variance.sqrt()

    # Sampling

    def noise(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        """Return initial noise [B, N, C], fp32: sample i depends on generators[i] alone."""
        shape = (self.transformer.config.in_channels, *self.grid(height, width))
        return self._draw(generators, shape).flatten(2).transpose(1, 2).contiguous()

    def _shift(self, steps: int, n_tokens: int) -> float:
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

        mu: float = compute_empirical_mu(image_seq_len=n_tokens, num_steps=steps)
        return mu

    def velocity(self, x: Tensor, sigma: float | Tensor, conditioning: Conditioning) -> Tensor:
        """Return the predicted v = noise - x0, guidance included, for rollouts and for training alike.

        Classifier-free guidance takes two calls of the transformer, with the prompt and then without, in both
        phases, as in the pipeline: in one call of 2 B samples the rounding would depend on the guidance.

        Args:
            x: Noisy image tokens [B, N, C], fp32.
            sigma: Noise level, a number or fp32 [B].
            conditioning: B samples, from `encode`.

        Returns:
            v [B, N, C], fp32.

        Raises:
            RuntimeError: Gradients are enabled inside `reference()`; its adapter would silently get none.
        """
        self._check_call(x, conditioning, self.n_tokens(conditioning.height, conditioning.width))
        self._check_ids(conditioning)
        level = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(len(x))
        v = self._transform(x, level, conditioning, conditioning.per_sample["prompt_embeds"])
        if self.guidance_mode != "classifier_free":
            return v
        empty_embeds = conditioning.shared["empty_embeds"].expand(len(x), -1, -1)
        v_empty = self._transform(x, level, conditioning, empty_embeds)
        return v_empty + self.guidance * (v - v_empty)

    def _transform(self, x: Tensor, level: Tensor, conditioning: Conditioning, embeds: Tensor) -> Tensor:
        """Call the transformer on x [B, N, C] at level [B] with text [B, T, D]; return [B, N, C], fp32."""
        embedded = self.guidance_mode == "embedded"
        v = self._call_transformer(
            hidden_states=torch.cat([x, conditioning.per_sample["reference_tokens"]], dim=1),
            timestep=level,
            guidance=torch.full_like(level, self.guidance) if embedded else None,
            encoder_hidden_states=embeds,
            txt_ids=conditioning.shared["text_ids"],
            img_ids=conditioning.shared["image_ids"],
        )
        return v[:, : x.shape[1]].float()

    @torch.no_grad()
    def decode(self, x: Tensor, height: int, width: int) -> Tensor:
        """Return images [B, 3, height, width] in [0, 1], fp32, of clean image tokens [B, N, C]."""
        vae = self.pipe.vae
        with self.placement.vae(), self._autocast():
            mean, deviation = self._token_statistics()
            latents = unpack(x * deviation + mean, self.grid(height, width))
            pixels = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    def _check_ids(self, conditioning: Conditioning) -> None:
        """Refuse ids of another bucket, some of which the transformer would take without complaint."""
        n_references = conditioning.per_sample["reference_tokens"].shape[1]
        n_image = self.n_tokens(conditioning.height, conditioning.width)
        n_text = conditioning.per_sample["prompt_embeds"].shape[1]
        image_ids, ids_of_text = conditioning.shared["image_ids"], conditioning.shared["text_ids"]
        assert len(image_ids) == n_image + n_references, (
            f"{len(image_ids)} ids for {n_image} + {n_references} tokens"
        )
        assert len(ids_of_text) == n_text, f"{len(ids_of_text)} ids for {n_text} text tokens"
        assert image_ids.dtype == ids_of_text.dtype == torch.float32, "bf16 ids are wrong beyond 256"


def guidance_mode(pipe: Flux2KleinPipeline | Flux2Pipeline, guidance: float) -> GuidanceMode:
    """Return what the checkpoint makes of a guidance scale, see the module's docstring.

    Args:
        pipe: The pipeline.
        guidance: The scale; 1 means none, but for FLUX.2-dev, which embeds any.

    Raises:
        UserError: The scale would have no effect.
    """
    from diffusers import Flux2KleinPipeline

    if not isinstance(pipe, Flux2KleinPipeline) and pipe.transformer.config.guidance_embeds:
        return "embedded"
    if isinstance(pipe, Flux2KleinPipeline) and not pipe.config.is_distilled:
        if guidance < 1:
            raise UserError(
                f"model.guidance {guidance:g}: classifier-free guidance starts at 1",
                hint="Set it to 1 for none, or above; FLUX.2-klein-base is published with 4.",
            )
        return "classifier_free" if guidance > 1 else "none"
    if guidance != 1:
        raise UserError(
            f"model.guidance {guidance:g}: this checkpoint is distilled and takes no guidance",
            hint="Set it to 1.",
        )
    return "none"


def token_ids(image: Grid, references: Sequence[Grid]) -> Tensor:
    """Return the position ids (t, y, x, l) of image tokens and then reference tokens, fp32 [N + R, 4].

    Args:
        image: Rows and columns of the image's tokens, at t = 0.
        references: Rows and columns of each reference's tokens, at t = 10, 20, ...
    """
    grids = [image, *references]
    return torch.cat([_grid_ids(grid, t=REFERENCE_SPACING * slot) for slot, grid in enumerate(grids)])


def text_ids(n_tokens: int) -> Tensor:
    """Return the position ids (0, 0, 0, l) of text tokens l = 0, 1, ..., fp32 [n_tokens, 4]."""
    ids = torch.zeros(n_tokens, 4)
    ids[:, 3] = torch.arange(n_tokens)
    return ids


def _grid_ids(grid: Grid, *, t: int) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    zeros = torch.zeros_like(rows)
    return torch.stack([zeros + t, rows, columns, zeros], dim=-1).flatten(0, 1).float()


def _check_text_length(pipe: Flux2KleinPipeline | Flux2Pipeline, max_text_tokens: int) -> None:
    """Refuse a length that the chat template fills: the pipeline would cut all prompts to the same text."""
    overhead = _template_length(pipe)
    if overhead >= max_text_tokens:
        raise UserError(
            f"model.max_text_tokens {max_text_tokens}: this checkpoint's chat template and system message "
            f"take {overhead} tokens, which leaves no room for a prompt",
            hint="FLUX.2 is published with 512.",
        )


def _template_length(pipe: Flux2KleinPipeline | Flux2Pipeline) -> int:
    """Return the number of tokens of an empty prompt, formatted as `encode_prompt` formats prompts."""
    from diffusers import Flux2KleinPipeline

    tokenizer = pipe.tokenizer
    if isinstance(pipe, Flux2KleinPipeline):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": ""}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
        return len(tokenizer(text)["input_ids"])
    from diffusers.pipelines.flux2.pipeline_flux2 import format_input

    messages = format_input(prompts=[""], system_message=pipe.system_message)
    encoded = tokenizer.apply_chat_template(
        messages, add_generation_prompt=False, tokenize=True, return_dict=True
    )
    return len(encoded["input_ids"][0])
