"""FLUX.1's last block, computed for the image's tokens alone: the others of its output are dropped.

Legend: B samples, T text tokens, N image tokens, R reference tokens, D channels, d of them a head's.

A single-stream block has [text, image, references] in one sequence of T + N + R tokens. After the last one
the model's output for text and references is not used. So its queries, its MLP and its output layer are
needed for N tokens; keys and values are those of all tokens. The norm and the layer after it get N tokens.

On a CPU velocities are those of the whole block, bit for bit. Gradients are equal up to rounding: those of
the adapter are sums over fewer rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from customized_grpo.errors import UserError


def cut_last_block(transformer: Any) -> None:
    """Let the last block of a FluxTransformer2DModel compute the image's tokens alone inside `keeping`.

    It stays the same module: its layers may have an adapter, be quantised, sharded or compiled.

    Raises:
        UserError: The model has no single-stream blocks.
    """
    if not transformer.single_transformer_blocks:
        raise UserError(
            "model.last_block=image: this checkpoint has no single-stream blocks",
            hint="Set model.last_block=whole.",
        )
    block = transformer.single_transformer_blocks[-1]
    block.n_kept = None  # outside of `keeping` it computes all tokens
    block.whole_forward = block.forward
    block.forward = MethodType(_forward, block)


@contextmanager
def keeping(transformer: Any, n_image: int) -> Iterator[None]:
    """Have the model's output for the image's tokens alone inside the block, if `cut_last_block` was called.

    Args:
        transformer: A FluxTransformer2DModel.
        n_image: Number N of image tokens, the first of its `hidden_states`.
    """
    with _kept(transformer.single_transformer_blocks[-1:], n_image):
        yield


@contextmanager
def _kept(blocks: Any, n_kept: int) -> Iterator[None]:
    cut = [block for block in blocks if hasattr(block, "n_kept")]
    before = [block.n_kept for block in cut]
    for block in cut:
        block.n_kept = n_kept
    try:
        yield
    finally:
        for block, number in zip(cut, before, strict=True):
            block.n_kept = number


def recomputed(block: Any, *inputs: Any) -> Any:
    """Call a block under gradient checkpointing; its backward pass keeps as many tokens as its forward pass.

    A rollout that keeps its graphs may send buckets of several sizes through the block before the first of
    them goes back.

    Args:
        block: A block of a FluxTransformer2DModel, the last one or another.
        inputs: What its `forward` takes.
    """
    n_kept = getattr(block, "n_kept", None)

    def contexts() -> tuple[Any, Any]:
        return nullcontext(), nullcontext() if n_kept is None else _kept([block], n_kept)

    return checkpoint(block.__call__, *inputs, use_reentrant=False, context_fn=contexts)


def _forward(
    block: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb: Tensor,
    image_rotary_emb: tuple[Tensor, Tensor],
    joint_attention_kwargs: Any = None,
) -> tuple[Tensor, Tensor]:
    """Compute what diffusers' FluxSingleTransformerBlock does, for the image's tokens.

    Args:
        block: The block.
        hidden_states: [B, N + R, D].
        encoder_hidden_states: [B, T, D].
        temb: Embedded noise level and pooled text [B, D].
        image_rotary_emb: Cosines and sines of all positions, [T + N + R, d] each.
        joint_attention_kwargs: As diffusers passes it on; no policy gives any.

    Returns:
        The text as it came, which nobody reads after the last block, and the image [B, N, D].
    """
    if block.n_kept is None:
        whole: tuple[Tensor, Tensor] = block.whole_forward(
            hidden_states, encoder_hidden_states, temb, image_rotary_emb, joint_attention_kwargs
        )
        return whole
    assert not joint_attention_kwargs, joint_attention_kwargs
    n_text = encoder_hidden_states.shape[1]
    image = slice(n_text, n_text + block.n_kept)
    tokens = torch.cat([encoder_hidden_states, hidden_states], dim=1)
    normed, gate = block.norm(tokens, emb=temb)  # of all tokens, for keys and values
    # Contiguous, or each layer takes a product of batches: slower, and with other bits.
    kept = normed[:, image].contiguous()
    attended = _attention(block.attn, kept, normed, image_rotary_emb, image)
    mlp = block.act_mlp(block.proj_mlp(kept))
    change = gate.unsqueeze(1) * block.proj_out(torch.cat([attended, mlp], dim=2))
    return encoder_hidden_states, tokens[:, image] + change


def _attention(
    attn: Any, kept: Tensor, normed: Tensor, rotary: tuple[Tensor, Tensor], image: slice
) -> Tensor:
    """Return what the image's tokens [B, N, D] take from all tokens [B, T + N + R, D], as [B, N, D]."""
    from diffusers.models.attention_dispatch import dispatch_attention_fn
    from diffusers.models.embeddings import apply_rotary_emb

    by_head = (-1, attn.head_dim)
    query = attn.norm_q(attn.to_q(kept).unflatten(-1, by_head))
    key = attn.norm_k(attn.to_k(normed).unflatten(-1, by_head))
    value = attn.to_v(normed).unflatten(-1, by_head)
    # each token keeps its own position
    query = apply_rotary_emb(query, (rotary[0][image], rotary[1][image]), sequence_dim=1)
    key = apply_rotary_emb(key, rotary, sequence_dim=1)
    attended: Tensor = dispatch_attention_fn(query, key, value, backend=attn.processor._attention_backend)
    return attended.flatten(2, 3).to(query.dtype)
