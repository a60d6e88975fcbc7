"""The Qwen-Image-Edit family: the checkpoints 2509 and 2511, "Plus", which take several references.

Legend: B samples, N image tokens, R reference tokens, T text tokens, D width of a text embedding,
C = 4 x latent channels of a token.

An image is encoded by a VAE made for videos (its mode, as one frame, normalised by latents_mean and
latents_std), each 2x2 square of latent pixels is one token. The transformer sees [image tokens, reference
tokens]; its answer for the reference tokens is dropped. Every reference is seen twice: as tokens, at the size
it is given (the pipeline resizes it to about one megapixel), and by the vision-language model that reads the
prompt, at about 384x384 pixels.

* Guidance: two calls of the transformer, one with the prompt, one with the prompt " ", both with the
  references; combined, then rescaled token by token to the length of the prompt's velocity. A scale of 1 or
  less means no guidance and one call. `guidance_embeds` in a transformer's config has no weights behind it.
* Shift: from the number of image tokens, by the checkpoint's scheduler, then stretched so that the last
  noise level but 0 is `shift_terminal`.
* Ids: the transformer derives rotations from the rows and columns of the image and of every reference,
  counted from their centres; references are told apart by their number, 1, 2, ... All samples of a batch
  have those of the first. In 2511 the transformer finds the reference tokens from them, too, which then are
  modulated by noise level 0.
* Text: its positions start behind those of the images and padding is masked, so T changes no result.

Where this departs from diffusers 0.42: its pipeline does not tell the vision-language model which tokens are
pictures, and transformers 5 then silently numbers them like words, not by row and column as in training
(https://github.com/huggingface/diffusers/issues/14194). Here it is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from customized_grpo.errors import UserError
from customized_grpo.pixels import to_pil
from customized_grpo.policies.base import Conditioning
from customized_grpo.policies.offload import EVERYTHING_STAYS, Offload
from customized_grpo.policies.pipeline_policy import (
    PipelinePolicy,
    Precision,
    linear_shift,
    reference_shapes,
)
from customized_grpo.policies.tokens import PATCH, pack, unpack

if TYPE_CHECKING:
    from diffusers import QwenImageEditPlusPipeline

NEGATIVE_PROMPT = " "  # the model card's; the pipeline has no default and leaves guidance out without one
PICTURE = "Picture {}: <|vision_start|><|image_pad|><|vision_end|>"


class QwenEditPolicy(PipelinePolicy):
    """A `Policy` around a QwenImageEditPlusPipeline.

    Args:
        pipe: The pipeline; it is moved to its places, frozen and put into eval mode. Its processor may be one
            from `load_processor`.
        guidance: Scale of classifier-free guidance; 1 or less means none, at half the cost.
        mu: Shift of the noise levels, sigma' = e^mu / (e^mu + 1 / sigma - 1); None computes it from the
            number of image tokens, as the checkpoint's scheduler says.
        max_text_tokens: Length T to which prompts are padded, always the same, so that a sample does not
            depend on its batch. Each reference takes about 200 of them.
        precision: Type of the products in the transformer and in decoding; in and out of `velocity` all is
            fp32, and so is what encodes prompts and references.
        device: Where everything runs.
        offload: Which parts wait on the CPU between their calls.

    Raises:
        UserError: mu is given, but the checkpoint's noise levels are not shifted by it.
    """

    VAE_MEMORY_FORMAT = torch.preserve_format  # its weights are 5-D
    LORA_TARGET = r"transformer_blocks\.\d+\.attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"

    def __init__(
        self,
        pipe: QwenImageEditPlusPipeline,
        *,
        guidance: float,
        mu: float | None = None,
        max_text_tokens: int,
        precision: Precision,
        device: torch.device | str,
        offload: Offload = EVERYTHING_STAYS,
    ) -> None:
        super().__init__(
            pipe,
            guidance=guidance,
            mu=mu,
            max_text_tokens=max_text_tokens,
            precision=precision,
            device=device,
            offload=offload,
        )

    @classmethod
    def default_target(cls, transformer: torch.nn.Module) -> str:
        """Return the target of all projections of attention but two.

        The last block's text is not used by anything, so adapters on the layers that only make it would never
        get a gradient.
        """
        last = len(list(transformer.get_submodule("transformer_blocks").children())) - 1
        unused = rf"transformer_blocks\.{last}\.attn\.(add_q_proj|to_add_out)"
        return rf"(?!{unused}$){cls.LORA_TARGET}"

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
            UserError: A prompt with its references has more than `max_text_tokens` tokens.
        """
        if not prompts or len(prompts) != len(references):
            raise ValueError(f"{len(prompts)} prompts and {len(references)} lists of references")
        shapes = reference_shapes(references)
        grids = [self.grid(height, width), *[self.grid(*shape) for shape in shapes]]
        with self._autocast_off():
            pictures = [[self._picture(image) for image in images] for images in references]
            with self.placement.text_encoders():
                embeds, mask = self._embed(prompts, pictures)
                per_sample = {"prompt_embeds": embeds, "prompt_mask": mask}
                if self._is_guided:
                    embeds, mask = self._embed([NEGATIVE_PROMPT] * len(prompts), pictures)
                    per_sample |= {"negative_embeds": embeds, "negative_mask": mask}
            per_sample["reference_tokens"] = self._all_reference_tokens(references)
        return Conditioning(per_sample, {"grids": torch.tensor(grids)}, height, width)

    @property
    def _is_guided(self) -> bool:
        return self.guidance > 1

    def _picture(self, image: Tensor) -> Image.Image:
        """Resize a reference [3, h, w] in [0, 1] for the vision-language model, in 8 bits as the pipeline."""
        from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus

        ratio = image.shape[2] / image.shape[1]
        width, height = plus.calculate_dimensions(plus.CONDITION_IMAGE_SIZE, ratio)
        return self.pipe.image_processor.resize(to_pil(image), height, width)

    def _embed(
        self, prompts: Sequence[str], pictures: Sequence[Sequence[Image.Image]]
    ) -> tuple[Tensor, Tensor]:
        """Return embeddings [B, T, D], zero where padded, and which are real [B, T], bool.

        One sample at a time, so that it does not depend on its batch.
        """
        rows = [self._embed_one(*one) for one in zip(prompts, pictures, strict=True)]
        embeds = [pad(row, (0, 0, 0, self.max_text_tokens - len(row))) for row in rows]
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        real = torch.arange(self.max_text_tokens, device=self.device) < lengths[:, None]
        return torch.stack(embeds), real

    def _embed_one(self, prompt: str, pictures: Sequence[Image.Image]) -> Tensor:
        """Return embeddings of a prompt and its pictures without the instructions before them [<= T, D]."""
        pipe = self.pipe
        shown = "".join(PICTURE.format(number) for number in range(1, len(pictures) + 1))
        inputs = pipe.processor(
            text=[pipe.prompt_template_encode.format(shown + prompt)],
            images=list(pictures),
            return_mm_token_type_ids=True,
            return_tensors="pt",
        ).to(self.device)
        start = pipe.prompt_template_encode_start_idx
        n_tokens = inputs["input_ids"].shape[1] - start
        if n_tokens > self.max_text_tokens:
            raise UserError(
                f"a prompt with its {len(pictures)} references has {n_tokens} tokens, "
                f"model.max_text_tokens is {self.max_text_tokens}: {prompt!r}",
                hint=f"Set model.max_text_tokens to {n_tokens} or more, or shorten the prompt.",
            )
        # not the whole text encoder, which would also score the next token at every position
        return pipe.text_encoder.model(**inputs, use_cache=False).last_hidden_state[0, start:]

    def _reference_tokens(self, images: Tensor) -> Tensor:
        """Map images [B, 3, h, w] in [0, 1] to tokens [B, R, C], fp32."""
        vae = self.pipe.vae
        pixels = (images * 2 - 1).to(device=self.device, dtype=vae.dtype)
        latents = vae.encode(pixels.unsqueeze(2)).latent_dist.mode()[:, :, 0].float()
        mean, std = self._latent_statistics()
        return pack((latents - mean) / std)

    def _latent_statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the VAE's latents, each [C / 4, 1, 1], fp32."""
        config = self.pipe.vae.config
        mean, std = torch.tensor([config.latents_mean, config.latents_std], device=self.device)
        return mean[:, None, None], std[:, None, None]

    # Sampling

    def noise(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        """Return initial noise [B, N, C], fp32: sample i depends on generators[i] alone."""
        rows, columns = self.grid(height, width)
        shape = (self.pipe.vae.config.z_dim, PATCH * rows, PATCH * columns)
        return pack(self._draw(generators, shape))

    def _shift(self, steps: int, n_tokens: int) -> float:
        return linear_shift(self.pipe.scheduler.config, n_tokens)

    def velocity(self, x: Tensor, sigma: float | Tensor, conditioning: Conditioning) -> Tensor:
        """Return the predicted v = noise - x0, guided, for rollouts and for training alike.

        With w the guidance, u and u' the velocities for the prompt and for the prompt " ", as the pipeline:
        c = u' + w (u - u'), v = c |u| / |c|, lengths token by token. Gradients flow through both.

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
        self._check_grids(conditioning)
        level = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(len(x))
        v = self._predict(x, level, conditioning, "prompt")
        if not self._is_guided:
            return v
        without = self._predict(x, level, conditioning, "negative")
        with self._autocast_off():
            combined = without + self.guidance * (v - without)
            return combined * (v.norm(dim=-1, keepdim=True) / combined.norm(dim=-1, keepdim=True))

    def _predict(self, x: Tensor, level: Tensor, conditioning: Conditioning, text: str) -> Tensor:
        """Call the transformer with one of the conditioning's texts, "prompt" or "negative"."""
        sample = conditioning.per_sample
        shapes = [(1, rows, columns) for rows, columns in conditioning.shared["grids"].tolist()]
        v = self._call_transformer(
            hidden_states=torch.cat([x, sample["reference_tokens"]], dim=1),
            timestep=level,
            encoder_hidden_states=sample[f"{text}_embeds"],
            encoder_hidden_states_mask=sample[f"{text}_mask"],
            img_shapes=[shapes] * len(x),
        )
        return v[:, : x.shape[1]].float()

    @torch.no_grad()
    def decode(self, x: Tensor, height: int, width: int) -> Tensor:
        """Return images [B, 3, height, width] in [0, 1], fp32, of clean image tokens [B, N, C]."""
        vae = self.pipe.vae
        mean, std = self._latent_statistics()
        latents = unpack(x, self.grid(height, width)) * std + mean
        with self.placement.vae(), self._autocast():
            pixels = vae.decode(latents.unsqueeze(2).to(vae.dtype), return_dict=False)[0][:, :, 0]
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    def _check_grids(self, conditioning: Conditioning) -> None:
        """Refuse grids of another bucket, which the transformer would take without complaint."""
        image, *references = conditioning.shared["grids"].tolist()
        expected = self.grid(conditioning.height, conditioning.width)
        assert tuple(image) == expected, f"image tokens in a grid {image}, expected {expected}"
        n_references = conditioning.per_sample["reference_tokens"].shape[1]
        n_places = sum(rows * columns for rows, columns in references)
        assert n_places == n_references, f"grids for {n_places} reference tokens, there are {n_references}"


def load_processor(path: str) -> Any:
    """Load a checkpoint's processor of text and images, for its pipeline's `from_pretrained(processor=...)`.

    The published processor also has a part for videos, which this family never uses and which cannot be
    loaded without torchvision.

    Args:
        path: A folder in diffusers' layout, or a hub id such as "owner/name".

    Raises:
        OSError: The folder `processor` is missing or incomplete, or the hub cannot be reached.
    """
    return _processor_class().from_pretrained(path, subfolder="processor")


def make_processor(image_processor: Any, tokenizer: Any) -> Any:
    """Join an image processor and a tokenizer of transformers to what the pipeline calls its processor."""
    return _processor_class()(image_processor, tokenizer)


def _processor_class() -> Any:
    from transformers import Qwen2VLProcessor

    class ImageTextProcessor(Qwen2VLProcessor):
        """Its parent reads from this signature which parts there are."""

        def __init__(self, image_processor: Any = None, tokenizer: Any = None) -> None:
            super().__init__(image_processor, tokenizer)

    return ImageTextProcessor
