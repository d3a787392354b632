"""The policy of the demonstration of OAR: a Llama of half a million weights, taught until it is partly right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import oar_task as task

LESSON_SIZE = 64
LESSON_RATE = 2e-3
LESSONS = 800
"""Batches over which the rate would fall to a tenth; lessons end earlier, while the policy is partly right."""
GRADIENT_NORM = 1.0
PROMPT_TOKENS = len(task.prompt(100, 2).split())


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word; decoded words have one space between them."""
    words = {word: place for place, word in enumerate(task.VOCABULARY)}
    core = Tokenizer(models.WordLevel(words, unk_token=task.PAD))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=task.PAD, eos_token=task.END, padding_side="left")


def new_policy() -> LlamaForCausalLM:
    """Three layers of width 128, always the same weights."""
    torch.manual_seed(task.SEED)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(task.VOCABULARY),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=64,
            pad_token_id=task.VOCABULARY.index(task.PAD),
            bos_token_id=None,
            eos_token_id=task.VOCABULARY.index(task.END),
        )
    )


def save_checkpoint(directory: Path, lessons: int) -> float:
    """Teach a new policy and store it with its tokenizer.

    Args:
        directory: Where `from_pretrained` will look.
        lessons: Batches of written-out products, whose prompts have no loss.

    Returns:
        The last loss.
    """
    policy, tokenizer = new_policy(), word_tokenizer()
    rng = np.random.default_rng(task.SEED)
    rows, _ = task.problems()
    optimizer = torch.optim.AdamW(policy.parameters(), LESSON_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, LESSONS)
    last = float("nan")
    for _ in range(lessons):
        drawn = rows[rng.integers(0, len(rows), LESSON_SIZE)].tolist()
        texts = [f"{task.prompt(a, b)} {task.written(a, b, rng)} {task.END}" for a, b in drawn]
        ids = torch.tensor(tokenizer(texts)["input_ids"])
        labels = ids.clone()
        labels[:, :PROMPT_TOKENS] = -100
        loss = policy(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        last = float(loss.detach())
    policy.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return last


@dataclass(frozen=True)
class Drawn:
    """Completions that a policy wrote.

    Attributes:
        ids: Shape (B, T) int64, with whatever followed an end.
        entropy: Shape (B, T), nats, of the distribution that each token was drawn from.
        words: Each completion up to its end, which is in it.
    """

    ids: torch.Tensor
    entropy: torch.Tensor
    words: list[list[str]]


def draw(
    policy: LlamaForCausalLM, prompts: torch.Tensor, random: torch.Generator | None, n_tokens: int = task.WRITTEN
) -> Drawn:
    """What a policy writes behind each prompt.

    Args:
        policy: It.
        prompts: Shape (B, P), tokens of prompts of one length.
        random: Where temperature 1 draws from; None: the most probable token, always.
        n_tokens: Tokens that are written, T.

    Returns:
        That, shape (B, T) each.
    """
    cache = DynamicCache(config=policy.config)
    step, columns, entropies = prompts, [], []
    with torch.no_grad():
        for _ in range(n_tokens):
            logits = policy(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
            logs = logits.log_softmax(dim=-1)
            probabilities = logs.exp()
            if random is None:
                step = logits.argmax(dim=-1, keepdim=True)
            else:
                step = torch.multinomial(probabilities, 1, generator=random)
            columns.append(step)
            entropies.append(-(probabilities * logs).sum(dim=-1))
    ids = torch.cat(columns, dim=1)
    return Drawn(ids, torch.stack(entropies, dim=1), [words_of(row) for row in ids.tolist()])


def words_of(ids: list[int]) -> list[str]:
    """The words of tokens, up to the first end, which is in it."""
    words = [task.VOCABULARY[token] for token in ids]
    return words[: words.index(task.END) + 1] if task.END in words else words


def prompt_ids(rows: list[list[int]]) -> torch.Tensor:
    """Shape (B, P), the tokens of the prompts of problems."""
    return torch.tensor([[task.VOCABULARY.index(word) for word in task.prompt(*row).split()] for row in rows])
