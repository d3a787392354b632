"""Credit for training loops written by hand: what goes in as lists, arrays or tensors comes out so.

    from creditd.adapters.loop import CandidateReward, LoopCredit, sensitivity_advantages, span_token_rewards

    credit = LoopCredit(CandidateReward(score, parser={"type": "numbered"}), tokenizer=tokenizer, longest=256)
    found = credit.advantages(prompts, responses, lengths=lengths, group_size=8, step=step)
    advantages = found.token_advantages  # of candidates, or with a SpanReward of spans, in the form of GRPO

    found = span_token_rewards(client, prompts, responses, decode, lengths=lengths, model="rm", credit="prefix", kl=kl)
    rewards = found.token_rewards  # for the trainer's own returns, such as PPO's

    found = sensitivity_advantages(client, prompts, responses, advantages, decode=decode, model="policy", parser="tags")
    advantages = found.token_advantages  # in the place of the advantage of the whole completion

torch is imported for its own tensors alone; arrays of other frameworks get arrays of NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from creditd.adapters.candidate_reward import CandidateReward
from creditd.adapters.completions import Decode, token_offsets
from creditd.adapters.credit_config import Anneal, Choice, CreditConfig, anneal
from creditd.adapters.loop_credit import LoopAdvantages, LoopCredit
from creditd.adapters.processes import OneProcess, Processes, TorchProcesses
from creditd.adapters.sensitivity import CurrentWeights
from creditd.adapters.span_reward import SpanReward
from creditd.adapters.token_rows import in_form_of, lengths_of, prompt_rows, rows_of
from creditd.client import Client, OarResult, Ragged, ScarResult
from creditd.client.bodies import type_of

__all__ = [
    "Anneal",
    "CandidateReward",
    "CreditConfig",
    "CurrentWeights",
    "LoopAdvantages",
    "LoopCredit",
    "OneProcess",
    "Processes",
    "SensitivityAdvantages",
    "SpanReward",
    "SpanTokenRewards",
    "TorchProcesses",
    "anneal",
    "causal_units",
    "in_form_of",
    "sensitivity_advantages",
    "span_token_rewards",
]

Offsets: TypeAlias = Sequence[tuple[int, int]]

MARKS = ".,;?!\n"
"""Behind which characters causal units end."""
LEAST_BUDGET = 512
"""Evaluations per completion that the service allows by default."""


@dataclass(frozen=True)
class SpanTokenRewards:
    """What a training loop adds up.

    Attributes:
        token_rewards: One reward per token, in the form of the `completion_ids`: lists of floats; of a tensor of torch
            a tensor of its shape, float32, on its device; else an array of their shape, float64. Exactly 0 on padding
            and on tokens that are masked.
        token_advantages: The same of the advantages in the form of GRPO, or None if they were not asked for.
        texts: The completions that were judged.
        result: The whole answer: units, their values, the ledger, flags.
    """

    token_rewards: Any
    token_advantages: Any
    texts: list[str]
    result: ScarResult


def span_token_rewards(
    client: Client,
    prompts: Sequence[Any],
    completion_ids: Any,  # noqa: ANN401 - lists, an array, a tensor of any framework
    decode: Decode,
    *,
    lengths: Any = None,  # noqa: ANN401 - as above
    completion_masks: Any = None,  # noqa: ANN401 - as above
    kl: Any = None,  # noqa: ANN401 - as above
    causal: bool | None = None,
    marks: str = MARKS,
    **options: Any,  # noqa: ANN401 - of Client.scar, which says what each is
) -> SpanTokenRewards:
    """A reward for each token of completions, from what their units are worth to a reward model (SCAR).

    The sum over a completion is Σ kl + other_reward + v(P) − α·v(∅), whatever happened to it. Returns-to-go are
    another matter: for a learner that judges tokens by them, as PPO with GAE, take `credit="prefix"`, whose units are
    then causal (SCAR.md, "PPO").

    Args:
        client: Whom to ask; `Client("local:")` with a function as `utility`.
        prompts: What each of B completions answers.
        completion_ids: Their tokens: B lists, or an array or tensor of shape (B, T), padded on the right.
        decode: Text of any run of tokens, without those that end or fill up a completion, and nothing cleaned up.
        lengths: Tokens of each completion, as many as are no padding. None: they are all its own.
        completion_masks: Per completion whether the policy wrote each token, in the form of the tokens; padding is not
            looked at. None: it wrote them all.
        kl: Per completion one KL term per token, reward units, in the form of the tokens; a penalty is negative, and
            padding is not looked at. None: none is added here.
        causal: Whether units are those of `causal_units`. None: with `credit="prefix"`, unless `units` or a
            `segmentation` are given.
        marks: Behind which characters causal units end; "": behind every token.
        options: `model` or `utility`, and everything else that `Client.scar` takes but `token_offsets`. With causal
            units the budget of the `estimator`, unless it names one, is what the longest completion needs.

    Returns:
        Rewards in the form of the tokens. A completion without an answer has NaN, which only `on_item_error="return"`
        lets happen.

    Raises:
        ValueError: If lengths, masks or KL terms do not fit the tokens.
        CreditdError: As `Client.scar`.

    Cost:
        One decode per token where that adds up to the text (`token_offsets`), and one request.
    """
    n_tokens = lengths_of(completion_ids, lengths)
    rows = [[int(token) for token in row] for row in rows_of(completion_ids, n_tokens, "completion_ids")]
    read = [token_offsets(row, decode) for row in rows]
    masks = None if completion_masks is None else rows_of(completion_masks, n_tokens, "completion_masks")
    chosen = options.get("units") is not None or options.get("segmentation") is not None
    if causal and chosen:
        raise ValueError("causal: got True beside units or a segmentation; expected one of them")
    if causal or (causal is None and not chosen and type_of(options.get("credit", "")) == "prefix"):
        written = [None] * len(read) if masks is None else masks
        units = [causal_units(*one, mask, marks=marks) for one, mask in zip(read, written, strict=True)]
        most = max([LEAST_BUDGET, *(len(one) + 2 for one in units)])
        options |= {"estimator": _with_budget(options.get("estimator"), most), "units": units}
        options["segmentation"] = {"type": "given", "max_units": None}
    result = client.scar(
        prompts,
        [text for text, _ in read],
        token_offsets=[offsets for _, offsets in read],
        completion_masks=masks,
        kl=None if kl is None else rows_of(kl, n_tokens, "kl"),
        **options,
    )
    advantages = result.token_advantages
    return SpanTokenRewards(
        token_rewards=in_form_of(completion_ids, result.token_rewards),
        token_advantages=None if advantages is None else in_form_of(completion_ids, advantages),
        texts=[text for text, _ in read],
        result=result,
    )


@dataclass(frozen=True)
class SensitivityAdvantages:
    """What a training loop multiplies log-probabilities with.

    Attributes:
        token_advantages: One advantage per token, in the form of the `completion_ids`: lists of floats; of a tensor of
            torch a tensor of its shape, float32, on its device; else an array of their shape, float64. Exactly 0 on
            padding and on tokens that are masked.
        weights: The same of the weights of tokens.
        result: The answer: sensitivities, how the weights are spread, flags, the version of the policy.
    """

    token_advantages: Any
    weights: Any
    result: OarResult


def sensitivity_advantages(
    client: Client,
    prompt_ids: Any,  # noqa: ANN401 - lists, an array, a tensor of any framework
    completion_ids: Any,  # noqa: ANN401 - as above
    advantages: Any,  # noqa: ANN401 - as above
    *,
    decode: Decode | None = None,
    lengths: Any = None,  # noqa: ANN401 - as above
    prompt_lengths: Any = None,  # noqa: ANN401 - as above
    completion_masks: Any = None,  # noqa: ANN401 - as above
    weights: CurrentWeights | None = None,
    step: int = 0,
    **options: Any,  # noqa: ANN401 - of Client.oar, which says what each is
) -> SensitivityAdvantages:
    """An advantage for each token of completions: that of the completion, by how much the answer depends on the token.

    Nobody is asked about completions whose advantage is 0, and if all are, no weights are handed over either.

    Args:
        client: Whom to ask.
        prompt_ids: Tokens of what each of B completions answers: B lists, or an array or tensor of shape (B, P), padded
            on the left.
        completion_ids: Tokens of the completions: B lists, or an array or tensor of shape (B, T), padded on the right.
        advantages: One number per completion, as the loop would use it for all of its tokens.
        decode: Text of any run of tokens, without those that end or fill up a completion, and nothing cleaned up: what
            a `parser` reads. None: the policy's tokenizer of the service writes the text.
        lengths: Tokens of each completion, as many as are no padding. None: they are all its own.
        prompt_lengths: The same of prompts, counted from the right.
        completion_masks: Per completion whether the policy wrote each token, in the form of the tokens; padding is not
            looked at. None: it wrote them all.
        weights: Hands the loop's weights to the service when `step` is another one than the last time, and once more
            where the service lost them. None: nothing is handed over, and `weight_version` may be among the options.
        step: Of the optimizer.
        options: `model`, `parser`, and everything else that `Client.oar` takes.

    Returns:
        Advantages in the form of the tokens. A completion without an answer has NaN, which only
        `on_item_error="return"` lets happen. One whose advantage is 0 has weights of 1 where the policy wrote; in
        `result` none of its tokens is reweighted. If all are 0, `result` is of this process and of no policy.

    Raises:
        ValueError: If lengths or masks do not fit the tokens.
        CreditdError: As `Client.oar`, and what handing over the weights raises.

    Cost:
        One decode per token where that adds up to the text (`token_offsets`), and one request.
    """
    n_tokens = lengths_of(completion_ids, lengths)
    rows = [[int(token) for token in row] for row in rows_of(completion_ids, n_tokens, "completion_ids")]
    texts: dict[str, Any] = {}
    if decode is not None:
        read = [token_offsets(row, decode) for row in rows]
        texts = {"completions": [text for text, _ in read], "token_offsets": [offsets for _, offsets in read]}
    written = [[True] * n for n in n_tokens]
    if completion_masks is not None:
        written = [[bool(own) for own in row] for row in rows_of(completion_masks, n_tokens, "completion_masks")]
    values = [float(advantage) for advantage in advantages]
    if len(values) != len(rows):
        raise ValueError(f"advantages: got {len(values)}; expected {len(rows)}, one per completion")
    measured = [row if value != 0 else [False] * len(row) for row, value in zip(written, values, strict=True)]
    asked: dict[str, Any] = {"advantages": values, "completion_masks": measured, **texts, **options}
    prompts = prompt_rows(prompt_ids, prompt_lengths)
    if not any(values):
        result = _without_policy(prompts, rows, options)
    elif weights is None:
        result = client.oar(prompts, rows, **asked)
    else:
        result = weights.answer(lambda version: client.oar(prompts, rows, weight_version=version, **asked), step)
    found = [
        result.weights[row] if value != 0 else np.array(written[row], dtype=np.float64)
        for row, value in enumerate(values)
    ]
    return SensitivityAdvantages(
        token_advantages=in_form_of(completion_ids, result.token_advantages),
        weights=in_form_of(completion_ids, Ragged.from_rows(found)),
        result=result,
    )


def _without_policy(
    prompts: Sequence[Sequence[int]], rows: Sequence[Sequence[int]], options: Mapping[str, Any]
) -> OarResult:
    """The answer about completions of which nothing is asked: no token is reweighted, and all advantages are 0."""
    kept = {name: options[name] for name in ("ids", "groups", "reshape", "expect") if name in options}
    with Client("local:") as local:
        return local.oar(
            prompts,
            rows,
            sensitivities=[[0.0] * len(row) for row in rows],
            completion_masks=[[False] * len(row) for row in rows],
            advantages=[0.0] * len(rows),
            **kept,
        )


def causal_units(
    text: str, offsets: Offsets, written: Sequence[Any] | None = None, *, marks: str = MARKS
) -> list[tuple[int, int]]:
    """Units whose ends are known at their last token, whatever follows.

    A unit ends at a token whose characters end with a mark, before a token that the policy did not write, and at the
    end. So what `credit="prefix"` has paid up to a token depends on nothing behind it, without masked tokens and with
    α and other rewards at the end: a token that ends the completion behind a mark is a unit of its own that writes
    nothing and is worth nothing. The segmentations of the service look one character ahead (`3.` may become `3.5`), and
    have the end of the completion in its last unit.

    Args:
        text: A completion.
        offsets: The characters that each of its T tokens writes.
        written: T truth values, whether the policy wrote the token. None: it wrote them all.
        marks: Behind which characters a unit ends; "": behind every token that writes any.

    Returns:
        Half-open token ranges, in order, that hold every token that the policy wrote.
    """
    units: list[tuple[int, int]] = []
    begin: int | None = None
    for place, (start, stop) in enumerate(offsets):
        if written is not None and not written[place]:
            units += [] if begin is None else [(begin, place)]
            begin = None
            continue
        begin = place if begin is None else begin
        if stop > start and (not marks or text[stop - 1] in marks):
            units.append((begin, place + 1))
            begin = None
    return units if begin is None else [*units, (begin, len(offsets))]


def _with_budget(estimator: Choice | None, budget: int) -> dict[str, Any]:
    """How values are found, with a budget where none is named."""
    named = {"type": estimator} if isinstance(estimator, str) else dict(estimator or {})
    return {"budget": budget} | named
