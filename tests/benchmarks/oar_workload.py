"""What the benchmark of OAR is about: a policy of nine million parameters, and completions of known length.

A completion is reasoning, a conclusion and an answer, all of random tokens: time depends neither on them nor on the
weights, which are random too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from engines.shapes import SHAPES

VOCABULARIES = {"tiny": 512, "9 M": 16384}
"""With as many tokens, whose embeddings are those of the head as well, the shape is one of nine million weights."""
POSITIONS = 4096
SPREAD = 0.1
"""Standard deviation of the weights: at the usual .02 no token matters to an answer by more than float32 rounds."""
PAD, END, FIRST = 0, 1, 2
MARKED = 16
"""Of so many words that a policy writes at random one begins its answer: it has about as many tokens."""


@dataclass(frozen=True)
class Shape:
    """Tokens of one row.

    Attributes:
        prompt: Tokens of the prompt.
        reasoning: Tokens of the completion that are measured.
        conclusion: Tokens between the reasoning and the answer.
        answer: Tokens of the answer.
    """

    prompt: int
    reasoning: int
    conclusion: int
    answer: int

    @property
    def read(self) -> int:
        """Tokens up to the last one that predicts a token of the answer."""
        return self.prompt + self.reasoning + self.conclusion + self.answer - 1

    @property
    def answer_range(self) -> tuple[int, int]:
        """The answer in the completion."""
        start = self.reasoning + self.conclusion
        return start, start + self.answer

    @property
    def full_tokens(self) -> int:
        """Tokens that one forward pass over each row with one token replaced reads."""
        return self.reasoning * self.read

    @property
    def distinct_tokens(self) -> int:
        """Tokens of the trie: the row, and of each row with a replaced token the rest from it on."""
        return self.read + sum(self.read - self.prompt - place for place in range(self.reasoning))


@dataclass(frozen=True)
class Workload:
    """Completions of one shape.

    Attributes:
        shape: Of each.
        prompts: Shape (N, prompt), int64.
        completions: Shape (N, reasoning + conclusion + answer), int64.
    """

    shape: Shape
    prompts: np.ndarray
    completions: np.ndarray


def policy(size: str) -> Qwen3ForCausalLM:
    """A Qwen3 of a size with random weights, the same each time, frozen."""
    shape = dict(SHAPES[size])
    heads, kv_heads = shape.pop("heads")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARIES[size],
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=POSITIONS,
        pad_token_id=PAD,
        eos_token_id=END,
        tie_word_embeddings=True,
        initializer_range=SPREAD,
        **shape,
    )
    return Qwen3ForCausalLM(config).eval().requires_grad_(requires_grad=False)


def saved_policy(folder: Path, size: str) -> None:
    """Write a policy with a tokenizer of one word for each of its tokens, as `save_pretrained` does."""
    policy(size).save_pretrained(folder)
    words = {"<pad>": PAD, "<end>": END} | {word(number): number for number in range(FIRST, VOCABULARIES[size])}
    made = Tokenizer(models.WordLevel(words, unk_token="<end>"))  # noqa: S106 - a token of a tokenizer
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",  # noqa: S106 - likewise
        eos_token="<end>",  # noqa: S106 - likewise
        padding_side="left",
    ).save_pretrained(folder)


def word(number: int) -> str:
    """A word; every sixteenth begins with the mark behind which GSM8K has its answers."""
    return f"####{number:05d}" if number % MARKED == 0 else f"w{number}"


def workload(size: str, shape: Shape, completions: int, seed: int = 0) -> Workload:
    """Completions of random tokens, none of them special."""
    draw = np.random.default_rng(seed)
    length = shape.answer_range[1]
    return Workload(
        shape,
        draw.integers(FIRST, VOCABULARIES[size], (completions, shape.prompt)),
        draw.integers(FIRST, VOCABULARIES[size], (completions, length)),
    )
