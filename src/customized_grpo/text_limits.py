"""How much of a prompt a text encoder reads, by its own tokenizer; and an estimate where there is none."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

CLIP_TOKENS = 77
"""Tokens that every published CLIP reads, its two special ones included."""

BATCH = 4096  # texts tokenised at once

LETTERS_PER_TOKEN = 7
"""Letters of Latin script that one token of a long word has in CLIP's vocabulary, roughly."""


@dataclass(frozen=True)
class TextLimit:
    """A text encoder that reads a prompt up to some length.

    Attributes:
        reader: What it is called in messages.
        limit: Most tokens that it reads, special ones and a chat template included.
        count: Returns the tokens of each text, counted in the same way.
    """

    reader: str
    limit: int
    count: Callable[[Sequence[str]], list[int]]


def token_counter(tokenizer: Any, template: int | None = None) -> Callable[[Sequence[str]], list[int]]:
    """Return a function that counts the tokens of texts by a tokenizer of transformers.

    Args:
        tokenizer: The tokenizer.
        template: Tokens of a chat template around each text; None: the tokenizer's own special tokens.
    """

    def count(texts: Sequence[str]) -> list[int]:
        # verbose: the tokenizer would itself warn of long texts, once, and name no row
        ids = tokenizer(list(texts), add_special_tokens=template is None, verbose=False).input_ids
        return [len(row) + (template or 0) for row in ids]

    return count


def cut_texts(limit: TextLimit, texts: Sequence[str]) -> dict[int, int]:
    """Return the tokens of each text that is too long, by its index."""
    # No ASCII character has more than one token (and T5 may put one before the text), so most short texts
    # need not be counted.
    (overhead,) = limit.count([""])
    longest = limit.limit - overhead - 1
    candidates = [k for k, text in enumerate(texts) if not text.isascii() or len(text) > longest]
    cut: dict[int, int] = {}
    for start in range(0, len(candidates), BATCH):
        batch = candidates[start : start + BATCH]
        counts = limit.count([texts[k] for k in batch])
        cut |= {k: count for k, count in zip(batch, counts, strict=True) if count > limit.limit}
    return cut


def cut_sentence(limit: TextLimit, labels: Sequence[str], texts: Sequence[str]) -> str | None:
    """Return how many prompts are cut, and the longest of them; None where all are read whole.

    Args:
        limit: The text encoder.
        labels: What to call each prompt, such as "row 'a'".
        texts: The prompts.
    """
    cut = cut_texts(limit, texts)
    if not cut:
        return None
    longest = max(cut, key=lambda index: cut[index])
    return (
        f"{limit.reader} reads {limit.limit} tokens of a prompt and cuts the rest: {len(cut):,} of "
        f"{len(texts):,} prompts are longer, the longest has {cut[longest]:,} ({labels[longest]})"
    )


def estimated_tokens(text: str) -> int:
    """Return about how many tokens CLIP has for a text, without its vocabulary.

    Words of Latin script have one token and another for every `LETTERS_PER_TOKEN` letters more; a digit, a
    mark or a symbol has one; so has a letter of another alphabet, and a character of Chinese, Japanese or
    Korean two, because their UTF-8 bytes are hardly merged.
    """
    tokens = 2  # start and end
    in_word = 0
    for character in text:
        is_latin = character.isalpha() and unicodedata.name(character, "").startswith("LATIN")
        if is_latin:
            tokens += in_word % LETTERS_PER_TOKEN == 0
            in_word += 1
            continue
        in_word = 0
        if character.isspace():
            continue
        wide = unicodedata.east_asian_width(character) in "WF"
        tokens += 2 if wide else 1
    return tokens
