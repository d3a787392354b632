"""From what a trainer has to what creditd wants, and back: alignment and failure policies, for every framework alike.

Legend: `B` rollouts, in groups of consecutive rows that answer one prompt; `T` completion tokens of one rollout.
Nothing here computes a credit: the client does, in a service or in this process.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from creditd.client import (
    AuthenticationError,
    Client,
    CreditdError,
    InvalidRequestError,
    NotFoundError,
    PartialResultError,
    ShapleyResult,
)
from creditd.client.bodies import type_of
from creditd.credit.candidate_parsers import CandidateParser, parse_candidates
from creditd.credit.segments import token_spans

Floats: TypeAlias = NDArray[np.float64]
Choice: TypeAlias = str | Mapping[str, Any]
Schedule: TypeAlias = Callable[[int], Choice]
FailurePolicy: TypeAlias = Literal["raise", "group_reward", "mask", "local"]
Decode: TypeAlias = Callable[[Sequence[int]], str]

MOST_CANDIDATES = 256
"""Candidates of one completion that play when no number was asked for; the service takes no more."""

log = logging.getLogger("creditd.adapters")


@dataclass(frozen=True)
class Anneal:
    """A schedule that moves from one rule to another over the first steps of a run.

    Attributes:
        start: Rule at step 0.
        end: Rule from step `steps` on.
        steps: Length of the way, ≥ 1.
    """

    start: str
    end: str
    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"anneal needs steps ≥ 1: got {self.steps}")

    def __call__(self, step: int) -> Choice:
        """The rule at a step."""
        return {"type": "blend", "from": self.start, "to": self.end, "position": min(1.0, step / self.steps)}


def anneal(start: str, end: str, *, steps: int) -> Anneal:
    """A schedule from rule `start` to rule `end` over `steps` optimizer steps; a pure function of the step."""
    return Anneal(start, end, steps)


@dataclass(frozen=True)
class CreditConfig:
    """How a trainer asks for credit.

    Attributes:
        url: Service, or `local:`; None takes CREDITD_URL, or this machine.
        credit: Rule, or a schedule: a function of the trainer's global step, never of how often it was called.
        utility: What a set is worth.
        advantage: How credits become advantages.
        tokens: What tokens outside the candidates receive, and whether lengths are evened out.
        candidates: K that the prompt asks for; surplus candidates do not play. None: there is no such number.
        malformed: More policies for malformed sets, as on the wire.
        on_failure: When there is no credit: `raise`, the plain advantage of the whole response (`group_reward`), 0 for
            every group that is concerned (`mask`), or credit computed in this process (`local`). Each is counted.
        credit_in_eval: Whether evaluation asks too.
        deadline_s: Seconds for one call, retries included.
        max_credit_share: Share of the step time above which, after three steps, one warning is given. None: never.
        api_key: Key of the service; None takes CREDITD_API_KEY.
        record: Directory in which each exchange is kept as one file, for `creditd replay`. None: nowhere.
    """

    url: str | None = None
    credit: Choice | Schedule = "shapley"
    utility: Choice = "max"
    advantage: Choice = "pooled"
    tokens: Mapping[str, Any] = field(default_factory=lambda: {"other": "set"})
    candidates: int | None = None
    malformed: Mapping[str, Any] = field(default_factory=dict)
    on_failure: FailurePolicy = "raise"
    credit_in_eval: bool = False
    deadline_s: float = 120.0
    max_credit_share: float | None = 0.25
    api_key: str | None = None
    record: str | None = None

    def __post_init__(self) -> None:
        if self.on_failure not in get_args(FailurePolicy):
            raise ValueError(
                f"got on_failure {self.on_failure!r}; expected one of {', '.join(get_args(FailurePolicy))}"
            )
        if self.candidates is not None and self.candidates < 1:
            raise ValueError(f"got candidates {self.candidates}; expected at least 1")
        if self.max_credit_share is not None and self.max_credit_share < 0:
            raise ValueError(f"got max_credit_share {self.max_credit_share}; expected a share or None")

    def rule_at(self, step: int) -> Choice:
        """The rule of a step."""
        return self.credit(step) if callable(self.credit) else self.credit


@dataclass(frozen=True)
class Rollout:
    """One completion, as creditd sees it.

    Attributes:
        n_tokens: Completion tokens.
        texts: Its candidates.
        spans: Their half-open token ranges.
        rewards: One per candidate; None where it was not scored.
        set_reward: Reward of the whole response, or None.
        base_advantage: What the trainer itself would use for the whole response.
    """

    n_tokens: int
    texts: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    rewards: tuple[float | None, ...]
    set_reward: float | None
    base_advantage: float


@dataclass(frozen=True)
class Credited:
    """What a batch of rollouts comes back with.

    Attributes:
        token_advantages: One array of shape (T,), float64, per rollout.
        metrics: Numbers for the trainer's log, by name.
        request_id: Identity of the request, None when the service gave no answer.
    """

    token_advantages: list[Floats]
    metrics: dict[str, float]
    request_id: str | None


def token_offsets(ids: Sequence[int], decode: Decode) -> tuple[str, list[tuple[int, int]]]:
    """The text of a completion and the characters [start, stop) that each of its tokens writes.

    Args:
        ids: T completion tokens.
        decode: Text of any run of tokens, special tokens left out and nothing cleaned up.

    Returns:
        The text of all tokens, and T ranges that follow one another without a gap. A token that only begins a character
        of several bytes, or that is special, has an empty range; the token that completes the character has all of it.

    Cost:
        One decoding of one token per token where that adds up to the text, else two more of a few tokens each. Only for
        bytes that are no text, which some tokenizers decode differently in company, one decoding of each prefix.
    """
    text = decode(ids)
    pieces = [decode([token]) for token in ids]
    if "".join(pieces) == text:  # most byte-level tokenizers, wherever no character is split
        ends = list(accumulate(map(len, pieces)))
    else:
        ends = _ends_by_window(ids, decode, text) or _ends_by_prefix(ids, decode, text)
    return text, list(zip([0, *ends], ends, strict=False))


def _ends_by_window(ids: Sequence[int], decode: Decode, text: str) -> list[int] | None:
    """Where each token's characters end, from decoding it behind its neighbours; None if that is not the text."""
    start = read = position = 0
    ends: list[int] = []
    for place in range(len(ids)):
        before, now = decode(ids[start:read]), decode(ids[start : place + 1])
        if len(now) > len(before) and not now.endswith("\N{REPLACEMENT CHARACTER}"):
            if not text.startswith(now[len(before) :], position):
                return None
            position += len(now) - len(before)
            start, read = read, place + 1
        ends.append(position)
    if text[position:].strip("\N{REPLACEMENT CHARACTER}"):
        return None
    return [*ends[:-1], len(text)]


def _ends_by_prefix(ids: Sequence[int], decode: Decode, text: str) -> list[int]:
    """Where each token's characters end: as far as the text of the tokens up to it agrees with the whole."""
    ends: list[int] = []
    for place in range(len(ids)):
        so_far = decode(ids[: place + 1])
        agreed = next(
            (at for at, (one, other) in enumerate(zip(so_far, text, strict=False)) if one != other), len(so_far)
        )
        ends.append(max(agreed, ends[-1] if ends else 0))
    return [*ends[:-1], len(text)]


def find_candidates(
    ids: Sequence[int], decode: Decode, parser: CandidateParser, *, cut_off: bool
) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...]]:
    """Candidates of a completion and the tokens that write them.

    Args:
        ids: T completion tokens.
        decode: Text of any run of tokens.
        parser: How candidates are written.
        cut_off: Whether the completion ended by the length limit; its open candidate is then none.

    Returns:
        Texts and half-open token ranges, in order, disjoint.
    """
    parsed = parse_candidates(decode(ids), parser, cut_off=cut_off)
    if not parsed.texts:
        return (), ()
    _, offsets = token_offsets(ids, decode)
    spans = token_spans(np.array(parsed.spans), np.array(offsets).reshape(-1, 2))
    return parsed.texts, tuple((int(start), int(stop)) for start, stop in spans)


class Creditor:
    """Asks for credit, applies the failure policy, and keeps the counts that a trainer logs.

    Args:
        config: How to ask.
        client: Whom to ask; None makes one from the configuration.
    """

    def __init__(self, config: CreditConfig, client: Client | None = None) -> None:
        self.config = config
        self.client = client or Client(
            config.url, api_key=config.api_key, deadline_s=config.deadline_s, record=config.record
        )
        self._local = Client("local:")
        self._warned = False
        self._check_choices()

    def _check_choices(self) -> None:
        """Refuse choices that no service would take, before a run begins: they must not pass for a lost service."""
        if type_of(self.config.utility) == "table":
            raise ValueError("got the table utility; expected one of rewards: a trainer has no tables")
        probe = Rollout(1, ("",), ((0, 1),), (0.0,), None, 0.0)
        try:
            self._ask(self._local, [probe, probe], 2, self.config.rule_at(0), 1.0)
        except InvalidRequestError as error:
            if not _of_values(error):
                raise ValueError(f"the credit configuration is refused: {error}") from None

    def credit(
        self, rollouts: Sequence[Rollout], group_size: int, step: int, *, set_reward_weight: float = 1.0
    ) -> Credited:
        """Advantages of every token of a batch of whole groups.

        Args:
            rollouts: B rollouts; rows i·G … i·G + G − 1 answer one prompt.
            group_size: G. The service is told, so that a split group is an error.
            step: The trainer's global step.
            set_reward_weight: Weight of the advantages of whole responses, on top of that of the configuration.

        Returns:
            One array per rollout, finite everywhere.

        Raises:
            CreditdError: Under `raise`, whatever the service or the network did; otherwise what another try or another
                computer cannot heal: a wrong key, a wrong address, choices that are refused, and under `local` rewards
                that are wrong.
        """
        started = time.perf_counter()
        metrics = {"credit/fallbacks": 0.0, "credit/local": 0.0, "credit/errors": 0.0}
        rule = self.config.rule_at(step)
        if isinstance(rule, Mapping) and "position" in rule:
            metrics["credit/position"] = float(rule["position"])
        concerned = np.zeros(len(rollouts), dtype=np.bool_)
        result: ShapleyResult | None = None
        try:
            result = self._ask(self.client, rollouts, group_size, rule, set_reward_weight)
        except CreditdError as error:
            if self.config.on_failure == "raise" or not _may_fall_back(error):
                raise
            metrics["credit/errors"] = 1.0
            self._warn_once(error)
            if self.config.on_failure == "local":
                result = self._ask(self._local, rollouts, group_size, rule, set_reward_weight)
                metrics["credit/local"] = 1.0
            elif isinstance(error, PartialResultError) and isinstance(error.result, ShapleyResult):
                result = error.result
                failed = np.flatnonzero(~result.ok) // group_size
                concerned = np.isin(np.arange(len(rollouts)) // group_size, failed)
            else:
                concerned[:] = True
        metrics["credit/fallbacks"] = float(concerned.mean()) if len(rollouts) else 0.0
        tokens = [
            self._fallback(rollout) if concerned[row] or result is None else _tokens_of(result, row)
            for row, rollout in enumerate(rollouts)
        ]
        if result is not None:
            metrics |= _credit_metrics(result, ~concerned)
        metrics["credit/seconds"] = time.perf_counter() - started
        return Credited(tokens, metrics, None if result is None else result.request_id)

    def utilities(
        self, rewards: Sequence[Sequence[float | None]], texts: Sequence[Sequence[str]]
    ) -> list[float | None]:
        """v(N) of each set under the policies for malformed ones, for the trainer's log and for plain advantages.

        The failure reward where nothing was parsed or scored, None where a reward cannot be used.
        """
        malformed = self._malformed()
        failure = float(malformed.get("failure_reward", 0.0))
        scored = [any(reward is not None for reward in row) for row in rewards]
        try:
            result = self._local.shapley(
                rewards,
                texts=list(texts) if malformed.get("duplicates") == "collapse" else None,
                utility=self.config.utility,
                malformed=malformed,
                advantage="none",
                on_item_error="return",
            )
        except InvalidRequestError:
            return [None if known else failure for known in scored]
        grand = result.utility_grand.tolist()
        nothing = result.has_flag("no_candidates").tolist()
        values = [failure if bare else value for value, bare in zip(grand, nothing, strict=True)]
        return [value if sound else None for value, sound in zip(values, result.ok, strict=True)]

    def _malformed(self) -> dict[str, Any]:
        """Policies for malformed sets; a policy that writes without end must not end the run."""
        most = self.config.candidates if self.config.candidates is not None else MOST_CANDIDATES
        return {"candidates": most, **self.config.malformed}

    def _warn_once(self, error: CreditdError) -> None:
        if not self._warned:
            self._warned = True
            log.warning("no credit, on_failure=%s is applied: %s", self.config.on_failure, error)

    def _ask(
        self, client: Client, rollouts: Sequence[Rollout], group_size: int, rule: Choice, set_reward_weight: float
    ) -> ShapleyResult:
        malformed = self._malformed()
        tokens = dict(self.config.tokens)
        tokens["set_reward_weight"] = float(tokens.get("set_reward_weight", 1.0)) * set_reward_weight
        set_rewards = [rollout.set_reward for rollout in rollouts]
        return client.shapley(
            [rollout.rewards for rollout in rollouts],
            groups=[row // group_size for row in range(len(rollouts))],
            spans=[rollout.spans for rollout in rollouts],
            n_tokens=[rollout.n_tokens for rollout in rollouts],
            set_rewards=set_rewards if any(reward is not None for reward in set_rewards) else None,
            texts=[rollout.texts for rollout in rollouts] if malformed.get("duplicates") == "collapse" else None,
            utility=self.config.utility,
            credit=rule,
            advantage=self.config.advantage,
            tokens=tokens,
            malformed=malformed,
            expect={"group_size": group_size},
        )

    def _fallback(self, rollout: Rollout) -> Floats:
        """Advantages of a rollout for which there is no credit."""
        advantage = rollout.base_advantage if self.config.on_failure == "group_reward" else 0.0
        return np.full(rollout.n_tokens, advantage)


def _of_values(error: InvalidRequestError) -> bool:
    """Whether a refusal is about the values of sets, and not about the choices of the request."""
    return bool(error.items) and all(item.pointer.startswith("/columns/") for item in error.items)


def _may_fall_back(error: CreditdError) -> bool:
    """Whether the service is at fault, or single sets; a wrong key, address or choice is the configuration's fault."""
    if isinstance(error, InvalidRequestError):
        return _of_values(error)
    return not isinstance(error, AuthenticationError | NotFoundError)


def _tokens_of(result: ShapleyResult, row: int) -> Floats:
    if result.token_advantages is None:
        raise ValueError("the answer has no token advantages")
    return result.token_advantages[row]


def _credit_metrics(result: ShapleyResult, used: NDArray[np.bool_]) -> dict[str, float]:
    """What a run's log should show of the credit that it trains on."""
    rows = [row[~np.isnan(row)] for row, kept in zip(result.advantages, used, strict=True) if kept]
    played = np.concatenate([np.zeros(0), *rows])
    spread = [float(row.std()) for row in rows if len(row) > 1]
    malformed = result.has_flag("no_candidates") | result.has_flag("candidate_truncated")
    metrics = {
        "credit/malformed": float(malformed[used].mean()) if used.any() else 0.0,
        "credit/candidates": float(np.mean([len(row) for row in rows])) if rows else 0.0,
        "credit/gap_max": float(np.abs(result.gap[used]).max(initial=0.0)),
    }
    if spread:
        metrics["credit/within_set_std"] = float(np.mean(spread))
    if len(played):
        metrics["credit/zero_share"] = float((played == 0.0).mean())
    return metrics
