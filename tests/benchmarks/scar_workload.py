"""What the benchmark of SCAR is about: a reward model of nine million parameters, and texts of known length.

Words are made of syllables at random, and the tokenizer is trained on them, so that a word with the space before it is
one token and a span of seven words and its comma is eight. Time does not depend on weights, which are random.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from engines.shapes import VOCABULARY, reward_model

SPAN = 8
EMBEDDINGS = 16384
"""With as many the shape that is called 9 M has nine million parameters."""
POSITIONS = 8192
"""Longer than any text here; rotary positions take no memory."""
_SYLLABLES = ["".join(pair) for pair in itertools.product("bdfgklmnprstvz", "aeiou")]
_SPAN_ENDS = re.compile(r"(?<=[.,;?!])")


@dataclass(frozen=True)
class Workload:
    """Completions of prompts.

    Attributes:
        prompts: One per completion; equal ones are one prompt.
        completions: As many texts.
        offsets: The characters of each completion's tokens, shape (T, 2) each.
    """

    prompts: tuple[str, ...]
    completions: tuple[str, ...]
    offsets: tuple[np.ndarray, ...]

    @property
    def spans(self) -> list[list[str]]:
        """What a peer calls spans: each text cut behind its punctuation."""
        return [[part for part in _SPAN_ENDS.split(text) if part] for text in self.completions]


def trained_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer as large as the model's vocabulary."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(_corpus(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>")  # noqa: S106 - a token of a tokenizer


def _corpus() -> list[str]:
    random = np.random.default_rng(0)
    words = ["".join(random.choice(_SYLLABLES, 2)) for _ in range(3 * VOCABULARY)]
    return [" " + " ".join(words[start : start + 50]) for start in range(0, len(words), 50)]


def words_of(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Words that are one token each with the space before them, wherever they stand."""
    words = [text[1:] for text in map(tokenizer.decode, range(len(tokenizer))) if re.fullmatch(r" [a-z]{3,}", text)]
    return [word for word in words if len(tokenizer(f" {word}").input_ids) == 1]


def saved_model(folder: Path, size: str = "9 M") -> PreTrainedTokenizerFast:
    """Write a reward model with its tokenizer, as `save_pretrained` does."""
    model, tokenizer = reward_model(size, vocab_size=EMBEDDINGS), trained_tokenizer()
    model.config.max_position_embeddings = POSITIONS
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def workload(
    tokenizer: PreTrainedTokenizerFast, *, prompt: int, spans: int, per_prompt: int, prompts: int = 1, seed: int = 0
) -> Workload:
    """Completions of some spans of eight tokens each.

    Args:
        tokenizer: Of the model.
        prompt: Tokens of each prompt.
        spans: Spans of each completion.
        per_prompt: Completions of each prompt.
        prompts: Number of prompts.
        seed: Of the words.
    """
    random, words = np.random.default_rng(seed), words_of(tokenizer)

    def phrase(n_words: int, end: str) -> str:
        return "".join(f" {word}" for word in random.choice(words, n_words)) + end

    asked = [phrase(prompt - 1, "?") for _ in range(prompts)]
    completions = [
        "".join(phrase(SPAN - 1, "," if number < spans else ".") for number in range(1, spans + 1))
        for _ in range(prompts * per_prompt)
    ]
    found = tokenizer(completions, return_offsets_mapping=True)
    wrong = {len(ids) for ids in found.input_ids} - {SPAN * spans} | {len(tokenizer(asked[0]).input_ids)} - {prompt}
    if wrong:
        raise RuntimeError(f"a text has another number of tokens than it was made for: {wrong}")
    return Workload(
        tuple(text for text in asked for _ in range(per_prompt)),
        tuple(completions),
        tuple(np.array(offsets, dtype=np.int64) for offsets in found.offset_mapping),
    )
