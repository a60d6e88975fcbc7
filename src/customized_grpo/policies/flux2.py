"""The FLUX.2 family: FLUX.2-klein, distilled and base (Flux2KleinPipeline), and FLUX.2-dev (Flux2Pipeline).

Legend: B samples, N image tokens, R reference tokens, T text tokens, D channels of the text embeddings,
C = 4 x latent channels of a token.

An image is encoded by the VAE (its mode), each 2x2 square of latent pixels is one token, and tokens are
normalised by the running statistics of the VAE's BatchNorm, channel by channel; there is no scaling factor.
The transformer sees [text tokens, image tokens, reference tokens]; its output for the references is dropped.

Choices within the family; each is what the checkpoint's own pipeline does:

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
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from customized_grpo.errors import UserError
from customized_grpo.policies.batch_norm_tokens import BatchNormTokens
from customized_grpo.policies.options import Flux2Options
from customized_grpo.policies.settings import PolicySettings
from customized_grpo.policies.tokens import Grid
from customized_grpo.text_limits import TextLimit, token_counter

if TYPE_CHECKING:
    from diffusers import Flux2KleinPipeline, Flux2Pipeline

    from customized_grpo.policies.architecture import Architecture, CallShape
    from customized_grpo.policies.conditioning import Conditioning

GuidanceMode = Literal["none", "embedded", "classifier_free"]

REFERENCE_SPACING = 10  # distance in t between the image and its first reference, and from one to the next


class Flux2Policy(BatchNormTokens):
    """A policy around a Flux2KleinPipeline or Flux2Pipeline.

    What `guidance` does is the checkpoint's, see `guidance_mode`. `max_text_tokens` counts the chat template
    and the system message as well.

    Raises:
        UserError: The checkpoint has no use for this guidance or mu, or the text is too short for a prompt.
    """

    TEXT_TO_IMAGE = True
    LORA_TARGET = (
        r"transformer_blocks\.\d+\.attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)|"
        r"single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)"
    )

    def __init__(
        self, pipe: Flux2KleinPipeline | Flux2Pipeline, settings: PolicySettings, options: Flux2Options
    ) -> None:
        guidance_mode(pipe, settings.guidance)  # refuses a scale that the checkpoint has no use for
        _check_text_length(pipe, settings.max_text_tokens)
        super().__init__(pipe, settings, options)
        self.text_layers = options.text_layers

    @property
    def guidance_mode(self) -> GuidanceMode:
        """Return how the checkpoint uses the guidance scale of now."""
        return guidance_mode(self.pipe, self.guidance)

    # Conditioning

    def _encode(
        self,
        prompts: Sequence[str],
        references: Sequence[Sequence[Tensor]],
        image_grid: Grid,
        reference_grids: Sequence[Grid],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        shared = {
            "image_ids": token_ids(image_grid, reference_grids).to(self.device),
            "text_ids": text_ids(self.max_text_tokens).to(self.device),
        }
        with self.placement.text_encoders():
            embeds = self._text_tokens(prompts)
            if self.guidance_mode == "classifier_free":
                shared["empty_embeds"] = self._empty_embeds
        tokens = self._all_reference_tokens(references)
        return {"prompt_embeds": embeds, "reference_tokens": tokens}, shared

    def text_limits(self) -> list[TextLimit]:
        """Return the limit of the text encoder, whose chat template counts."""
        count = token_counter(self.pipe.tokenizer, template=_template_length(self.pipe))
        return [TextLimit("the generator's text encoder", self.max_text_tokens, count)]

    def _text_tokens(self, prompts: Sequence[str]) -> Tensor:
        """Map prompts to embeddings [B, T, D], in the text encoder's dtype."""
        layers = {} if self.text_layers is None else {"text_encoder_out_layers": self.text_layers}
        embeds: Tensor = self.pipe.encode_prompt(
            prompt=list(prompts), device=self.device, max_sequence_length=self.max_text_tokens, **layers
        )[0]
        return embeds

    @cached_property
    def _empty_embeds(self) -> Tensor:
        """Return embeddings [T, D] of the empty prompt, computed once: all conditionings share the bits."""
        with torch.no_grad(), self._autocast_off():
            return self._text_tokens([""])[0]

    # Sampling

    def _shift(self, steps: int, n_tokens: int) -> float:
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

        mu: float = compute_empirical_mu(image_seq_len=n_tokens, num_steps=steps)
        return mu

    def _velocity(self, x: Tensor, level: Tensor, conditioning: Conditioning) -> Tensor:
        # Classifier-free guidance takes two calls, with the prompt and then without, in rollouts and in
        # training, as in the pipeline: in one call of 2 B samples the rounding would depend on the guidance.
        v = self._transform(x, level, conditioning, conditioning.per_sample["prompt_embeds"])
        if self.guidance_mode != "classifier_free":
            return v
        # [T, D] -> [B, T, D], a view: one text for all samples
        empty_embeds = conditioning.shared["empty_embeds"].expand(len(x), -1, -1)
        v_empty = self._transform(x, level, conditioning, empty_embeds)
        # Guidance 1 is the prompt's velocity; above 1 it goes on past it, away from the empty prompt's.
        return v_empty + self.guidance * (v - v_empty)

    def _transform(self, x: Tensor, level: Tensor, conditioning: Conditioning, embeds: Tensor) -> Tensor:
        """Call the transformer on x [B, N, C] at level [B] with text [B, T, D]; return [B, N, C], fp32."""
        embedded = self.guidance_mode == "embedded"
        v = self._call_transformer(
            hidden_states=torch.cat([x, conditioning.per_sample["reference_tokens"]], dim=1),
            timestep=level,
            # One number for each sample, as the timestep.
            guidance=torch.full_like(level, self.guidance) if embedded else None,
            encoder_hidden_states=embeds,
            txt_ids=conditioning.shared["text_ids"],
            img_ids=conditioning.shared["image_ids"],
        )
        return v[:, : x.shape[1]].float()

    def _check_positions(self, conditioning: Conditioning, n_image: int, n_references: int) -> None:
        n_text = conditioning.per_sample["prompt_embeds"].shape[1]
        image_ids = conditioning.shared["image_ids"]
        ids_of_text = conditioning.shared["text_ids"]
        n_ids = len(image_ids)
        assert n_ids == n_image + n_references, f"{n_ids} ids for {n_image} + {n_references} tokens"
        assert len(ids_of_text) == n_text, f"{len(ids_of_text)} ids for {n_text} text tokens"
        assert image_ids.dtype == ids_of_text.dtype == torch.float32, "bf16 ids are wrong beyond 256"

    # Sizes

    @classmethod
    def calls_per_velocity(cls, architecture: Architecture, guidance: float) -> int:
        """Return 2 for FLUX.2-klein-base above a guidance of 1; the others embed guidance or take none."""
        embedded = architecture.transformer.config.get("guidance_embeds", True)
        return 1 if architecture.distilled or embedded or guidance <= 1 else 2

    @classmethod
    def texts_per_sample(cls, architecture: Architecture, guidance: float) -> int:
        """Return 1: the empty prompt is one for all samples."""
        return 1

    @classmethod
    def transformer_inputs(cls, shape: CallShape) -> dict[str, Any]:
        """Return the arguments that `_transform` gives, of any content."""
        return {
            "hidden_states": shape.hidden_states(),
            "timestep": torch.empty(shape.batch),
            "guidance": torch.empty(shape.batch) if shape.config.guidance_embeds else None,
            "encoder_hidden_states": shape.text(),
            "txt_ids": torch.empty(shape.text_tokens, 4),
            "img_ids": torch.empty(shape.n_tokens, 4),
        }


def guidance_mode(pipe: Flux2KleinPipeline | Flux2Pipeline, guidance: float) -> GuidanceMode:
    """Return how the checkpoint uses a guidance scale, see the module's docstring.

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
    # The image has slot 0, the references 1, 2, ..., far enough apart in t.
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
