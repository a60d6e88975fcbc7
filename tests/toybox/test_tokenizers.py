from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from customized_grpo.toybox import prompts, world
from customized_grpo.toybox.models import TEXT_TOKENS
from customized_grpo.toybox.tokenizers import MAX_LENGTH, clip_tokenizer, t5_tokenizer

FULL = world.Scene("ball", "blue", "left", "green", "morning")


class Fixed:
    """Stands in for random.Random: picks the given wording of each clause in turn."""

    def __init__(self, choices: tuple[int, ...]) -> None:
        self.choices = iter(choices)

    def choice(self, words: tuple[str, ...]) -> str:
        return words[next(self.choices) % len(words)]


def longest_sentences() -> Iterator[str]:
    """Every wording of a scene under every sky; all sentences of one wording have as many words."""
    for sky in world.SKIES:
        scene = world.Scene("ball", "blue", "left", "green", sky)
        for choices in itertools.product(range(3), range(2), range(2), range(2)):
            yield prompts.to_prompt(scene, Fixed(choices))  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["clip", "t5"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return {"clip": clip_tokenizer, "t5": t5_tokenizer}[request.param]()


def test_every_word_is_one_token(tokenizer: Any) -> None:
    words = prompts.vocabulary()
    pieces = [tokenizer.tokenize(word) for word in words]
    assert [piece for piece in pieces if len(piece) != 1] == []
    ids = [tokenizer.convert_tokens_to_ids(piece[0]) for piece in pieces]
    assert len(set(ids)) == len(words)
    assert not set(ids) & set(tokenizer.all_special_ids)


def test_a_sentence_has_a_token_a_word_and_comes_back(tokenizer: Any) -> None:
    sentence = prompts.to_prompt(FULL)
    assert len(tokenizer.tokenize(sentence)) == len(sentence.split())
    assert tokenizer.decode(tokenizer(sentence).input_ids, skip_special_tokens=True).strip() == sentence


def test_the_longest_sentences_fit_without_truncation() -> None:
    sentences = list(longest_sentences())
    assert len(set(sentences)) == 96
    assert max(len(ids) for ids in t5_tokenizer()(sentences).input_ids) <= TEXT_TOKENS
    assert max(len(ids) for ids in clip_tokenizer()(sentences).input_ids) <= MAX_LENGTH


def test_a_foreign_word_is_spelled_out(tokenizer: Any) -> None:
    assert len(tokenizer.tokenize("zeppelin")) > 1
    assert tokenizer.decode(tokenizer("zeppelin").input_ids, skip_special_tokens=True).strip() == "zeppelin"


def test_the_pooled_token_is_the_end_token() -> None:
    """CLIP looks for the end token by its id, unless that is 2: then it takes the highest id instead."""
    tokenizer = clip_tokenizer()
    ids = tokenizer(prompts.to_prompt(FULL), padding="max_length", max_length=MAX_LENGTH).input_ids
    assert tokenizer.eos_token_id != 2
    assert ids[0] == tokenizer.bos_token_id
    assert ids.index(tokenizer.eos_token_id) == len(prompts.to_prompt(FULL).split()) + 1


def test_ids_are_the_same_every_time(tokenizer: Any) -> None:
    """Weights are trained with these ids; the trainer of byte pairs is not repeatable by itself."""
    build = {"CLIPTokenizer": clip_tokenizer, "T5Tokenizer": t5_tokenizer}[type(tokenizer).__name__]
    for _ in range(10):
        assert build().get_vocab() == tokenizer.get_vocab()


def test_ids_are_those_of_the_shipped_weights() -> None:
    words = ["a", "toy", "ball", "on", "at", "the", "upon"]
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    assert [clip(word).input_ids[1] for word in words] == [129, 249, 266, 194, 201, 248, 252]
    assert [t5(word).input_ids[0] for word in words] == [3, 31, 6, 21, 5, 29, 32]
