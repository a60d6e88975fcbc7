"""Tokenizers: a vocabulary that is whole, and the one of the text encoder.

Where a vocabulary's file is missing, transformers makes one of two to four tokens and says nothing: every
prompt then is a row of unknown words.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from customized_grpo.errors import UserError
from customized_grpo.weights.files import AGAIN, check_json_files
from customized_grpo.weights.models import explained

VOCABULARIES = (
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
    ("spiece.model",),
    ("tokenizer.model",),
    ("sentencepiece.bpe.model",),
    ("tekken.json",),
)
"""Files that hold a vocabulary; one of these sets must be there."""
UNUSED_SHARE = 100
"""1 in so many rows of an embedding may be without a token: they are filled up to a round number, as in T5
(28 of 32,128) and Qwen2.5 (399 of 152,064)."""

MAX_TOKEN_ID = 10_000_000
"""No vocabulary is near it: Gemma's, of the largest, has 262,144 tokens."""

OTHER = "Tokenizer and text encoder are of different checkpoints."
_OLD_CLIP_END = 2


def load_tokenizer(tokenizer_class: Any, source: str, *, what: str, encoder: Any = None) -> Any:
    """Return the tokenizer of a folder or hub id.

    Args:
        tokenizer_class: Class of transformers.
        source: The folder, or a hub id.
        what: What messages call it.
        encoder: The text encoder, of transformers; None if only the tokenizer itself can be checked.

    Raises:
        UserError: Its files are missing or damaged, or it is another encoder's, see `check_tokenizer`.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        check_tokenizer_files(folder)
        source = str(folder)
    with explained(f"{what} could not be loaded"):
        tokenizer = tokenizer_class.from_pretrained(source)
    check_tokenizer(tokenizer, what, encoder)
    return tokenizer


def check_tokenizer_files(folder: Path) -> None:
    """Refuse a folder without the files of a vocabulary, or with a damaged one in JSON."""
    check_json_files(folder)
    _check_token_ids(folder / "tokenizer.json")
    for names in VOCABULARIES:
        if all((folder / name).is_file() for name in names):
            return
    known = ", ".join(" and ".join(names) for names in VOCABULARIES[:4])
    raise UserError(f"{folder}: the tokenizer's vocabulary is missing: {known}", hint=AGAIN)


def _check_token_ids(file: Path) -> None:
    """Refuse a token of an absurd number: the library makes a table of all numbers up to the largest."""
    content = json.loads(file.read_bytes()) if file.is_file() else None
    model = content.get("model") if isinstance(content, dict) else None
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict):
        return  # a list of pieces has no numbers of its own
    for token, number in vocabulary.items():
        if not isinstance(number, int) or not 0 <= number <= MAX_TOKEN_ID:
            raise UserError(f"{file}: token {token!r} has the number {number!r}", hint=AGAIN)


def check_tokenizer(tokenizer: Any, what: str, encoder: Any = None) -> None:
    """Refuse a tokenizer whose vocabulary is cut, or not that of a text encoder.

    Args:
        tokenizer: Of transformers.
        what: What messages call it.
        encoder: The text encoder, of transformers; None if only the tokenizer itself can be checked.

    Raises:
        UserError: Says the numbers.
    """
    size = len(tokenizer)
    if encoder is not None:
        _check_encoder(tokenizer, what, encoder)
    if tokenizer.eos_token_id is None and tokenizer.sep_token_id is None:
        raise UserError(f"{what} has no token that ends a text", hint=AGAIN)
    if tokenizer.pad_token_id is None:
        raise UserError(f"{what} has no token to fill up a text with", hint=AGAIN)
    lost = _unreachable(tokenizer)
    if len(lost) > size // UNUSED_SHARE:
        raise UserError(
            f"{what}: no merge makes {len(lost):,} of its {size:,} tokens, such as {lost[0]!r}: "
            "its list of merges is cut",
            hint=AGAIN,
        )


def _check_encoder(tokenizer: Any, what: str, encoder: Any) -> None:
    """Refuse a vocabulary that is not the text encoder's."""
    size = len(tokenizer)
    rows = encoder.get_input_embeddings().num_embeddings
    if size > rows:
        raise UserError(f"{what} has {size:,} tokens, its text encoder only {rows:,}", hint=OTHER)
    if rows - size > rows // UNUSED_SHARE:
        raise UserError(
            f"{what} has only {size:,} tokens, its text encoder {rows:,}: its vocabulary is cut", hint=AGAIN
        )
    # CLIP's result is its state at the end token; with 2, as in old configs, it takes the largest id
    ends = (_OLD_CLIP_END, tokenizer.eos_token_id)
    if encoder.config.model_type == "clip_text_model" and encoder.config.eos_token_id not in ends:
        raise UserError(
            f"{what} ends a text with {tokenizer.eos_token_id}, its text encoder looks for "
            f"{encoder.config.eos_token_id}",
            hint=OTHER,
        )


def _unreachable(tokenizer: Any) -> list[str]:
    """Return the tokens of a byte-pair vocabulary that no merge makes; none for other kinds of vocabulary."""
    if not tokenizer.is_fast:
        return []
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if model["type"] != "BPE":
        return []
    # a token of several letters is the result of a merge, or it can never occur in a text
    made = {"".join(pair) for pair in model["merges"]}
    special = set(tokenizer.added_tokens_encoder)
    end = model.get("end_of_word_suffix") or ""
    return [
        token
        for token in model["vocab"]
        if len(token.removesuffix(end)) > 1 and token not in made and token not in special
    ]
