"""Which prompts a text encoder cuts, by its own tokenizer, and what is estimated without one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from customized_grpo.text_limits import TextLimit, cut_texts, estimated_tokens


def characters(texts: Sequence[str]) -> list[int]:
    """Count a token for each character, three for each that is not ASCII, and two special ones."""
    return [2 + sum(1 if character.isascii() else 3 for character in text) for text in texts]


def test_texts_over_the_limit_are_found_with_their_length() -> None:
    texts = ["a" * 8, "a" * 9, "", "\u732b\u732b", "\u732b\u732b\u732b"]
    assert cut_texts(TextLimit("x", 10, characters), texts) == {1: 11, 4: 11}


def test_short_ascii_texts_are_not_counted_at_all() -> None:
    counted: list[str] = []

    def count(texts: Sequence[str]) -> list[int]:
        counted.extend(texts)
        return characters(texts)

    assert cut_texts(TextLimit("x", 77, count), ["a red hat"] * 5000 + ["\u732b"]) == {}
    assert counted == ["", "\u732b"]


def test_more_texts_than_a_batch_keep_their_places() -> None:
    texts = ["\u732b"] * 5000
    texts[4500] = "a" * 20
    assert cut_texts(TextLimit("x", 10, characters), texts) == {4500: 22}


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", 2),
        ("a photo of a red hat", 8),
        ("a checkered floor, 12", 9),  # checkered: 2, the comma 1, each digit 1
        ("\u4e00\u53ea\u732b", 8),
        ("\u30cd\u30b3\u3068\uac1c", 10),
        ("\u043a\u043e\u0442", 5),
        ("na\u00efve caf\u00e9", 4),
        ("\U0001f431!", 5),
    ],
)
def test_an_estimate_knows_scripts(text: str, tokens: int) -> None:
    assert estimated_tokens(text) == tokens
