"""Advantages of tokens from the advantages of candidates and of responses.

Legend: `S` responses, `C` candidates over all responses, `T` completion tokens over all responses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class TokenPolicy:
    """What each token of a completion receives.

    Attributes:
        other: Tokens outside every candidate: `set` the response's own advantage, `zero`, or `next` the advantage of
            the candidate that follows (after the last one: the response's).
        length_norm: Multiply the tokens of candidate k by ω_k = (Σ L)/(K·L_k), so that every candidate has the same
            mass.
        set_reward_weight: Weight of the advantage of `set_reward`, which all tokens of a response receive on top.
    """

    other: Literal["set", "zero", "next"] = "set"
    length_norm: bool = False
    set_reward_weight: float = 1.0


@dataclass(frozen=True)
class CandidateSpans:
    """Where the candidates stand in their completions.

    Attributes:
        owner: Shape (C,), int64, the response of each candidate, in [0, S).
        start: Shape (C,), int64, first token of the candidate within its completion.
        stop: Shape (C,), int64, one past its last token. Spans of one response do not overlap; an empty span has no
            token.
        n_tokens: Shape (S,), int64, completion tokens of each response.
    """

    owner: Integers
    start: Integers
    stop: Integers
    n_tokens: Integers


def overlapping_candidates(owner: Integers, start: Integers, stop: Integers) -> Integers:
    """Candidates that begin before the one ahead of them in their response has ended.

    Args:
        owner: Shape (C,), int64, the response of each candidate.
        start: Shape (C,), int64, first token.
        stop: Shape (C,), int64, one past the last token; empty spans overlap nothing.

    Returns:
        Indices into the arguments, int64; empty if and only if the spans of every response are disjoint.

    Cost:
        O(C log C).
    """
    if _in_order(owner, start, stop):
        return np.empty(0, dtype=np.int64)
    order = _by_start(owner, start, stop)
    clash = (owner[order[1:]] == owner[order[:-1]]) & (start[order[1:]] < stop[order[:-1]])
    clashing: Integers = order[1:][clash]
    return clashing


def _in_order(owner: Integers, start: Integers, stop: Integers) -> bool:
    """Whether all spans have tokens and each begins where the one before it, or its response, has ended."""
    after = (owner[1:] > owner[:-1]) | ((owner[1:] == owner[:-1]) & (start[1:] >= stop[:-1]))
    return bool((stop > start).all() and after.all())


def _by_start(owner: Integers, start: Integers, stop: Integers) -> Integers:
    """Spans with tokens, response after response, in the order of their starts."""
    filled = np.flatnonzero(stop > start)
    order: Integers = filled[np.lexsort((start[filled], owner[filled]))]
    return order


def length_norm_weights(spans: CandidateSpans) -> Floats:
    """ω_k of each candidate: (Σ L)/(K·L_k) over the candidates of its response that have tokens.

    Args:
        spans: Where the candidates stand.

    Returns:
        Shape (C,), float64; 1 for a candidate without tokens. Σ ω_k·L_k = Σ L_k within each response.

    Cost:
        O(C).
    """
    lengths = spans.stop - spans.start
    n_sets = len(spans.n_tokens)
    totals = np.bincount(spans.owner, weights=lengths, minlength=n_sets)
    counts = np.bincount(spans.owner[lengths > 0], minlength=n_sets)
    return np.where(lengths > 0, totals[spans.owner] / np.maximum(counts[spans.owner] * lengths, 1), 1.0)


def token_advantages(advantages: Floats, set_advantages: Floats, spans: CandidateSpans, policy: TokenPolicy) -> Floats:
    """Advantage of every completion token.

        token of candidate k: ω_k · A_k,     other tokens: A^set, 0, or A of the next candidate

    Args:
        advantages: A, shape (C,), float64, one per candidate.
        set_advantages: A^set, shape (S,), float64.
        spans: Where the candidates stand; disjoint within a response.
        policy: What tokens outside the candidates receive, and whether lengths are evened out.

    Returns:
        Shape (T,), float64, completion after completion, T = Σ n_tokens. A response without candidates has A^set on all
        of its tokens, whatever the policy. With `length_norm`, the tokens of candidate k sum to A_k·(Σ L)/K.

    Cost:
        O(C log C + T).

    Reference:
        ShapE-GRPO, arXiv:2603.29871v1.

    Differs from the paper:
        Its treatment of tokens outside the candidates is not known to us. `next` passes A_k on without ω_k, which
        belongs to the candidate's own tokens.
    """
    n_sets = len(spans.n_tokens)
    in_order = _in_order(spans.owner, spans.start, spans.stop)
    order = slice(None) if in_order else _by_start(spans.owner, spans.start, spans.stop)
    owner, start, stop = spans.owner[order], spans.start[order], spans.stop[order]
    n_spans = len(owner)
    scaled = advantages * length_norm_weights(spans) if policy.length_norm else advantages
    per_set = np.bincount(owner, minlength=n_sets)
    first = np.ones(n_spans, dtype=np.bool_)
    first[1:] = owner[1:] != owner[:-1]
    previous_stop = np.where(first, 0, np.append(0, stop[:-1])[:n_spans])
    whole = {"set": set_advantages, "zero": np.zeros(n_sets), "next": set_advantages}[policy.other]
    between = advantages[order] if policy.other == "next" else whole[owner]
    tail = np.where(np.bincount(spans.owner, minlength=n_sets) == 0, set_advantages, whole)
    # Runs of equal tokens in completion order: before and in each candidate, then after the last one of each response.
    position = 2 * np.arange(n_spans) + owner
    after_last = 2 * np.cumsum(per_set) + np.arange(n_sets)
    values = np.empty(2 * n_spans + n_sets)
    lengths = np.empty(len(values), dtype=np.int64)
    values[position], lengths[position] = between, start - previous_stop
    values[position + 1], lengths[position + 1] = scaled[order], stop - start
    last_stop = np.zeros(n_sets, dtype=np.int64)
    last_stop[owner] = stop
    values[after_last], lengths[after_last] = tail, spans.n_tokens - last_stop
    return np.repeat(values, lengths)
