"""A Llama of ninety thousand weights, made from nothing, and its words."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import task

LESSONS = 200
LESSON_SIZE = 64
LESSON_RATE = 3e-3


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word; decoded words have one space between them."""
    words = {word: place for place, word in enumerate(task.VOCABULARY)}
    core = Tokenizer(models.WordLevel(words, unk_token=task.PAD))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=task.PAD, eos_token=task.END, padding_side="left")


def llama_config() -> LlamaConfig:
    """Two layers of width 64, for a policy or, with one label, for a reward model."""
    return LlamaConfig(
        vocab_size=len(task.VOCABULARY),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        pad_token_id=task.VOCABULARY.index(task.PAD),
        bos_token_id=None,
        eos_token_id=task.VOCABULARY.index(task.END),
        num_labels=1,
    )


def new_model(seed: int) -> LlamaForCausalLM:
    """A policy with weights drawn from the seed."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(llama_config())


def teach_format(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int) -> float:
    """Train on sets of K random gifts, so that the policy knows the format and prefers no gift; the last loss."""
    rng = np.random.default_rng([task.TABLE_SEED, seed])
    rows = task.Tables().train
    optimizer = torch.optim.AdamW(model.parameters(), LESSON_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, LESSONS)
    model.train()
    last = float("nan")
    for _ in range(LESSONS):
        adjectives = rng.choice(task.ADJECTIVES, (LESSON_SIZE, task.K))
        nouns = rng.choice(task.NOUNS, (LESSON_SIZE, task.K))
        sets = [
            task.completion([f"{adjective} {noun}" for adjective, noun in zip(*gifts, strict=True)])
            for gifts in zip(adjectives, nouns, strict=True)
        ]
        prompts = [task.PROMPTS[row] for row in rng.choice(rows, LESSON_SIZE)]
        ids = torch.tensor(tokenizer([f"{p} {s}" for p, s in zip(prompts, sets, strict=True)])["input_ids"])
        labels = ids.clone()
        labels[:, : len(tokenizer(prompts[0])["input_ids"])] = -100
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        last = float(loss.detach())
    return last


@cache
def _lesson(seed: int) -> tuple[dict[str, torch.Tensor], float]:
    """Weights after the lessons and the last loss: the same for every method, so they are taught once per process."""
    model = new_model(seed)
    loss = teach_format(model, word_tokenizer(), seed)
    return {name: weight.clone() for name, weight in model.state_dict().items()}, loss


def taught_model(seed: int) -> tuple[LlamaForCausalLM, float]:
    """A model that knows the format, and the last loss of its lessons."""
    weights, loss = _lesson(seed)
    model = new_model(seed)
    model.load_state_dict(weights)
    return model, loss
