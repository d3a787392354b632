"""Credit from sets of candidates down to tokens: sets, candidates, units, tokens, with an account at every level.

Legend: `B` sets, `C` candidates over all sets, `T` tokens of one completion. Tokens are counted twice: all of them, and
those that the policy chose; candidates and completions have their lengths in the second count.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.candidate_sets import Players, SetError, SetErrors, check_token_spans, find_players
from creditd.credit.composed_checks import check_parts
from creditd.credit.composed_items import (
    Additive,
    BySensitivity,
    CandidateParts,
    ComposedCredit,
    ComposedCredits,
    ComposedSets,
    ComposeOptions,
)
from creditd.credit.composed_ledgers import InsideCredit, candidate_ledger, set_ledger
from creditd.credit.composition import (
    MaxShare,
    additive_advantages,
    bounded_advantages,
    span_credits,
    unit_contrasts,
)
from creditd.credit.flags import Flag
from creditd.credit.order_statistics import Max
from creditd.credit.reshaping import reshape_weights
from creditd.credit.set_advantages import UNSTABLE_RATIO
from creditd.credit.set_credit import SetCredits, set_credit
from creditd.credit.tables import table_semivalues
from creditd.credit.token_advantages import CandidateSpans, length_norm_weights, token_advantages

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Booleans: TypeAlias = NDArray[np.bool_]

_OF_REWARDS = Flag.CANDIDATE_UNSCORED | Flag.NO_CANDIDATES
_OF_THE_COMPARISON = Flag.DEGENERATE_GROUP | Flag.SINGLE_RESPONSE | Flag.UNSTABLE_NORMALIZATION
"""Flags that say nothing where the caller has compared the responses."""
_TABLES_PER_CALL = 64
_NO_UNITS = np.empty((0, 2), dtype=np.int64)


def _no_checkpoint() -> None:
    """Let the computation go on."""


@dataclass(frozen=True)
class _Solved:
    """What is known before credit gets inside candidates.

    Attributes:
        answer: Credits of all sets.
        advantages: Shape (C,), NaN where there is none.
        set_advantages: Shape (B,), NaN of failed sets.
        slopes: Shape (C,), or None where there is no single one.
        weights: ω, shape (C,); 1 where there is no advantage.
        spans: Shape (C, 2): where candidates stand among the tokens that the policy chose.
        base: Token advantages before credit gets inside candidates, the tokens of all sets.
        splits: Shape (B + 1,), row splits of `base`.
        games: By candidate: unit credits that come from utilities, and the largest utility.
    """

    answer: SetCredits
    advantages: Floats
    set_advantages: Floats
    slopes: Floats | None
    weights: Floats
    spans: Integers
    base: Floats
    splits: Integers
    games: dict[int, tuple[Floats, float]]


def composed_credit(
    batch: ComposedSets,
    options: ComposeOptions,
    rejected: tuple[SetError, ...] = (),
    checkpoint: Callable[[], None] = _no_checkpoint,
) -> ComposedCredits:
    """Credit and advantages of candidates, of their units and of their tokens.

    Args:
        batch: B sets with what is known of the insides of their candidates.
        options: Every choice of the request.
        rejected: Sets that failed before, at most one error each; they fail here too and count as lost to their groups.
        checkpoint: Called before each piece of work; what it raises ends the computation.

    Returns:
        One answer or one error per set. Without parts the token advantages are those of `set_credit`, to the last bit.
        The mass of a candidate is M = L·ω·A whatever its unit credits are, and nothing is rescaled: where Σ x_j is not
        φ, where credits are not efficient, or where lengths differ without `length_norm`, the ledger has the gap.
        Tokens that the policy did not choose get exactly 0, and count nowhere.

    Raises:
        ValueError: If columns that the options need are absent.

    Cost:
        That of `set_credit`, and O(T + m·2^m) for candidates of m units with utilities.

    Reference:
        ShapE-GRPO, arXiv:2603.29871v1; SCAR, arXiv:2505.20417; OAR, arXiv:2601.07408.

    Differs from the paper:
        None of them composes its credit with that of another; the composition is creditd's.
    """
    sets = batch.sets
    if sets.spans is None or sets.n_tokens is None:
        raise ValueError("token advantages need spans and n_tokens")
    errors = SetErrors(sets.n_sets, rejected)
    check_token_spans(sets, errors, options.sets.max_tokens_per_set)
    check_parts(batch, options, errors, checkpoint)
    answer = set_credit(sets, replace(options.sets, tokens=None), errors.sorted(), checkpoint)
    players = find_players(sets, options.sets.malformed, SetErrors(sets.n_sets))
    solved = _solved(batch, options, answer, players, checkpoint)
    items: list[ComposedCredit | None] = []
    for row, ok in enumerate(answer.ok.tolist()):
        checkpoint()
        items.append(_composed(batch, options, solved, row) if ok else None)
    return ComposedCredits(tuple(items), answer.errors)


def _solved(
    batch: ComposedSets,
    options: ComposeOptions,
    answer: SetCredits,
    players: Players,
    checkpoint: Callable[[], None],
) -> _Solved:
    """Advantages of candidates and of plain tokens, and credits of units that come from utilities."""
    sets, alive = batch.sets, answer.ok
    advantages, of_sets, slopes = answer.advantages, answer.set_advantages, answer.slopes
    if batch.advantages is not None:
        of_sets = np.full(sets.n_sets, np.nan) if batch.set_advantages is None else batch.set_advantages
        advantages = batch.advantages
        slopes = None if batch.slopes is None else batch.slopes[sets.owner]
    spans, n_tokens = _among_trainable(batch, alive)
    counted = np.flatnonzero(alive[sets.owner] & ~np.isnan(advantages))
    chosen = CandidateSpans(sets.owner[counted], spans[counted, 0], spans[counted, 1], n_tokens)
    weights = np.ones(len(advantages))
    if options.tokens.length_norm:
        weights[counted] = length_norm_weights(chosen)
    return _Solved(
        answer=answer,
        advantages=advantages,
        set_advantages=of_sets,
        slopes=slopes,
        weights=weights,
        spans=spans,
        base=token_advantages(advantages[counted], of_sets, chosen, options.tokens),
        splits=np.append(np.int64(0), np.cumsum(n_tokens)),
        games=_unit_games(batch, options, answer.ok, players, checkpoint),
    )


def _among_trainable(batch: ComposedSets, alive: Booleans) -> tuple[Integers, Integers]:
    """Spans of candidates and numbers of tokens, counted among the tokens that the policy chose; 0 of failed sets."""
    sets = batch.sets
    if sets.spans is None or sets.n_tokens is None:
        raise ValueError("token advantages need spans and n_tokens")
    spans, n_tokens = sets.spans.copy(), np.where(alive, sets.n_tokens, 0)
    for row, mask in enumerate(batch.masks):
        if mask is not None and alive[row]:
            before = np.append(0, np.cumsum(mask))
            own = slice(sets.row_splits[row], sets.row_splits[row + 1])
            spans[own], n_tokens[row] = before[spans[own]], before[-1]
    return spans, n_tokens


def _unit_games(
    batch: ComposedSets, options: ComposeOptions, alive: Booleans, players: Players, checkpoint: Callable[[], None]
) -> dict[int, tuple[Floats, float]]:
    """Unit credits of the candidates whose partial texts have utilities, equally many units in one product."""
    found: dict[int, tuple[Floats, float]] = {}
    waiting: dict[int, list[tuple[int, Floats]]] = {}
    for flat, parts in enumerate(batch.parts):
        row = int(batch.sets.owner[flat])
        if parts is None or parts.utilities is None or not alive[row]:
            continue
        checkpoint()
        game = _game(batch, options, players, flat, parts.utilities)
        scale = float(np.abs(game).max())
        if parts.tree is not None or len(game) == 1:
            found[flat] = span_credits(game, parts.tree), scale
            continue
        waiting.setdefault(len(game), []).append((flat, game))
    for size, games in waiting.items():
        n_units = size.bit_length() - 1
        for first in range(0, len(games), _TABLES_PER_CALL):
            checkpoint()
            some = games[first : first + _TABLES_PER_CALL]
            tables = np.stack([game for _, game in some])
            values = table_semivalues(tables, np.full(n_units, 1.0 / n_units))
            found |= {flat: (one, float(np.abs(game).max())) for (flat, game), one in zip(some, values, strict=True)}
    return found


def _game(batch: ComposedSets, options: ComposeOptions, players: Players, flat: int, utilities: Floats) -> Floats:
    """The game between the units of a candidate; nothing is worth anything in one that is no player."""
    sets, utility = batch.sets, options.sets.utility
    if not isinstance(utility, Max):
        raise TypeError(f"credits of units come from the utility max: got {utility.type}")
    if not players.playing[flat]:
        return np.zeros(len(utilities))
    own = np.arange(sets.row_splits[sets.owner[flat]], sets.row_splits[sets.owner[flat] + 1])
    others = own[players.playing[own] & (own != flat)]
    return MaxShare(sets.rewards[others], utility.empty, utility.floor).of_table(utilities)


def _composed(batch: ComposedSets, options: ComposeOptions, solved: _Solved, row: int) -> ComposedCredit:
    """The answer about one set."""
    sets, answer = batch.sets, solved.answer
    own = range(int(sets.row_splits[row]), int(sets.row_splits[row + 1]))
    tokens = solved.base[solved.splits[row] : solved.splits[row + 1]].copy()
    flags, ledgers, values = int(answer.flags[row]), [], []
    if batch.advantages is not None:
        missing = np.isnan(solved.advantages[own.start : own.stop])
        flags &= ~(_OF_THE_COMPARISON | _OF_REWARDS)
        flags |= (Flag.CANDIDATE_UNSCORED if missing.any() else 0) | (Flag.NO_CANDIDATES if missing.all() else 0)
    inside_tokens = np.zeros(len(tokens), dtype=np.bool_)
    for flat in own:
        start, stop = solved.spans[flat].tolist()
        if not np.isnan(solved.advantages[flat]):
            inside_tokens[start:stop] = True
        one = _inside(batch, options, solved, row, flat)
        if one.tokens is not None:
            tokens[start:stop] = one.tokens
        flags |= one.flags
        values.append(one.values)
        credit = float(answer.credits[flat]) if batch.scored else math.nan
        weight = float(solved.weights[flat])
        ledgers.append(candidate_ledger(tokens[start:stop], float(solved.advantages[flat]), weight, credit, one))
    whole = None if answer.set_reward_advantages is None else float(answer.set_reward_advantages[row])
    added = 0.0 if whole is None else options.tokens.set_reward_weight * whole
    chosen = tokens + added if added else tokens
    of_set = float(solved.set_advantages[row])
    credits_ = answer.credits[own.start : own.stop] if batch.scored else None
    return ComposedCredit(
        credits=credits_,
        advantages=solved.advantages[own.start : own.stop],
        set_advantage=of_set,
        set_reward_advantage=whole,
        token_advantages=_among_all(chosen, batch.masks[row]),
        unit_values=tuple(values),
        utility_empty=float(answer.utility_empty[row]) if batch.scored else None,
        utility_grand=float(answer.utility_grand[row]) if batch.scored else None,
        ledger=set_ledger(
            tokens,
            chosen,
            inside_tokens,
            of_set,
            (answer.credit_sums[row], answer.utility_grand[row] - answer.utility_empty[row]) if batch.scored else None,
            tuple(ledgers),
        ),
        flags=flags,
    )


def _among_all(chosen: Floats, mask: Booleans | None) -> Floats:
    """Advantages of all tokens from those of the tokens that the policy chose."""
    if mask is None:
        return chosen
    tokens = np.zeros(len(mask))
    tokens[mask] = chosen
    return tokens


def _inside(batch: ComposedSets, options: ComposeOptions, solved: _Solved, row: int, flat: int) -> InsideCredit:
    """Credit inside one candidate; one without an advantage has none to share out."""
    parts, advantage = batch.parts[flat], float(solved.advantages[flat])
    if parts is None or math.isnan(advantage):
        return InsideCredit()
    inside, weight = batch.inside_of(row), float(solved.weights[flat])
    if isinstance(inside, BySensitivity):
        return _weighted(batch, inside, parts, row, flat, weight * advantage)
    values, scale = solved.games.get(flat, (parts.values, 0.0))
    if values is None:
        raise ValueError("units have values or utilities")
    units = _NO_UNITS if parts.units is None else parts.units
    lengths = _unit_lengths(units, batch.masks[row])
    contrasts = unit_contrasts(values, lengths, scale=scale)
    flags = 0
    if isinstance(inside, Additive):
        slope, n_tokens = 0.0 if solved.slopes is None else float(solved.slopes[flat]), int(lengths.sum())
        of_units = additive_advantages(
            advantage, contrasts, n_tokens, slope=slope, share=inside.share, length_weight=weight
        )
        normalised = batch.advantages is None and options.sets.normalization.type not in {"centered", "none"}
        widest = inside.share * slope * n_tokens * float(np.abs(contrasts).max(initial=0.0))
        flags = int(Flag.UNSTABLE_NORMALIZATION) if normalised and widest > UNSTABLE_RATIO else 0
    else:
        of_units = bounded_advantages(advantage, contrasts, share=inside.share, length_weight=weight)
    return InsideCredit(np.repeat(of_units, lengths), values, (lengths, of_units), flags=flags)


def _unit_lengths(units: Integers, mask: Booleans | None) -> Integers:
    """Tokens of each unit that the policy chose."""
    if mask is None:
        lengths: Integers = units[:, 1] - units[:, 0]
        return lengths
    before = np.append(0, np.cumsum(mask))
    chosen: Integers = before[units[:, 1]] - before[units[:, 0]]
    return chosen


def _weighted(
    batch: ComposedSets, inside: BySensitivity, parts: CandidateParts, row: int, flat: int, advantage: float
) -> InsideCredit:
    """The candidate's advantage, by how much the outcome depends on each of its reweighted tokens; others weigh 1."""
    if parts.sensitivities is None or batch.sets.spans is None:
        raise ValueError("weights need sensitivities and spans")
    start, stop = batch.sets.spans[flat].tolist()
    mask = batch.masks[row]
    measured = parts.sensitivities if mask is None else parts.sensitivities[mask[start:stop]]
    reweighted = ~np.isnan(measured)
    shape = reshape_weights(measured[reweighted], inside.reshape)
    weights = np.ones(len(measured))
    weights[reweighted] = shape.weights
    return InsideCredit(
        advantage * weights,
        n_reweighted=len(shape.weights),
        effective_share=shape.effective_share,
        top_share=shape.top_share,
        flags=int(Flag.FLAT_SENSITIVITY) if shape.flat and len(shape.weights) else 0,
    )
