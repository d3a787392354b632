"""What the parts of candidates have to be before credit gets into them. A set whose parts are wrong fails alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.candidate_sets import USABLE, ErrorCode, ErrorField, SetErrors, number_name, unusable_numbers
from creditd.credit.composed_items import (
    Additive,
    BySensitivity,
    CandidateParts,
    ComposedSets,
    ComposeOptions,
    Inside,
    UnitError,
)
from creditd.credit.credit_rules import Shapley
from creditd.credit.order_statistics import Max
from creditd.credit.owen_trees import owen_plan

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Booleans: TypeAlias = NDArray[np.bool_]


WHOLE_TOLERANCE = 0.01
"""Of the largest utility: what the text of all units may be worth other than the candidate. Models in bfloat16 round by
nearly as much; what differs within it is in `credit_gap`."""


class _PartsError(Exception):
    """What is wrong with one set, or with the inside of one of its candidates."""

    def __init__(self, code: ErrorCode, field: ErrorField, detail: str, entry: int | None = None) -> None:
        super().__init__(detail)
        self.code, self.field, self.detail, self.entry = code, field, detail, entry


def check_parts(
    batch: ComposedSets, options: ComposeOptions, errors: SetErrors, checkpoint: Callable[[], None]
) -> None:
    """Fail the sets whose masks, given advantages or parts of candidates cannot be used.

    Args:
        batch: The sets, whose spans and token counts are sound where they have not failed.
        options: Every choice of the request.
        errors: Receives at most one error per set.
        checkpoint: Called before each set; what it raises ends the work.

    Cost:
        O(T + Σ 2^m) for T tokens and candidates of m units with utilities.
    """
    for row in range(batch.sets.n_sets):
        checkpoint()
        if errors.failed[row]:
            continue
        position: int | None = None
        try:
            _check_set(batch, row)
            for flat in range(int(batch.sets.row_splits[row]), int(batch.sets.row_splits[row + 1])):
                position = flat - int(batch.sets.row_splits[row])
                _check_candidate(batch, options, row, flat)
        except _PartsError as error:
            errors.add(UnitError(row, error.code, error.field, position, error.detail, error.entry))


def _check_set(batch: ComposedSets, row: int) -> None:
    """The mask, and what the caller says of the set beside given advantages."""
    mask = batch.masks[row]
    n_tokens = 0 if batch.sets.n_tokens is None else int(batch.sets.n_tokens[row])
    if mask is not None and len(mask) != n_tokens:
        detail = f"got {len(mask)} entries; expected n_tokens = {n_tokens}, one per token"
        raise _PartsError("shape_mismatch", "completion_mask", detail)
    for field, column in (("set_advantage", batch.set_advantages), ("advantage_slope", batch.slopes)):
        if column is not None and not np.isnan(column[row]):
            _check_numbers(field, column[row : row + 1], entries=False)  # type: ignore[arg-type]  # a literal each
    if batch.advantages is not None and (batch.set_advantages is None or np.isnan(batch.set_advantages[row])):
        detail = "set_advantage is missing; beside given advantages it is what tokens outside the candidates get"
        raise _PartsError("invalid_request", "set_advantage", detail)
    if batch.slopes is not None and batch.slopes[row] < 0.0:
        detail = f"advantage_slope is {batch.slopes[row]:.3g}; expected at least 0"
        raise _PartsError("invalid_request", "advantage_slope", detail)


def _check_candidate(batch: ComposedSets, options: ComposeOptions, row: int, flat: int) -> None:
    """A given advantage, and the parts of one candidate."""
    if batch.advantages is not None and not np.isnan(batch.advantages[flat]):
        _check_numbers("advantage", batch.advantages[flat : flat + 1], entries=False)
    parts = batch.parts[flat]
    if parts is None:
        return
    inside, mask = batch.inside_of(row), batch.masks[row]
    _check_presence(parts, inside)
    if batch.sets.spans is None:
        raise ValueError("parts of candidates need spans")
    start, stop = batch.sets.spans[flat].tolist()
    trainable = np.ones(stop - start, dtype=np.bool_) if mask is None else mask[start:stop]
    if parts.sensitivities is not None:
        _check_sensitivities(parts.sensitivities, trainable)
        return
    if isinstance(inside, Additive):
        _check_slope(batch, row)
    units = np.empty((0, 2), dtype=np.int64) if parts.units is None else parts.units
    _check_units(units, start, trainable, options.max_units)
    if parts.values is not None:
        _check_length("unit_values", parts.values, len(units))
        _check_numbers("unit_values", parts.values)
    if parts.utilities is not None:
        _check_utilities(batch, options, parts.utilities, len(units))
        _check_whole(float(batch.sets.rewards[flat]), parts.utilities)
        _check_tree(parts.tree, len(units))


def _check_presence(parts: CandidateParts, inside: Inside) -> None:
    """The parts are those that the choice takes, all of them and no others."""
    if isinstance(inside, BySensitivity):
        if parts.sensitivities is None:
            raise _PartsError("invalid_request", "units", "got units; the choice sensitivity takes sensitivities alone")
        for field, value in (("units", parts.units), ("unit_values", parts.values), ("utilities", parts.utilities)):
            if value is not None:
                detail = f"got {field} beside sensitivities; expected one of them"
                raise _PartsError("invalid_request", field, detail)  # type: ignore[arg-type]  # a literal each
    elif parts.sensitivities is not None:
        detail = f"got sensitivities; the choice {inside.type} takes units, expected the choice sensitivity"
        raise _PartsError("invalid_request", "sensitivities", detail)
    elif parts.units is None:
        raise _PartsError("invalid_request", "units", "units is missing; what is known of units needs it")
    elif (parts.values is None) == (parts.utilities is None):
        detail = "expected unit_values or utilities beside units, and not both"
        raise _PartsError("invalid_request", "unit_values", detail)
    if parts.tree is not None and parts.utilities is None:
        raise _PartsError("invalid_request", "tree", "got a tree without utilities; expected null")


def _check_slope(batch: ComposedSets, row: int) -> None:
    """There is one slope of the advantages by which credit becomes a contrast of advantages."""
    if batch.advantages is None:
        if batch.sets.parts is not None:
            detail = "rewards that are normalised one by one have a slope each; expected bounded, or sum_then_normalize"
            raise _PartsError("invalid_request", "inside", detail)
    elif batch.slopes is None or np.isnan(batch.slopes[row]):
        detail = "advantage_slope is missing; additive credit beside given advantages needs it"
        raise _PartsError("invalid_request", "advantage_slope", detail)


def _check_units(units: Integers, start: int, trainable: Booleans, most: int) -> None:
    """The units are runs of the span, in order, and hold its trainable tokens, each of them at least one."""
    if len(units) > most:
        raise _PartsError("too_many_players", "units", f"got {len(units)} units; expected at most {most}")
    stop, end = start + len(trainable), start
    counts = np.append(0, np.cumsum(trainable))
    for place, (first, last) in enumerate(units.tolist()):
        if not end <= first <= last <= stop:
            detail = f"unit is [{first}, {last}]; expected {end} ≤ start ≤ stop ≤ {stop}, after the unit before it"
            raise _PartsError("shape_mismatch", "units", detail, place)
        if counts[first - start] > counts[end - start]:
            detail = f"tokens before token {first} are in no unit; expected each that the policy chose in one"
            raise _PartsError("shape_mismatch", "units", detail, place)
        if counts[last - start] == counts[first - start]:
            detail = f"unit [{first}, {last}] has no token that the policy chose; expected one at least"
            raise _PartsError("shape_mismatch", "units", detail, place)
        end = last
    if counts[-1] > counts[end - start]:
        detail = f"tokens from token {end} on are in no unit; expected each that the policy chose in one"
        raise _PartsError("shape_mismatch", "units", detail)


def _check_utilities(batch: ComposedSets, options: ComposeOptions, utilities: Floats, n_units: int) -> None:
    """Utilities of partial texts are a table, and there is a function that makes credit of them."""
    if not batch.scored:
        raise _PartsError(
            "invalid_request", "utilities", "got utilities, but no rewards; the other candidates need one"
        )
    utility, rule = options.sets.utility, options.sets.rule
    if not isinstance(utility, Max) or not isinstance(rule, Shapley) or batch.sets.parts is not None:
        detail = f"got the utility {utility.type} and the credit {rule.type}; expected max and shapley of one reward"
        raise _PartsError("invalid_request", "utilities", detail)
    most = options.sets.max_table_players
    if n_units > most:
        detail = f"got {n_units} units with utilities of all their coalitions; expected at most {most}"
        raise _PartsError("too_many_players", "units", detail)
    if len(utilities) != 1 << n_units:
        detail = f"utilities holds {len(utilities)} values; expected 2**{n_units} for {n_units} units"
        raise _PartsError("shape_mismatch", "utilities", detail)
    _check_numbers("utilities", utilities[1:], offset=1)


def _check_whole(reward: float, utilities: Floats) -> None:
    """The text of all units is worth what the candidate is, but for how a model rounds from one batch to the next."""
    if len(utilities) == 1 or np.isnan(reward):
        return
    whole, last = float(utilities[-1]), len(utilities) - 1
    if abs(whole - reward) > WHOLE_TOLERANCE * max(abs(reward), float(np.abs(utilities[1:]).max())):
        detail = (
            f"got {whole:.6g} for all units; expected the candidate's reward, {reward:.6g}, because it is their text"
        )
        raise _PartsError("invalid_request", "utilities", detail, last)


def _check_tree(tree: Integers | None, n_units: int) -> None:
    """The merges are a tree of the units."""
    if tree is None:
        return
    if len(tree) != max(n_units - 1, 0):
        detail = f"got {len(tree)} merges; expected {max(n_units - 1, 0)} for {n_units} units"
        raise _PartsError("shape_mismatch", "tree", detail)
    if n_units:
        try:
            owen_plan(tree, most=1 << n_units)
        except ValueError as error:
            raise _PartsError("shape_mismatch", "tree", str(error)) from None


def _check_sensitivities(sensitivities: Floats, trainable: Booleans) -> None:
    """Each token has an entry, and those that the policy chose a usable one, or none where they are not reweighted."""
    _check_length("sensitivities", sensitivities, len(trainable))
    _check_numbers("sensitivities", np.where(trainable & ~np.isnan(sensitivities), sensitivities, 0.0))


def _check_length(field: ErrorField, column: Floats, expected: int) -> None:
    if len(column) != expected:
        raise _PartsError("shape_mismatch", field, f"got {len(column)} entries; expected {expected}")


def _check_numbers(field: ErrorField, values: Floats, *, offset: int = 0, entries: bool = True) -> None:
    """All are finite and not too large."""
    for code, wrong in unusable_numbers(values, None):
        places = np.flatnonzero(wrong)
        if len(places):
            place = int(places[0])
            detail = f"{field} is {number_name(float(values[place]))}; expected {USABLE}"
            raise _PartsError(code, field, detail, place + offset if entries else None)
