"""A reward model of the task, made from nothing: the expected reward of a gift for a person, read from both as text."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaForSequenceClassification
from transformers.utils import logging

import task
from model import llama_config, word_tokenizer

STEPS = 600
PAIRS = 512
"""Persons with a candidate in one step."""
NO_GIFTS = 32
"""Those of them whose candidate is any two words; unless these are a gift, they are worth 0."""
RATE = 3e-3
SEED = 7


@dataclass(frozen=True)
class Fit:
    """How well a model knows what gifts are worth to persons that it was not taught.

    Attributes:
        correlation: Of its scores with the expected rewards, over all gifts for all held-out prompts.
        mean_absolute_error: Of its scores.
        standard_deviation: Of the expected rewards: what an error has to be compared with.
        seconds: How long it was taught.
    """

    correlation: float
    mean_absolute_error: float
    standard_deviation: float
    seconds: float


def expected_rewards(tables: task.Tables) -> task.Floats:
    """Of every two words for every prompt, in expectation over the hidden type; shape (prompts, words, words)."""
    prompts, words = np.arange(len(task.PROMPTS)), len(task.VOCABULARY)
    rewards = np.zeros((len(prompts), words, words))
    gifts = np.einsum("pt,ptan->pan", tables.types, tables.rewards)
    rewards[np.ix_(prompts, _places(task.ADJECTIVES), _places(task.NOUNS))] = gifts
    return rewards


def save_reward_model(folder: Path, steps: int = STEPS) -> Fit:
    """Teach a model the gifts of the prompts of training, and write it as a service loads it.

    Args:
        folder: Where the model and its tokenizer are written.
        steps: How long it is taught.

    Returns:
        How well it knows those of the held-out prompts.
    """
    torch.set_num_threads(1)
    started = time.perf_counter()
    tables = task.Tables()
    rewards = expected_rewards(tables)
    model = _taught(rewards, tables.train, steps)
    seconds = time.perf_counter() - started
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    rows, first, second = (
        part.ravel()
        for part in np.meshgrid(tables.held_out, _places(task.ADJECTIVES), _places(task.NOUNS), indexing="ij")
    )
    with torch.inference_mode():
        scores = _scores(model, rows, first, second).double().numpy()
    truth = rewards[rows, first, second]
    return Fit(
        correlation=float(np.corrcoef(scores, truth)[0, 1]),
        mean_absolute_error=float(np.abs(scores - truth).mean()),
        standard_deviation=float(truth.std()),
        seconds=seconds,
    )


def _taught(rewards: task.Floats, prompts: NDArray[np.int64], steps: int) -> LlamaForSequenceClassification:
    """A model after so many batches of random persons, gifts and other words."""
    torch.manual_seed(SEED)
    rng = np.random.default_rng([task.TABLE_SEED, SEED])
    model = LlamaForSequenceClassification(llama_config())
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    anything = _places((*(word for slot in task.ATTRIBUTES for word in slot), *task.ADJECTIVES, *task.NOUNS))
    model.train()
    for _ in range(steps):
        rows = rng.choice(prompts, PAIRS)
        first, second = rng.choice(_places(task.ADJECTIVES), PAIRS), rng.choice(_places(task.NOUNS), PAIRS)
        first[:NO_GIFTS], second[:NO_GIFTS] = rng.choice(anything, (2, NO_GIFTS))
        wanted = torch.from_numpy(rewards[rows, first, second]).float()
        loss = torch.nn.functional.mse_loss(_scores(model, rows, first, second), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def _scores(
    model: LlamaForSequenceClassification,
    rows: NDArray[np.int64],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
) -> torch.Tensor:
    """One per prompt with its two words."""
    prompts = np.array([_places(prompt.split()) for prompt in task.PROMPTS])
    return model(input_ids=torch.from_numpy(np.column_stack([prompts[rows], first, second]))).logits[:, 0]


def _places(words: list[str] | tuple[str, ...]) -> NDArray[np.int64]:
    """Tokens of words: their places in the vocabulary."""
    return np.array([task.VOCABULARY.index(word) for word in words], dtype=np.int64)
