"""One training run of the demonstration of SCAR: a plain GRPO loop whose token advantages come from the service.

Every step draws new notes from the policy, asks `POST /v1/credit/scar` for one advantage per token in the GRPO form,
and takes one optimizer step on −Σ advantage · log π / number of tokens. Methods differ in the credit and the α of the
request and, where it is chosen, in the learning rate.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache, LlamaForCausalLM
from transformers.utils import logging

import scar_task as task
from scar_plans import CHOICES, Plan

GROUP = 8
GROUPS_PER_THEME = 4
THEMES = tuple(theme for theme in range(len(task.THEMES)) for _ in range(GROUPS_PER_THEME * GROUP))
"""The theme of each rollout of a step."""
PARTS = (*(task.ADJECTIVES, task.NOUNS, task.MARKS) * task.REMARKS, (task.END,))
"""The words that may stand at each place of a note: policies write nothing else, so that units are remarks."""
NEW_TOKENS = len(PARTS)
FORM = torch.tensor([[word in part for word in task.VOCABULARY] for part in PARTS])
WARMUP = 5
GRADIENT_NORM = 1.0
EVALUATED = 256
"""Notes that an evaluation draws; the random numbers are the same every time."""

Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Notes:
    """What a policy wrote.

    Attributes:
        ids: Shape (B, T), tokens of the completions, their end included.
        texts: The notes, without special tokens.
        offsets: For each note, the characters [start, stop) that each of its tokens writes.
    """

    ids: torch.Tensor
    texts: list[str]
    offsets: list[list[tuple[int, int]]]


@dataclass(frozen=True)
class Credited:
    """What the service says of the notes of a step.

    Attributes:
        advantages: One array per note, an entry per token.
        scores: Shape (B,), the reward model's score of each whole note.
        units: Shape (B,), the number of its units.
        evaluations: Texts that the reward model read for them.
        seconds: What the request took.
        request_id: Its identity in the log of the service.
    """

    advantages: list[Floats]
    scores: Floats
    units: NDArray[np.int64]
    evaluations: int
    seconds: float
    request_id: str


Credit: TypeAlias = Callable[[str, Sequence[int], Notes], Credited]
"""From a method, the themes and the notes of a step to its credit."""


def settings() -> dict[str, Any]:
    """What all runs share, for the results."""
    return {
        "groups_per_step": len(THEMES) // GROUP,
        "rollouts_per_group": GROUP,
        "new_tokens": NEW_TOKENS,
        "warmup_steps": WARMUP,
        "gradient_norm": GRADIENT_NORM,
        "evaluated_notes": EVALUATED,
        "optimizer": "AdamW, no weight decay, constant rate after the warm-up, no KL term, one step per batch",
        "choices": CHOICES,
    }


def offsets_of(words: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """The text of words with one space between them, and the characters of each; special ones write none.

    The same as `creditd.adapters.completions.token_offsets` with the tokenizer, in less time.
    """
    text, spans = "", []
    for word in words:
        before = len(text)
        if word not in {task.PAD, task.START, task.END}:
            text += f" {word}" if text else word
        spans.append((before, len(text)))
    return text, spans


def draw(policy: LlamaForCausalLM, themes: Sequence[int], random: torch.Generator) -> Notes:
    """A note of the policy for each theme, at temperature 1, in the form of notes."""
    step = _prompts(themes)
    cache = DynamicCache(config=policy.config)
    columns = []
    with torch.no_grad():
        for allowed in FORM:
            logits = policy(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
            step = torch.multinomial(logits.masked_fill(~allowed, -torch.inf).softmax(dim=-1), 1, generator=random)
            columns.append(step)
    ids = torch.cat(columns, dim=1)
    found = [offsets_of([task.VOCABULARY[token] for token in row]) for row in ids.tolist()]
    return Notes(ids, [text for text, _ in found], [spans for _, spans in found])


def evaluated(policy: LlamaForCausalLM) -> dict[str, float]:
    """The planted reward of notes that the policy writes, and what they look like."""
    themes = [place % len(task.THEMES) for place in range(EVALUATED)]
    notes = draw(policy, themes, torch.Generator().manual_seed(0))
    masks = [task.roles_in(theme, text) for theme, text in zip(themes, notes.texts, strict=True)]
    return {
        "reward": float(np.mean([task.REWARDS[mask] for mask in masks])),
        "decoys": float(np.mean([task.has_decoy(mask) for mask in masks])),
        "distinct": len(set(zip(themes, notes.texts, strict=True))) / EVALUATED,
    }


def train(plan: Plan, checkpoint: Path, credit: Credit) -> dict[str, Any]:
    """Run one plan.

    Args:
        plan: What to train.
        checkpoint: The policy that every training starts from.
        credit: What gives one advantage per token.

    Returns:
        The record: the curve, the mean score of the rollouts of each step, evaluations and seconds.
    """
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    policy = LlamaForCausalLM.from_pretrained(checkpoint)
    policy.train()
    optimizer = torch.optim.AdamW(policy.parameters(), plan.rate, weight_decay=0.0)
    random = torch.Generator().manual_seed(plan.seed)
    curve = [{"step": 0, **evaluated(policy)}]
    steps: list[Credited] = []
    started, spent, used = time.perf_counter(), 0.0, time.process_time()
    for step in range(1, plan.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = plan.rate * min(1.0, step / WARMUP)
        notes = draw(policy, THEMES, random)
        found = credit(plan.method, THEMES, notes)
        _learn(policy, optimizer, notes, found.advantages)
        steps.append(found)
        if step % plan.evaluate_every == 0:
            paused = time.perf_counter()
            curve.append({"step": step, **evaluated(policy)})
            spent += time.perf_counter() - paused
    seconds = time.perf_counter() - started - spent
    return {
        "method": plan.method,
        "rate": plan.rate,
        "seed": plan.seed,
        "steps": plan.steps,
        "curve": curve,
        "scores": [round(float(found.scores.mean()), 4) for found in steps],
        "units": [round(float(found.units.mean()), 2) for found in steps],
        "evaluations": sum(found.evaluations for found in steps),
        "seconds_in_credit": sum(found.seconds for found in steps),
        "seconds": seconds,
        "processor_seconds": time.process_time() - used,
        "request_ids": [found.request_id for found in steps],
    }


def _learn(
    policy: LlamaForCausalLM, optimizer: torch.optim.Optimizer, notes: Notes, advantages: Sequence[Floats]
) -> None:
    """One step on −Σ advantage · log π / number of tokens."""
    weights = torch.from_numpy(np.stack(advantages)).float()
    prompts = _prompts(THEMES)
    ids = torch.cat([prompts, notes.ids], dim=1)
    logits = policy(input_ids=ids).logits[:, prompts.shape[1] - 1 : -1].masked_fill(~FORM, -torch.inf)
    logs = logits.log_softmax(dim=-1).gather(2, notes.ids[..., None])[..., 0]
    loss = -(weights * logs).mean()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), GRADIENT_NORM)
    optimizer.step()


def _prompts(themes: Sequence[int]) -> torch.Tensor:
    """Tokens of the prompts, which are all of one length."""
    return torch.tensor([[task.VOCABULARY.index(word) for word in task.PROMPTS[theme].split()] for theme in themes])
