"""Fidelity of sensitivities: tokens of the work are replaced one by one, and the answers watched.

Sensitivities and weights come over HTTP from `POST /v1/credit/oar`; what flips is found by writing on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from transformers import LlamaForCausalLM

import oar_task as task
from creditd.client import Client
from oar_flips import Floats, summary
from oar_model import draw, prompt_ids, words_of
from oar_plans import FLIPS, MEASURES, MODEL, OAR_MEASURES, PARSER, PROBE, REPLACEMENTS

SEED = 11
Words: TypeAlias = tuple[str, ...] | None
_SIGNS = (task.TIMES, task.PLUS, task.IS, task.STOP)


@dataclass(frozen=True)
class Work:
    """Completions of the form taught.

    Attributes:
        prompts: Shape (n, P), int64.
        completions: Shape (n, `WRITTEN`), int64.
        entropy: Shape (n, `REASONING`), nats, of what each token of the work was drawn from.
        right: Share of right answers.
    """

    prompts: torch.Tensor
    completions: torch.Tensor
    entropy: Floats
    right: float


def study(client: Client, policy: LlamaForCausalLM, number: int) -> dict[str, Any]:
    """What is said of fidelity, ready for JSON.

    Args:
        client: Of a service that has the policy with the same weights.
        policy: The starting checkpoint.
        number: Completions.

    Returns:
        `oar_flips.summary`, and what it is about.
    """
    policy.eval()
    work = drawn(policy, number)
    scores: dict[str, Floats] = {}
    weights: dict[str, Floats] = {}
    for name, (_, sensitivity) in MEASURES.items():
        if sensitivity is not None:
            scores[name], weights[name] = asked(client, work, sensitivity)
    scores["entropy"] = work.entropy
    scores["nearness"] = np.tile(np.arange(task.REASONING, dtype=np.float64), (number, 1))
    flips = flip_rates(policy, work)
    found = summary(scores, {name: weights[name] for name in OAR_MEASURES}, flips)
    return {"texts": number, "right": work.right, **found}


def drawn(policy: LlamaForCausalLM, number: int) -> Work:
    """The first completions of the form taught for the held-out problems, in their order."""
    _, held_out = task.problems()
    rows = held_out.tolist()
    prompts = prompt_ids(rows)
    made = draw(policy, prompts, torch.Generator().manual_seed(SEED))
    good = [place for place, words in enumerate(made.words) if task.is_well_formed(words)][:number]
    if len(good) < number:
        raise RuntimeError(f"got {len(good)} completions of the form taught; expected {number}")
    right = [task.is_right(made.words[place], *rows[place]) for place in good]
    entropy = made.entropy[good, : task.REASONING].double().numpy()
    return Work(prompts[good], made.ids[good], entropy, float(np.mean(right)))


def asked(client: Client, work: Work, sensitivity: dict[str, Any]) -> tuple[Floats, Floats]:
    """Sensitivities and weights of the tokens of the work, shape (n, `REASONING`) each, from the service."""
    result = client.oar(
        work.prompts.tolist(),
        work.completions.tolist(),
        advantages=[1.0] * len(work.completions),
        model=MODEL,
        sensitivity=sensitivity,
        probe=PROBE,
        parser=PARSER,
    )
    columns = (result.sensitivities, result.weights)
    found = [np.array([row[: task.REASONING] for row in column], dtype=np.float64) for column in columns]
    if np.isnan(found[0]).any():
        raise RuntimeError("got tokens of the work without a sensitivity; expected one for each")
    return found[0], found[1]


def flip_rates(policy: LlamaForCausalLM, work: Work) -> dict[str, Floats]:
    """By key of `FLIPS`, shape (n, `REASONING`): the share of replacements at a place that flip the answer."""
    tables = {name: np.zeros((len(work.completions), task.REASONING)) for name in FLIPS}
    random = np.random.default_rng([task.SEED, SEED])
    for place in range(task.REASONING):
        others = _replacements(random, work.completions[:, place].tolist())
        tokens = torch.cat([work.completions[:, place, None], others], dim=1)
        for name, answers in (("kept", _kept), ("rewritten", _rewritten)):
            found = answers(policy, work, place, tokens)
            flipped = [[other != before for other in after] for before, *after in found]
            tables[name][:, place] = np.mean(flipped, axis=1)
    return tables


def _replacements(random: np.random.Generator, tokens: list[int]) -> torch.Tensor:
    """Shape (n, `REPLACEMENTS`): other tokens of the kind of each, no two the same."""
    rows = []
    for token in tokens:
        word = task.VOCABULARY[token]
        kind = [other for other in (task.DIGITS if word in task.DIGITS else _SIGNS) if other != word]
        rows.append([task.VOCABULARY.index(str(other)) for other in random.permutation(kind)[:REPLACEMENTS]])
    return torch.tensor(rows)


def _kept(policy: LlamaForCausalLM, work: Work, place: int, tokens: torch.Tensor) -> list[list[Words]]:
    """The answers that are written behind the work with each of the tokens at a place, of shape (n, tokens)."""
    prompts, completions = _repeated(work, tokens)
    completions = completions[:, : task.REASONING + 1]
    completions[:, place] = tokens.flatten()
    made = draw(policy, torch.cat([prompts, completions], dim=1), None, task.ANSWER_DIGITS)
    return _rows([tuple(words) for words in made.words], tokens)


def _rewritten(policy: LlamaForCausalLM, work: Work, place: int, tokens: torch.Tensor) -> list[list[Words]]:
    """The answers when everything behind a place is written anew; None where none is."""
    prompts, completions = _repeated(work, tokens)
    head = torch.cat([completions[:, :place], tokens.flatten()[:, None]], dim=1)
    made = draw(policy, torch.cat([prompts, head], dim=1), None, task.WRITTEN - place - 1)
    answers = [task.answer(words_of(row)) for row in torch.cat([head, made.ids], dim=1).tolist()]
    return _rows([None if words is None else tuple(words) for words in answers], tokens)


def _repeated(work: Work, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts and completions, each as often as there are tokens to try."""
    return work.prompts.repeat_interleave(tokens.shape[1], 0), work.completions.repeat_interleave(tokens.shape[1], 0)


def _rows(answers: list[Words], tokens: torch.Tensor) -> list[list[Words]]:
    width = tokens.shape[1]
    return [answers[start : start + width] for start in range(0, len(answers), width)]
