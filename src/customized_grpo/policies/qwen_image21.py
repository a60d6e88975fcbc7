"""The Qwen-Image-2.1 family (QwenImage21Pipeline): text to image, and images from several references.

Legend: B samples, N image tokens, R reference tokens, T text tokens, D width of a text embedding, C latent
channels.

A VAE of four channels, red, green, blue and opacity, made for videos, encodes an image (its mode, as one
frame, normalised by latents_mean and latents_std). A token is one latent pixel, 16 x 16 pixels of the image.
A vision-language model reads the prompt and the references; each of its image slots stands for 2 x 2 tokens
of a reference, so sizes are multiples of 32 pixels. The transformer sees one causal sequence,

    [text, first reference, text, second reference, ..., text of the prompt, image],

in which tokens of one image see each other. References and text are modulated by noise level 0.

* Guidance: 1, the published value, is none and one call. Above 1 there is a second call with the prompt " ":
  v = v' + w (v - v'), with the same references.
* Shift: from the number of image tokens, by the checkpoint's scheduler, then stretched so that the last noise
  level but 0 is `shift_terminal`. A checkpoint may bring noise levels of its own (`sample_sigmas`); they are
  taken when the recipe has as many steps, as the pipeline always has. With any other number the levels are
  even.
* Text: positions of the image come behind those of the text, so padding would move it. The transformer is
  called once for each length of text in a batch, without padding and without a mask. `max_text_tokens` bounds
  what is kept of a prompt in memory; it changes no result.

Departures from the pipeline: each sample has references of its own, at the size they come in, where the
pipeline resizes them to about one megapixel. Keys and values of text and references are computed in every
step; the pipeline can keep them from the first, which training cannot. Of an image that is not opaque
everywhere, what is seen over white is returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from customized_grpo.errors import UserError
from customized_grpo.pixels import to_pil
from customized_grpo.policies.qwen import NEGATIVE_PROMPT, QwenPolicy
from customized_grpo.policies.text_lengths import by_length
from customized_grpo.policies.tokens import Grid, pack, unpack
from customized_grpo.text_limits import TextLimit, token_counter

if TYPE_CHECKING:
    from customized_grpo.policies.architecture import CallShape
    from customized_grpo.policies.conditioning import Conditioning

IMAGE_SLOT = "<image{}><|vision_start|><|image_pad|><|vision_end|>"  # the words of the pipeline
TOKENS_PER_SLOT = 4  # tokens of a reference for one image slot of the vision-language model


class QwenImage21Policy(QwenPolicy):
    """A policy around a QwenImage21Pipeline."""

    TEXT_TO_IMAGE = True
    CALLS_BY_TEXT = True
    PATCH = 1
    SIDE_IN_TOKENS = 2
    PROCESSOR = "Qwen3VLProcessor"
    VAE_CHANNELS = 4
    LORA_TARGET = r"transformer_blocks\.\d+\.attn\.(to_[qkv]|to_out\.0)"

    # Conditioning

    def _encode(
        self,
        prompts: Sequence[str],
        references: Sequence[Sequence[Tensor]],
        image_grid: Grid,
        reference_grids: Sequence[Grid],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        with self.placement.text_encoders():
            embeds, lengths, slots = self._embed(prompts, references, reference_grids)
            per_sample = {"prompt_embeds": embeds, "prompt_length": lengths}
            if self._is_guided:
                negatives = [NEGATIVE_PROMPT] * len(prompts)
                embeds, lengths, _ = self._embed(negatives, references, reference_grids)
                per_sample |= {"negative_embeds": embeds, "negative_length": lengths}
        per_sample["reference_tokens"] = self._all_reference_tokens(references)
        grids = torch.tensor([image_grid, *reference_grids], device=self.device)
        return per_sample, {"grids": grids, "slots": slots}

    def text_limits(self) -> list[TextLimit]:
        """Return the limit of the text alone, to which each reference adds a few tokens of its own."""
        pipe = self.pipe
        tokens = token_counter(pipe.processor.tokenizer, template=0)

        def count(texts: Sequence[str]) -> list[int]:
            formatted = [pipe.prompt_template_t2i.format(text) for text in texts]
            return [n_tokens - pipe._drop_idx for n_tokens in tokens(formatted)]

        return [TextLimit("the generator's text encoder", self.max_text_tokens, count)]

    def _embed(
        self, prompts: Sequence[str], references: Sequence[Sequence[Tensor]], grids: Sequence[Grid]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return embeddings of the text [B, T, D], zero where padded, their lengths [B], and the slots.

        The slots [S], bool, say which places up to the last reference are image slots. They are the same for
        all samples: the text between references does not depend on the prompt. One sample at a time is read,
        so that it does not depend on its batch.
        """
        embeds = []
        lengths = []
        slots = torch.zeros(0, dtype=torch.bool, device=self.device)
        for prompt, images in zip(prompts, references, strict=True):
            text, is_slot = self._embed_one(prompt, images, grids)
            embeds.append(pad(text, (0, 0, 0, self.max_text_tokens - len(text))))
            lengths.append(len(text))
            # Up to the last slot the sequence is the same for all prompts of a bucket; behind it only texts
            # differ.
            slots = is_slot[: int(is_slot.nonzero().max()) + 1] if bool(is_slot.any()) else slots
        return torch.stack(embeds), torch.tensor(lengths, device=self.device), slots

    def _embed_one(
        self, prompt: str, references: Sequence[Tensor], grids: Sequence[Grid]
    ) -> tuple[Tensor, Tensor]:
        """Return embeddings of the text [<= T, D] and which places of the sequence are image slots, bool."""
        pipe = self.pipe
        inputs = self._processed(prompt, references)
        ids = inputs["input_ids"][0, pipe._drop_idx :]
        is_slot = ids == pipe._img_token_id
        self._check_slots(int(is_slot.sum()), grids)
        n_text = len(ids) - int(is_slot.sum())
        if n_text > self.max_text_tokens:
            raise UserError(
                f"a prompt with what surrounds its {len(references)} references has {n_text} tokens, "
                f"model.max_text_tokens is {self.max_text_tokens}: {prompt!r}",
                hint=f"Set model.max_text_tokens to {n_text} or more, or shorten the prompt.",
            )
        hidden = self._hidden_states(inputs)[0, pipe._drop_idx :]
        return hidden[~is_slot], is_slot

    def _processed(self, prompt: str, references: Sequence[Tensor]) -> Any:
        """Return the inputs of the vision-language model for a prompt and its references."""
        pipe = self.pipe
        if not references:
            text = pipe.prompt_template_t2i.format(prompt)
            return pipe.processor(text=[text], return_tensors="pt").to(self.device)
        # The template holds the first slot; those of further references follow it.
        slots = " ".join(IMAGE_SLOT.format(number) for number in range(1, len(references) + 1))
        text = pipe.prompt_template_ti2i.replace(IMAGE_SLOT.format(1), slots).format(prompt)
        images = [to_pil(image) for image in references]
        return pipe.processor(text=[text], images=images, return_tensors="pt").to(self.device)

    def _hidden_states(self, inputs: Any) -> Tensor:
        """Return the last decoder layer's output [1, L, D]: what comes before the last norm, as in training.

        transformers 5 returns it only behind that norm, so it is taken where the norm reads it.
        """
        taken: list[Tensor] = []
        model = self.pipe.text_encoder.model
        handle = model.language_model.norm.register_forward_pre_hook(lambda _, args: taken.append(args[0]))
        try:
            # not the whole text encoder, which would also score the next token at every position
            model(**inputs, use_cache=False)
        finally:
            handle.remove()
        return taken[0]

    def _check_slots(self, n_slots: int, grids: Sequence[Grid]) -> None:
        """Refuse references that the vision-language model's processor resized: their slots would not fit."""
        expected = sum(rows * columns for rows, columns in grids) // TOKENS_PER_SLOT
        if n_slots != expected:
            raise UserError(
                f"the references have {expected} image slots, but the text encoder makes {n_slots}: "
                "its processor resizes images that are too small or too large for it",
                hint="Set model.height and model.width closer to 1024.",
            )

    def _reference_tokens(self, images: Tensor) -> Tensor:
        """Map images [B, 3, h, w] in [0, 1] to tokens [B, R, C], fp32."""
        vae = self.pipe.vae
        # The autoencoder knows opacity; photographs are opaque.
        opaque = torch.ones_like(images[:, :1])
        pixels = (torch.cat([images, opaque], dim=1) * 2 - 1).to(device=self.device, dtype=vae.dtype)
        # a video of one frame in, its one frame out: [B, 4, 1, h, w] -> [B, C, h, w]
        latents = vae.encode(pixels.unsqueeze(2)).latent_dist.mode()[:, :, 0].float()
        mean, deviation = self._latent_statistics()
        return pack((latents - mean) / deviation, self.PATCH)

    # Sampling

    def _levels(self, steps: int) -> Any:
        """Return the checkpoint's own noise levels if it has so many, else even ones."""
        own = self.pipe.config.get("sample_sigmas")
        return own if own is not None and len(own) == steps else super()._levels(steps)

    def _velocity(self, x: Tensor, level: Tensor, conditioning: Conditioning) -> Tensor:
        v = self._predict(x, level, conditioning, "prompt")
        if not self._is_guided:
            return v
        without = self._predict(x, level, conditioning, "negative")
        return without + self.guidance * (v - without)

    def _predict(self, x: Tensor, level: Tensor, conditioning: Conditioning, text: str) -> Tensor:
        """Call the transformer with one of the conditioning's texts, "prompt" or "negative"."""

        def predict(x: Tensor, level: Tensor, conditioning: Conditioning, length: int) -> Tensor:
            embeds = conditioning.per_sample[f"{text}_embeds"][:, :length]
            return self._transform(x, level, conditioning, embeds)

        lengths = self._on_host(conditioning.per_sample[f"{text}_length"])
        return by_length(predict, x, level, conditioning, lengths)

    def _transform(self, x: Tensor, level: Tensor, conditioning: Conditioning, embeds: Tensor) -> Tensor:
        """Call the transformer with text [B, T, D] that is not padded; return v [B, N, C], fp32."""
        image, *references = self._grids(conditioning)
        text, is_slot = sequence(embeds, conditioning.shared["slots"], x.shape[1])
        # References first here, and the image last, unlike in the other families.
        shapes = [(1, rows, columns) for rows, columns in [*references, image]]
        v = self._call_transformer(
            hidden_states=torch.cat([conditioning.per_sample["reference_tokens"], x], dim=1),
            timestep=level,
            encoder_hidden_states=text,
            # img_shapes and img_mask are per sample, though the transformer takes the first for all
            img_shapes=[shapes] * len(x),
            img_mask=is_slot.expand(len(x), -1),
        )
        # the image is last; the rest is its output for text and references
        return v[:, -x.shape[1] :].float()

    def _latents(self, x: Tensor, grid: Grid) -> Tensor:
        mean, deviation = self._latent_statistics()
        return unpack(x, grid, self.PATCH) * deviation + mean

    def _decode_latents(self, latents: Tensor) -> Tensor:
        frame = latents.unsqueeze(2)  # a video of one frame
        pixels = self.pipe.vae.decode(frame, return_dict=False)[0][:, :, 0].float()
        opacity = (pixels[:, 3:] / 2 + 0.5).clamp(0, 1)
        # over white, which is 1, as the text encoder sees references; the pipeline cuts colours as well
        return pixels[:, :3].clamp(-1, 1) * opacity + (1 - opacity)

    # Sizes

    @classmethod
    def text_channels(cls, transformer_config: Any) -> int:
        """Return D, the channels of the text embeddings that the transformer takes."""
        channels: int = transformer_config.context_in_dim
        return channels

    @classmethod
    def transformer_inputs(cls, shape: CallShape) -> dict[str, Any]:
        """Return the arguments that `_transform` gives, of any content, for texts of the greatest length."""
        n_image = shape.grid[0] * shape.grid[1]
        slots = torch.ones((shape.n_tokens - n_image) // TOKENS_PER_SLOT, dtype=torch.bool)
        embeds, is_slot = sequence(shape.text(), slots, n_image)
        return {
            "hidden_states": shape.hidden_states(),
            "timestep": torch.empty(shape.batch),
            "encoder_hidden_states": embeds,
            "img_shapes": [[(1, *grid) for grid in (*shape.references, shape.grid)]] * shape.batch,
            "img_mask": is_slot.expand(shape.batch, -1),
        }


def sequence(embeds: Tensor, slots: Tensor, n_image: int) -> tuple[Tensor, Tensor]:
    """Return a sequence of the vision-language model as the transformer takes it.

    Args:
        embeds: Embeddings of the text alone [B, T, D].
        slots: Which places up to the last reference are image slots [S], bool.
        n_image: Number N of image tokens, whose slots come last.

    Returns:
        Embeddings [B, L, D] with zeros in the slots of references, which the transformer replaces; and which
        places are image slots, bool [L + N / 4].
    """
    n_slots = int(slots.sum())
    # What is left of the text behind the last slot.
    after = embeds.shape[1] + n_slots - len(slots)
    is_slot = torch.cat([slots, slots.new_zeros(after)])
    whole = embeds.new_zeros(len(embeds), len(is_slot), embeds.shape[2])
    whole[:, ~is_slot] = embeds
    return whole, torch.cat([is_slot, is_slot.new_ones(n_image // TOKENS_PER_SLOT)])
