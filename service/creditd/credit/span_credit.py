"""Credit of the units of many completions: what has to be evaluated, and every number of the answer.

Legend: `N` completions, `T` tokens and `n` units of one of them. v(∅) is one number for each prompt; a coalition of a
completion with frozen text is another text when it is empty.

Whatever happens to a completion, its token rewards sum to what it returns (`token_rewards`): a coalition without a
utility takes its unit values away and not its return.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.coalition_plans import Booleans
from creditd.credit.flags import Flag
from creditd.credit.span_games import (
    SpanGame,
    SpanValue,
    TooManyEvaluationsError,
    UnitValues,
    affordable_value,
)
from creditd.credit.span_items import (
    MAX_SPAN_MAGNITUDE,
    NO_REFUSALS,
    Refusal,
    SpanCredit,
    SpanCredits,
    SpanError,
    SpanErrorCode,
    SpanField,
    SpanItem,
    SpanOptions,
    SpanQuestions,
    field_of_units,
)
from creditd.credit.token_rewards import CompletionCredit, grouped_advantages, token_densities, token_rewards

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]


@dataclass
class _State:
    """What is known of one completion.

    Attributes:
        game: None without units.
        grand: v(P), once it is known.
        refused: Whether a coalition has no utility, so that the completion cannot be decomposed.
        attention: Shape (n,), float64, once it is known.
        wants_attention: Whether it is not known yet.
    """

    game: SpanGame | None
    grand: float | None = None
    refused: bool = False
    attention: Floats | None = None
    wants_attention: bool = False


class SpanBatch:
    """Completions whose utilities come from outside: `ask` and tell until `done`, then `answer`.

    Not for several threads at a time. What is answered is a function of the arguments and of what was told, and not of
    the order in which that came.

    Attributes:
        planned: Shape (N,), int64: most evaluations of each completion, v(∅) of its prompt counted where it is its own
            empty coalition; 0 for one that failed.
    """

    def __init__(
        self,
        items: Sequence[SpanItem | None],
        prompts: Integers,
        groups: Integers,
        options: SpanOptions,
        rejected: Sequence[SpanError] = (),
    ) -> None:
        """Plan every completion; nothing is evaluated.

        Args:
            items: N completions; None where one is rejected.
            prompts: Shape (N,), int64, from 0 on: completions of equal prompts have equal numbers.
            groups: Shape (N,), int64, from 0 on: which completions are compared.
            options: How they get their credit.
            rejected: Completions that are wrong already.

        Cost:
            That of the plans, which are never longer than the options allow.
        """
        self._items, self._options = tuple(items), options
        self._prompts: list[int] = prompts.tolist()
        self._groups: list[int] = groups.tolist()
        self._n_groups = 1 + max(self._groups, default=-1)
        self._errors = {error.row: error for error in rejected}
        self._empty: dict[int, float | Refusal] = {}
        self._class = _classes(self._prompts, self._groups)
        self._without_credit: set[int] = set()
        self._check_groups()
        self._states: dict[int, _State] = {}
        values = self._values_of_classes()
        for row, item in enumerate(items):
            if item is None or row in self._errors:
                continue
            try:
                self._states[row] = self._planned(item, *values[self._class[self._prompts[row]]])
            except _ItemError as error:
                self._errors[row] = SpanError(row, error.code, error.field, None, error.detail)
        if options.fail_incomplete_groups:
            self._fail_incomplete_groups()
        self.planned = np.zeros(len(items), dtype=np.int64)
        self._rows_of: dict[int, list[int]] = {}
        for row, state in self._states.items():
            self.planned[row] = 1 if state.game is None else state.game.planned
            self._rows_of.setdefault(self._prompts[row], []).append(row)

    @property
    def done(self) -> bool:
        """Whether nothing is left to ask for."""
        return not self.ask()

    @property
    def errors(self) -> tuple[SpanError, ...]:
        """Completions that have no answer so far, by row."""
        return tuple(self._errors[row] for row in sorted(self._errors))

    def prompt_of(self, row: int) -> int:
        """Number of a completion's prompt."""
        return self._prompts[row]

    def ask(self) -> SpanQuestions:
        """What to evaluate next; the same until it is told."""
        rows = [row for row in sorted(self._states) if row not in self._errors]
        prompts = {self._prompts[row] for row in rows}
        coalitions = [(row, asked) for row in rows if len(asked := self.ask_of(row))]
        return SpanQuestions(
            empty=tuple(sorted(prompts - set(self._empty))),
            coalitions=tuple(coalitions),
            attention=tuple(row for row in rows if self.wants_attention(row)),
        )

    def ask_of(self, row: int) -> Booleans:
        """Coalitions of one completion that are to be evaluated; none for one that failed."""
        if row in self._errors or row not in self._states:
            return np.empty((0, 0), dtype=np.bool_)
        state, item = self._states[row], self._item(row)
        if state.game is None:
            return np.ones((int(state.grand is None), 0), dtype=np.bool_)
        if state.refused or self._lacks_empty(row):
            return np.ones((int(state.grand is None), state.game.n_units), dtype=np.bool_)
        asked = state.game.ask()
        return asked if item.units.has_frozen_text else asked[asked.any(axis=1)]

    def wants_attention(self, row: int) -> bool:
        """Whether the model's attention to the units of a completion is wanted."""
        if row in self._errors or row not in self._states:
            return False
        state = self._states[row]
        return state.wants_attention and not state.refused and not self._lacks_empty(row)

    def n_known(self, row: int) -> int:
        """Evaluations that a completion's values rest on so far."""
        state = self._states.get(row)
        if state is None:
            return 0
        return int(state.grand is not None) if state.game is None else state.game.n_known

    def tell_empty(self, prompt: int, utility: float | Refusal) -> None:
        """Take v(∅) of a prompt, or why there is none."""
        if not isinstance(utility, Refusal) and not _usable(utility):
            utility = Refusal("non_finite_utility", "the empty completion has no finite utility")
        self._empty[prompt] = utility
        if isinstance(utility, Refusal):
            self._without_credit.add(self._class[prompt])
            return
        for row in self._rows_of.get(prompt, ()):
            game = self._states[row].game
            if game is not None and not self._item(row).units.has_frozen_text:
                game.tell(np.zeros((1, game.n_units), dtype=np.bool_), np.array([utility]))

    def tell(
        self, row: int, coalitions: Booleans, utilities: Floats, refusals: Mapping[int, Refusal] = NO_REFUSALS
    ) -> None:
        """Take utilities of coalitions of one completion.

        Args:
            row: The completion.
            coalitions: Shape (R, n), bool.
            utilities: Shape (R,), float64, reward units; what is not finite, or above 1e90, is none.
            refusals: Why there is none, by place among the coalitions, where it is known.

        Raises:
            ValueError: If a coalition was told before with another utility.
        """
        state = self._states[row]
        usable = np.abs(utilities) <= MAX_SPAN_MAGNITUDE
        usable[list(refusals)] = False
        everyone = coalitions.all(axis=1)
        for place in np.flatnonzero(everyone).tolist():
            if usable[place]:
                state.grand = float(utilities[place])
                continue
            why = refusals.get(place, Refusal("non_finite_utility", "the whole completion has no finite utility"))
            self._errors[row] = SpanError(row, why.code, _field_of(why), None, why.detail)
            return
        if state.game is None:
            return
        if not usable.all():
            state.refused = True
        state.game.tell(coalitions[usable], utilities[usable])

    def tell_attention(self, row: int, weights: Floats | Refusal) -> None:
        """Take what the model attends to of each unit, shape (n,), or why that is not known."""
        state = self._states[row]
        state.wants_attention = False
        if isinstance(weights, Refusal):
            state.refused = True
        else:
            state.attention = np.asarray(weights, dtype=np.float64)

    def answer(self) -> SpanCredits:
        """Every number, once nothing is left to ask for.

        Raises:
            ValueError: If something is left to ask for.
        """
        if not self.done:
            raise ValueError("some utilities are not known yet: ask for them and tell them first")
        if self._options.fail_incomplete_groups:
            self._fail_incomplete_groups()
        rows = [row for row in sorted(self._states) if row not in self._errors]
        credited = {row: self._credited(row) for row in rows}
        advantages, of_group = self._advantages(credited)
        found: list[SpanCredit | None] = [None] * len(self._items)
        for row, (completion, values) in credited.items():
            item, state = self._item(row), self._states[row]
            rewards, ledger = token_rewards(completion, self._options.alpha)
            flags = int(of_group[self._groups[row]])
            flags |= int(Flag.UNITS_MERGED) if item.units.merged else 0
            flags |= int(Flag.FALLBACK_RETURN) if values is None else 0
            flags |= int(Flag.INTERVAL_APPROXIMATE) if values is not None and values.interval_approximate else 0
            empty = completion.empty
            gap = None
            if values is not None and empty is not None:
                gap = float(np.cumsum(values.values)[-1]) - (completion.grand - empty)
            found[row] = SpanCredit(
                units=item.units,
                values=None if values is None else values.values,
                standard_errors=None if values is None else values.standard_errors,
                intervals=None if values is None else values.intervals,
                empty=empty,
                grand=completion.grand,
                method=None if values is None else values.method,
                exact=None if values is None else values.exact,
                gap=gap,
                ledger=ledger,
                token_rewards=rewards,
                token_advantages=advantages.get(row),
                flags=flags,
                evaluations=1 if state.game is None else state.game.n_known,
            )
        return SpanCredits(tuple(found), self.errors)

    def _credited(self, row: int) -> tuple[CompletionCredit, UnitValues | None]:
        """What a completion's rewards are made from; without values where it could not be decomposed."""
        state, item = self._states[row], self._item(row)
        if state.grand is None:
            raise ValueError(f"completion {row} has no v(P) yet")
        without = self._lacks_empty(row)
        empty = None if without else self._empty[self._prompts[row]]
        values = None
        if state.game is not None and not state.refused and not without:
            values = state.game.values(state.attention)
        completion = CompletionCredit(
            units=item.units,
            values=None if values is None else values.values,
            empty=None if isinstance(empty, Refusal) else empty,
            grand=state.grand,
            kl=item.kl,
            other_reward=item.other_reward,
        )
        return completion, values

    def _advantages(
        self, credited: Mapping[int, tuple[CompletionCredit, UnitValues | None]]
    ) -> tuple[dict[int, Floats], Integers]:
        """Token advantages by completion, and flags by group."""
        options, flags = self._options, np.zeros(self._n_groups, dtype=np.int64)
        flags[[self._groups[row] for row in self._errors]] = int(Flag.GROUP_INCOMPLETE)
        if options.ddof is None or not credited:
            return {}, flags
        densities = [token_densities(one, options.alpha) for one, _ in credited.values()]
        totals = [
            one.grand + one.other_reward - (0.0 if one.empty is None else options.alpha * one.empty)
            for one, _ in credited.values()
        ]
        found, of_advantages = grouped_advantages(
            densities,
            [one.units.trainable for one, _ in credited.values()],
            np.array(totals),
            np.array([self._groups[row] for row in credited], dtype=np.int64),
            self._n_groups,
            ddof=options.ddof,
            epsilon=options.epsilon,
        )
        return dict(zip(credited, found, strict=True)), flags | of_advantages

    def _item(self, row: int) -> SpanItem:
        item = self._items[row]
        if item is None:
            raise ValueError(f"completion {row} was rejected")
        return item

    def _lacks_empty(self, row: int) -> bool:
        """Whether a v(∅) is refused among the completions that are compared with this one, so that all have α = 0."""
        return self._class[self._prompts[row]] in self._without_credit

    def _check_groups(self) -> None:
        """Fail the groups that are of another size than the caller is sure of."""
        expected = self._options.group_size
        if expected is None:
            return
        sizes = np.bincount(np.array(self._groups, dtype=np.int64), minlength=self._n_groups).tolist()
        for row, group in enumerate(self._groups):
            if sizes[group] != expected and row not in self._errors:
                detail = f"the group holds {sizes[group]} items in this request; expected {expected}"
                self._errors[row] = SpanError(row, "group_size_mismatch", "group", None, detail)

    def _fail_incomplete_groups(self) -> None:
        """Fail every completion of a group that lost one."""
        broken = {self._groups[row] for row in self._errors}
        for row, group in enumerate(self._groups):
            if group in broken and row not in self._errors:
                detail = "another item of this group failed; expected every item of the group to be sound"
                self._errors[row] = SpanError(row, "group_incomplete", "group", None, detail)

    def _values_of_classes(self) -> dict[int, tuple[SpanValue, bool]]:
        """What the completions of each prompt get, and whether all coalitions of the longest are affordable."""
        longest: dict[int, int] = {}
        for row, item in enumerate(self._items):
            if item is not None and row not in self._errors:
                number = self._class[self._prompts[row]]
                longest[number] = max(longest.get(number, 0), item.units.n_units)
        value, estimator = self._options.value, self._options.estimator
        if value != "auto":
            return dict.fromkeys(longest, (value, False))
        if estimator.type != "auto":
            return dict.fromkeys(longest, ("shapley", False))
        return {number: affordable_value(n_units, estimator.budget) for number, n_units in longest.items()}

    def _planned(self, item: SpanItem, value: SpanValue, exact: bool) -> _State:  # noqa: FBT001 - of a pair
        """A completion of which nothing is known."""
        n_units, options = item.units.n_units, self._options
        if n_units > options.most_units:
            detail = f"got {n_units} units; expected at most {options.most_units}"
            raise _ItemError("too_many_players", field_of_units(item), detail)
        if item.tree is not None and (options.value != "owen" or item.units.merged):
            why = "units were merged" if options.value == "owen" else f"the credit is {options.value}"
            raise _ItemError("invalid_request", "tree", f"got a tree where {why}; expected null")
        if n_units == 0:
            if item.tree is not None and len(item.tree):
                detail = f"tree: got {len(item.tree)} merges; expected 0 for 0 units"
                raise _ItemError("invalid_request", "tree", detail)
            return _State(None)
        estimator = options.estimator
        if options.value == "auto" and value == "shapley" and not exact and estimator.type == "auto":
            # One method for all completions of a prompt, also for those that alone could afford more.
            estimator = replace(estimator, type="permutations")
        try:
            game = SpanGame(
                n_units,
                value,
                estimator,
                lengths=item.units.lengths,
                most=options.most_evaluations,
                tree=item.tree,
            )
        except TooManyEvaluationsError as error:
            raise _ItemError("budget_exceeded", field_of_units(item), str(error)) from None
        except ValueError as error:
            raise _ItemError("invalid_request", "tree", str(error)) from None
        return _State(game, wants_attention=value == "attention")


class _ItemError(Exception):
    """Why one completion has no answer."""

    def __init__(self, code: SpanErrorCode, field_: SpanField, detail: str) -> None:
        super().__init__(detail)
        self.code, self.field, self.detail = code, field_, detail


def _usable(utility: float) -> bool:
    return bool(abs(utility) <= MAX_SPAN_MAGNITUDE)


def _field_of(refusal: Refusal) -> SpanField:
    """What is wrong with a completion that cannot be read."""
    return "prompt" if refusal.code == "invalid_request" else "completion"


def _classes(prompts: Sequence[int], groups: Sequence[int]) -> list[int]:
    """Which class each prompt belongs to: prompts of one group are compared with each other, so they are one."""
    parent = list(range(1 + max(prompts, default=-1)))

    def root(prompt: int) -> int:
        while parent[prompt] != prompt:
            parent[prompt] = parent[parent[prompt]]
            prompt = parent[prompt]
        return prompt

    first: dict[int, int] = {}
    for prompt, group in zip(prompts, groups, strict=True):
        one, other = root(prompt), root(first.setdefault(group, prompt))
        parent[max(one, other)] = min(one, other)
    return [root(prompt) for prompt in range(len(parent))]
