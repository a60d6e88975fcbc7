"""The Qwen-Image-Edit family: the checkpoints 2509 and 2511, "Plus", which take several references.

Legend: B samples, N image tokens, R reference tokens, T text tokens, D width of a text embedding,
C = 4 x latent channels of a token.

An image is encoded by a VAE made for videos (its mode, as one frame, normalised by latents_mean and
latents_std), each 2x2 square of latent pixels is one token. The transformer sees [image tokens, reference
tokens]; its output for the reference tokens is dropped. Every reference is used twice: as tokens, at the size
it has (the pipeline resizes it to about one megapixel), and by the vision-language model that reads the
prompt, at about 384x384 pixels.

* Guidance: two calls of the transformer, one with the prompt, one with the prompt " ", both with the
  references; combined, then rescaled token by token to the length of the prompt's velocity. A scale of 1 or
  less means no guidance and one call. `guidance_embeds` in a transformer's config has no weights behind it.
* Shift: from the number of image tokens, by the checkpoint's scheduler, then stretched so that the last
  noise level but 0 is `shift_terminal`.
* Ids: the transformer derives rotations from the rows and columns of the image and of every reference,
  counted from their centres; references differ by their number, 1, 2, ... All samples of a batch have the
  rotations of the first. In 2511 the transformer also finds the reference tokens by them and modulates those
  by noise level 0.
* Text: its positions start behind those of the images and padding is masked, so T changes no result.

A difference to diffusers 0.42: its pipeline does not say to the vision-language model which tokens are
images, and transformers 5 then silently numbers them like words, not by row and column as in training
(https://github.com/huggingface/diffusers/issues/14194). This policy says it.
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
from customized_grpo.policies.qwen import NEGATIVE_PROMPT, QwenPolicy
from customized_grpo.policies.tokens import Grid, pack, unpack
from customized_grpo.text_limits import TextLimit, token_counter

if TYPE_CHECKING:
    from customized_grpo.policies.architecture import CallShape
    from customized_grpo.policies.conditioning import Conditioning

IMAGE_SLOT = "Picture {}: <|vision_start|><|image_pad|><|vision_end|>"  # the words of the pipeline


class QwenEditPolicy(QwenPolicy):
    """A policy around a QwenImageEditPlusPipeline.

    Prompts are padded to `max_text_tokens` but never cut; each reference takes about 200 of them.
    """

    PROCESSOR = "Qwen2VLProcessor"
    LORA_TARGET = r"transformer_blocks\.\d+\.attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"

    @classmethod
    def default_target(cls, transformer: torch.nn.Module) -> str:
        """Return the target of all attention projections except two of the last block.

        The last block's text is not used by anything, so adapters on the layers that only make it would never
        get a gradient.
        """
        last = len(list(transformer.get_submodule("transformer_blocks").children())) - 1
        unused = rf"transformer_blocks\.{last}\.attn\.(add_q_proj|to_add_out)"
        return rf"(?!{unused}$){cls.LORA_TARGET}"

    # Conditioning

    def _encode(
        self,
        prompts: Sequence[str],
        references: Sequence[Sequence[Tensor]],
        image_grid: Grid,
        reference_grids: Sequence[Grid],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        # On the host, before the encoders come to the device.
        small = [self._shrink(images) for images in references]
        with self.placement.text_encoders():
            embeds, mask = self._embed(prompts, small)
            per_sample = {"prompt_embeds": embeds, "prompt_mask": mask}
            if self._is_guided:
                embeds, mask = self._embed([NEGATIVE_PROMPT] * len(prompts), small)
                per_sample |= {"negative_embeds": embeds, "negative_mask": mask}
        per_sample["reference_tokens"] = self._all_reference_tokens(references)
        # beside the other tensors: one of a cache comes back on the device, and `cat` compares the two
        return per_sample, {"grids": torch.tensor([image_grid, *reference_grids], device=self.device)}

    def text_limits(self) -> list[TextLimit]:
        """Return the limit of the text alone, to which each reference adds about 200 tokens."""
        pipe = self.pipe
        tokens = token_counter(pipe.tokenizer, template=0)
        start = pipe.prompt_template_encode_start_idx

        def count(texts: Sequence[str]) -> list[int]:
            formatted = [pipe.prompt_template_encode.format(text) for text in texts]
            return [n_tokens - start for n_tokens in tokens(formatted)]

        return [TextLimit("the generator's text encoder", self.max_text_tokens, count)]

    def _shrink(self, images: Sequence[Tensor]) -> list[Image.Image]:
        """Resize references [3, h, w] in [0, 1] for the vision-language model, in 8 bits as the pipeline."""
        return [self._shrink_one(image) for image in images]

    def _shrink_one(self, image: Tensor) -> Image.Image:
        from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus

        ratio = image.shape[2] / image.shape[1]
        width, height = plus.calculate_dimensions(plus.CONDITION_IMAGE_SIZE, ratio)
        return self.pipe.image_processor.resize(to_pil(image), height, width)

    def _embed(
        self, prompts: Sequence[str], references: Sequence[Sequence[Image.Image]]
    ) -> tuple[Tensor, Tensor]:
        """Return embeddings [B, T, D], zero where padded, and which are real [B, T], bool.

        One sample at a time, so that it does not depend on its batch.
        """
        rows = [self._embed_one(prompt, images) for prompt, images in zip(prompts, references, strict=True)]
        # Behind the text, where the mask hides it.
        embeds = [pad(row, (0, 0, 0, self.max_text_tokens - len(row))) for row in rows]
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        # [T] < [B, 1] -> [B, T]: padding is behind the text
        real = torch.arange(self.max_text_tokens, device=self.device) < lengths[:, None]
        return torch.stack(embeds), real

    def _embed_one(self, prompt: str, references: Sequence[Image.Image]) -> Tensor:
        """Return embeddings [<= T, D] of a prompt and its references; the chat template is left out."""
        pipe = self.pipe
        # Counted from 1, as the prompts of the training data call them.
        slots = "".join(IMAGE_SLOT.format(number) for number in range(1, len(references) + 1))
        inputs = pipe.processor(
            text=[pipe.prompt_template_encode.format(slots + prompt)],
            images=list(references),
            return_mm_token_type_ids=True,
            return_tensors="pt",
        ).to(self.device)
        start = pipe.prompt_template_encode_start_idx
        n_tokens = inputs["input_ids"].shape[1] - start
        if n_tokens > self.max_text_tokens:
            raise UserError(
                f"a prompt with its {len(references)} references has {n_tokens} tokens, "
                f"model.max_text_tokens is {self.max_text_tokens}: {prompt!r}",
                hint=f"Set model.max_text_tokens to {n_tokens} or more, or shorten the prompt.",
            )
        # not the whole text encoder, which would also score the next token at every position
        return pipe.text_encoder.model(**inputs, use_cache=False).last_hidden_state[0, start:]

    def _reference_tokens(self, images: Tensor) -> Tensor:
        """Map images [B, 3, h, w] in [0, 1] to tokens [B, R, C], fp32."""
        vae = self.pipe.vae
        pixels = (images * 2 - 1).to(device=self.device, dtype=vae.dtype)
        # a video of one frame in, its one frame out: [B, c, 1, h, w] -> [B, c, h, w]
        latents = vae.encode(pixels.unsqueeze(2)).latent_dist.mode()[:, :, 0].float()
        mean, deviation = self._latent_statistics()
        return pack((latents - mean) / deviation)

    # Sampling

    def _velocity(self, x: Tensor, level: Tensor, conditioning: Conditioning) -> Tensor:
        """Return v, guided as the pipeline guides.

        With w the guidance, u and u' the velocities for the prompt and for the prompt " ":
        c = u' + w (u - u'), v = c |u| / |c|, lengths token by token. Gradients flow through both.
        """
        v = self._predict(x, level, conditioning, "prompt")
        if not self._is_guided:
            return v
        without = self._predict(x, level, conditioning, "negative")
        with self._autocast_off():
            combined = without + self.guidance * (v - without)
            # The pipeline's rescaling: each token keeps the length that it has with the prompt alone.
            return combined * (v.norm(dim=-1, keepdim=True) / combined.norm(dim=-1, keepdim=True))

    def _predict(self, x: Tensor, level: Tensor, conditioning: Conditioning, text: str) -> Tensor:
        """Call the transformer with one of the conditioning's texts, "prompt" or "negative"."""
        sample = conditioning.per_sample
        shapes = [(1, rows, columns) for rows, columns in self._grids(conditioning)]
        # img_shapes has an entry for each sample, though the transformer takes the first for all
        v = self._call_transformer(
            hidden_states=torch.cat([x, sample["reference_tokens"]], dim=1),
            timestep=level,
            encoder_hidden_states=sample[f"{text}_embeds"],
            encoder_hidden_states_mask=sample[f"{text}_mask"],
            img_shapes=[shapes] * len(x),
        )
        return v[:, : x.shape[1]].float()

    def _latents(self, x: Tensor, grid: Grid) -> Tensor:
        mean, deviation = self._latent_statistics()
        return unpack(x, grid) * deviation + mean

    def _decode_latents(self, latents: Tensor) -> Tensor:
        frame = latents.unsqueeze(2)  # a video of one frame
        pixels: Tensor = self.pipe.vae.decode(frame, return_dict=False)[0][:, :, 0]
        return pixels

    # Sizes

    @classmethod
    def transformer_inputs(cls, shape: CallShape) -> dict[str, Any]:
        """Return the arguments that `_predict` gives, of any content."""
        grids = [(1, *grid) for grid in (shape.grid, *shape.references)]
        return {
            "hidden_states": shape.hidden_states(),
            "timestep": torch.empty(shape.batch),
            "encoder_hidden_states": shape.text(),
            "encoder_hidden_states_mask": torch.empty(shape.batch, shape.text_tokens, dtype=torch.bool),
            "img_shapes": [grids] * shape.batch,
        }
