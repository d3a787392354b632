"""What is remembered of an item is what is not asked for again, and changes no number."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from creditd.credit.coalition_semivalues import every_coalition
from creditd.server.convert import json_body
from creditd.wire.limits import RequestLimits
from creditd.wire.solve import REMEMBERED_EXAMPLE, SolveRequest
from creditd.wire.solve_items import solve_item, solve_items
from creditd.wire.solve_known import order_of, supplied_by
from creditd.wire.validation import from_validation_error
from wire.test_solve_items import RULES, utility

FEW = max(1, settings().max_examples // 2)
NAMES = ["g", 10, "a", 2, "2", "zz", "b", -1]


class Notes:
    """Utilities of some coalitions, whose players stand in the order of their names."""

    def __init__(self, rows, utilities):
        rows = np.array(rows, dtype=np.bool_)
        self._utilities = {row.tobytes(): value for row, value in zip(rows, utilities, strict=True)}

    def utilities_of(self, coalitions):
        """NaN for one that is not here."""
        return np.array([self._utilities.get(row.tobytes(), np.nan) for row in coalitions], dtype=np.float64)


def item_of(n, coalitions=(), function=utility, **fields):
    """An item with names, and what is known of it."""
    known = [sorted(players) for players in coalitions]
    return {
        "n_players": n,
        "player_ids": NAMES[:n],
        "prompt_id": "p",
        "coalitions": known,
        "utilities": list(map(function, known)),
        **fields,
    }


def notes_of(item, coalitions, function=utility):
    """What somebody remembers of an item."""
    order = order_of(item["player_ids"])
    rows = np.zeros((len(coalitions), item["n_players"]), dtype=np.bool_)
    for row, players in zip(rows, coalitions, strict=True):
        row[list(players)] = True
    return Notes(rows[:, order], [function(sorted(players)) for players in coalitions])


def answer_of(items, remembered=None, **options):
    """One answer."""
    request = SolveRequest.model_validate({"items": items, "utility_id": "u", **options})
    return solve_items(request, RequestLimits(), remembered=remembered or {})


def assert_same(one, other, row=0):
    """Equal answers about an item, to the last bit."""
    first, second = (solve_item(answer.items[row], answer, row) for answer in (one, other))
    assert json_body(first) == json_body(second)


def subsets(n):
    """All coalitions of n players."""
    return [players for size in range(n + 1) for players in itertools.combinations(range(n), size)]


@settings(max_examples=FEW)
@given(data=st.data())
def test_what_is_remembered_is_as_if_it_had_been_evaluated_when_it_was_asked_for(data):
    """Open or solved, exact or not, stopped early or not: equal bits, and the count is what was not said."""
    n = data.draw(st.integers(1, 7))
    everything = subsets(n)
    said = data.draw(st.lists(st.sampled_from(everything), unique=True))
    kept = data.draw(st.lists(st.sampled_from(everything), unique=True) | st.just(everything))
    credit, _ = RULES[data.draw(st.sampled_from(sorted(RULES)))]
    estimator = {
        "type": data.draw(st.sampled_from(["auto", "stratified", "permutations"])),
        "budget": data.draw(st.integers(1, 2**n)),
        "seed": data.draw(st.integers(0, 2)),
        "target_standard_error": data.draw(st.sampled_from([None, 1e-6, 0.3, 10.0])),
    }
    options = {"credit": credit, "estimator": estimator, "batch_size": data.draw(st.sampled_from([1, 5, 1024]))}
    item = item_of(n, said)
    remembering = answer_of([item], {0: notes_of(item, kept)}, **options)
    n_said = len(said)
    while news := asked_for(n, said, kept, options):
        said = [*said, *news]
    saying = answer_of([item_of(n, said)], **options)
    found = remembering.items[0]
    if found is None:
        assert remembering.errors == saying.errors
        return
    assert_same(remembering, saying)
    assert remembering.n_remembered == found.remembered == len(said) - n_said


def asked_for(n, said, kept, options):
    """Those of some coalitions that the plan asks for next."""
    [found] = answer_of([item_of(n, said)], **{**options, "batch_size": 1024}).items
    asked = [] if found is None else [tuple(np.flatnonzero(row).tolist()) for row in found.next]
    return [players for players in asked if players in kept]


@pytest.mark.parametrize("kept", [0, 50])
def test_only_what_the_request_says_makes_credits_exact_that_were_an_estimate(kept):
    """All utilities in the memory, or those there and those of the request together, do not."""
    n, options = 7, {"estimator": {"type": "stratified", "budget": 40}}
    everything = subsets(n)
    alone = answer_of([item_of(n, everything)], **options)
    assert alone.items[0].credits.exact
    item = item_of(n, everything[:kept])
    answer = answer_of([item], {0: notes_of(item, everything)}, **options)
    assert not answer.items[0].credits.exact
    assert 0 < answer.n_remembered <= 40
    item = item_of(n, everything)
    answer = answer_of([item], {0: notes_of(item, everything)}, **options)
    assert (answer.items[0].credits.exact, answer.n_remembered) == (True, 0)


@pytest.mark.parametrize("said", [[()], [(0,), (0, 2)]])
def test_one_contradiction_makes_all_that_is_remembered_worthless(said):
    """Then the answer is the one without it."""
    item = item_of(4, said)
    notes = notes_of(item, subsets(4), lambda players: utility(players) + (tuple(players) == said[-1]))
    answer = answer_of([item], {0: notes})
    assert answer.n_remembered == 0
    assert_same(answer, answer_of([item]))


def test_utilities_that_nobody_could_supply_are_not_used():
    """Whatever the memory says of a coalition, what is out of bounds is asked for."""
    item = item_of(2)
    notes = notes_of(item, subsets(2), lambda players: [0.0, 1e300, np.inf][len(players)])
    answer = answer_of([item], {0: notes})
    assert sorted(map(tuple, answer.items[0].next.tolist())) == [(False, True), (True, False), (True, True)]
    assert answer.n_remembered == 1


def test_what_is_supplied_stands_in_the_order_of_the_names():
    """Whatever the order of the players, the same coalitions have the same rows."""
    names = NAMES[:5]
    seen = set()
    for places in itertools.islice(itertools.permutations(range(5)), 0, 120, 7):
        known = [[at for at, place in enumerate(places) if place in players] for players in subsets(5)]
        utilities = [utility(players) for players in subsets(5)]
        item = item_of(
            5, player_ids=[names[place] for place in places], coalitions=known, utilities=utilities, prompt_id=1
        )
        request = SolveRequest.model_validate({"items": [item], "utility_id": 3})
        rows, values = supplied_by(request.items[0])
        seen.add(rows.tobytes() + values.tobytes())
    assert len(seen) == 1
    assert rows.dtype == np.bool_
    assert len(np.unique(rows, axis=0)) == len(every_coalition(5))


def test_an_item_that_is_wrong_says_nothing():
    """Nor one without names."""
    unnamed = SolveRequest.model_validate({"items": [{"n_players": 1, "coalitions": [[]], "utilities": [0.0]}]})
    wrong = SolveRequest.model_validate({"items": [item_of(1, [()], lambda _: float("nan"))], "utility_id": "u"})
    for request in (unnamed, wrong):
        with pytest.raises(ValueError, match="sound item"):
            supplied_by(request.items[0])


@pytest.mark.parametrize(
    ("body", "offences"),
    [
        ({"items": [{"n_players": 1}], "utility_id": "u"}, ["/items/0/player_ids", "/items/0/prompt_id"]),
        ({"items": [item_of(1), item_of(1, prompt_id=None)], "utility_id": 0}, ["/items/1/prompt_id"]),
        ({"items": [item_of(1), item_of(1, player_ids=None)], "utility_id": ""}, ["/items/1/player_ids"]),
        ({"items": [{"n_players": 1}, item_of(1)]}, ["/items/1/prompt_id"]),
        ({"items": [{"n_players": 1}] * 50, "utility_id": "u"}, None),
    ],
)
def test_names_go_together(body, offences):
    """A utility that is remembered needs names of what it is about; those of prompts serve nothing else."""
    with pytest.raises(ValidationError) as raised:
        SolveRequest.model_validate(body)
    error = from_validation_error(raised.value)
    found = [item.pointer for item in error.items]
    assert found == offences if offences is not None else len(found) == 10
    assert {item.code for item in error.items} == {"invalid_request"}


def test_the_example_is_answered():
    """It works as it stands, without a memory as well."""
    request = SolveRequest.model_validate(REMEMBERED_EXAMPLE)
    [item] = solve_items(request, RequestLimits()).items
    assert len(item.next) == 2
