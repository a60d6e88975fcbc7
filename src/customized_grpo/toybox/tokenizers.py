"""Tokenizers with one token for every word of the ToyBox grammar, in the classes that FLUX.1 uses."""

from __future__ import annotations

import json
import string

from tokenizers import Tokenizer, models, trainers
from transformers import CLIPTokenizer, T5Tokenizer

from customized_grpo.toybox.prompts import vocabulary

MAX_LENGTH = 24


def clip_tokenizer() -> CLIPTokenizer:
    """Return a CLIPTokenizer in which every word of the grammar is one token.

    The pooled text token is found by the end token's id, which must not be 2 (a legacy code path of CLIP);
    the two special tokens therefore come last, as in the published vocabulary.
    """
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    # The trainer numbers the characters that end a word in the order of a hash map, and breaks ties between
    # merges by these numbers: naming all characters beforehand makes it repeatable.
    characters = sorted(set("".join(vocabulary())))
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        min_frequency=1,
        end_of_word_suffix="</w>",
        special_tokens=characters + [character + "</w>" for character in characters],
        show_progress=False,
    )
    bpe.train_from_iterator(vocabulary(), trainer)
    learned = json.loads(bpe.to_str())["model"]
    vocab: dict[str, int] = {}
    for character in sorted(set(string.printable) - set(string.whitespace)):
        vocab.setdefault(character, len(vocab))
        vocab.setdefault(character + "</w>", len(vocab))
    for token in sorted(learned["vocab"], key=learned["vocab"].get):
        vocab.setdefault(token, len(vocab))
    for token in ("<|startoftext|>", "<|endoftext|>"):
        vocab[token] = len(vocab)
    merges = [tuple(pair) for pair in learned["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_LENGTH)


def t5_tokenizer() -> T5Tokenizer:
    """Return a T5Tokenizer: one piece a word, single characters as a fallback for foreign words.

    Built by hand: training a Unigram model on so small a corpus prunes it down to characters.
    """
    words = [("\u2581" + word, -4.0) for word in vocabulary()]
    characters = [("\u2581", -18.0)] + [(chr(code), -20.0) for code in range(33, 127)]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(vocab=special + words + characters, extra_ids=0, model_max_length=MAX_LENGTH)
