"""The models of the demonstration of SCAR, made from nothing: a reward model that is taught, and the policy."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast
from transformers.utils import logging

import scar_task as task

RM_STEPS = 2200
RM_BATCH = 128
RM_RATE = 3e-3
LESSONS = 300
LESSON_SIZE = 64
LESSON_RATE = 3e-3
SEED = 7
HELD_OUT = 2048
"""Texts that the reward model is judged by, drawn from another seed than those it is taught."""


@dataclass(frozen=True)
class Fit:
    """How well the reward model knows what notes are worth.

    Attributes:
        r_squared: Share of the variance of the reward that its scores explain, on held-out notes like the taught ones.
        accuracy: Share of those notes whose score, rounded to a whole number, is the reward.
        r_squared_start: As `r_squared`, on what the policy writes before training.
        accuracy_start: As `accuracy`, on what the policy writes before training.
        decoy_effect: Mean change of its score when a decoy takes the place of a noun without effect; the truth is 0.
        decoy_correlation: Of the presence of a decoy with the reward, in the taught notes.
        seconds: Processor time in which it was taught.
    """

    r_squared: float
    accuracy: float
    r_squared_start: float
    accuracy_start: float
    decoy_effect: float
    decoy_correlation: float
    seconds: float


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word; decoded words have one space between them."""
    words = {word: place for place, word in enumerate(task.VOCABULARY)}
    core = Tokenizer(models.WordLevel(words, unk_token=task.PAD))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=task.PAD, eos_token=task.END, padding_side="right")


def llama_config() -> LlamaConfig:
    """Two layers of width 64, for the policy or, with one label, for the reward model."""
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


def save_reward_model(folder: Path, steps: int = RM_STEPS) -> Fit:
    """Teach a reward model, and write it as a service loads it.

    Args:
        folder: Where the model and its tokenizer are written.
        steps: How long it is taught.

    Returns:
        How well it knows notes that it was not taught.
    """
    torch.set_num_threads(1)
    started = time.process_time()
    model = _taught(steps)
    seconds = time.process_time() - started
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    rng = np.random.default_rng([task.SEED, SEED, 1])
    themes = rng.integers(0, len(task.THEMES), HELD_OUT)
    taught = [task.taught_note(rng, int(theme)) for theme in themes]
    start = [task.start_note(rng) for _ in themes]
    r_squared, accuracy = _judged(model, themes.tolist(), taught)
    r_squared_start, accuracy_start = _judged(model, themes.tolist(), start)
    decoys = [task.nouns_of(int(theme))[6] in text.split() for theme, text in zip(themes, taught, strict=True)]
    rewards = [task.reward(int(theme), text) for theme, text in zip(themes, taught, strict=True)]
    return Fit(
        r_squared=r_squared,
        accuracy=accuracy,
        r_squared_start=r_squared_start,
        accuracy_start=accuracy_start,
        decoy_effect=_decoy_effect(model, themes.tolist(), start),
        decoy_correlation=float(np.corrcoef(decoys, rewards)[0, 1]),
        seconds=seconds,
    )


def new_policy() -> LlamaForCausalLM:
    """A policy that knows nothing."""
    torch.manual_seed(SEED)
    return LlamaForCausalLM(llama_config())


def save_policy(folder: Path, lessons: int = LESSONS) -> float:
    """Teach the policy from which every training starts the form of a note, and write it.

    Args:
        folder: Where it is written.
        lessons: Batches that it is taught.

    Returns:
        The last loss, per token.
    """
    torch.set_num_threads(1)
    rng = np.random.default_rng([task.SEED, SEED, 2])
    model = new_policy()
    tokenizer = word_tokenizer()
    optimizer = torch.optim.AdamW(model.parameters(), LESSON_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, lessons)
    model.train()
    last = float("nan")
    for _ in range(lessons):
        prompts = [task.PROMPTS[row] for row in rng.integers(0, len(task.PROMPTS), LESSON_SIZE)]
        texts = [f"{prompt}{task.start_note(rng)} {task.END}" for prompt in prompts]
        ids = torch.tensor(tokenizer(texts)["input_ids"])
        labels = ids.clone()
        labels[:, : len(task.PROMPTS[0].split())] = -100
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        last = float(loss.detach())
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    return last


def scores(model: LlamaForSequenceClassification, themes: Sequence[int], texts: Sequence[str]) -> torch.Tensor:
    """Scores of notes behind their prompts, as a service gives them."""
    tokenizer = word_tokenizer()
    batch = tokenizer(
        [f"{task.PROMPTS[theme]}{text}" for theme, text in zip(themes, texts, strict=True)],
        return_tensors="pt",
        padding=True,
    )
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]


def _taught(steps: int) -> LlamaForSequenceClassification:
    """A model after so many batches of notes, each note a new one."""
    torch.manual_seed(SEED)
    rng = np.random.default_rng([task.SEED, SEED, 0])
    model = LlamaForSequenceClassification(llama_config())
    optimizer = torch.optim.AdamW(model.parameters(), RM_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RM_RATE, total_steps=steps)
    model.train()
    for _ in range(steps):
        themes = rng.integers(0, len(task.THEMES), RM_BATCH).tolist()
        texts = [task.taught_note(rng, theme) for theme in themes]
        wanted = torch.tensor([task.reward(theme, text) for theme, text in zip(themes, texts, strict=True)])
        loss = torch.nn.functional.mse_loss(scores(model, themes, texts), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def _judged(model: LlamaForSequenceClassification, themes: Sequence[int], texts: Sequence[str]) -> tuple[float, float]:
    """Explained variance, and the share of rounded scores that are right."""
    with torch.inference_mode():
        found = scores(model, themes, texts).double().numpy()
    truth = np.array([task.reward(theme, text) for theme, text in zip(themes, texts, strict=True)])
    return 1.0 - float(((found - truth) ** 2).mean() / truth.var()), float((np.rint(found) == truth).mean())


def _decoy_effect(model: LlamaForSequenceClassification, themes: Sequence[int], texts: Sequence[str]) -> float:
    """Mean difference of scores with a decoy, and without, in the place of the first noun that does nothing."""
    kept, changed = [], []
    for theme, text in zip(themes, texts, strict=True):
        words, nouns = text.split(), task.nouns_of(theme)
        place = next((place for place, word in enumerate(words) if word in nouns[7:]), None)
        if place is not None:
            kept.append((theme, text))
            changed.append(" ".join((*words[:place], nouns[6], *words[place + 1 :])))
    numbers = [theme for theme, _ in kept]
    with torch.inference_mode():
        difference = scores(model, numbers, changed) - scores(model, numbers, [text for _, text in kept])
    return float(difference.double().mean())
