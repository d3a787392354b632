"""A language model of a few thousand parameters with a word-level tokenizer, for tests on real trainers."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

torch.set_num_threads(1)

WORDS = ["one", "two", "three", "four", "five", "six"]
VOCABULARY = ["<pad>", "<eos>", "<unk>", "ask", ";", *WORDS]
PARSER = {"type": "regex", "pattern": r"(\w+) ?(?:;|$)"}
"""Each word before a semicolon, or at the end, is a candidate."""


def tokenizer(more=(), special=()):
    """Words and semicolons, one token each, and more words behind them, some of them registered as special."""
    words = [*VOCABULARY, *more]
    level = models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")  # noqa: S106 - a name
    splitting = Tokenizer(level)
    splitting.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=splitting,
        padding_side="left",
        **{f"{name}_token": f"<{name}>" for name in ("pad", "eos", "unk")},
    )
    if special:
        made.add_special_tokens({"additional_special_tokens": list(special)})
    return made


def model(seed=0, more=()):
    """Two layers of Qwen3, random weights."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(VOCABULARY) + len(more),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(config)
