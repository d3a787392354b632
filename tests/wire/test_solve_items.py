import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from creditd.credit.credit_rules import Blend, LeaveOneOut, MaxAtK, Mixture, OwnReward, PrefixGain, SetReward, Shapley
from creditd.credit.evaluated_games import EvaluatedGame
from creditd.credit.evaluation_needs import EstimatorOptions
from creditd.credit.set_credit import SetCreditOptions, set_credit
from creditd.wire import v1
from creditd.wire.choices import options_of
from creditd.wire.columns import batch_of
from creditd.wire.errors import ErrorCode
from creditd.wire.limits import RequestLimits
from creditd.wire.solve import SolveRequest
from creditd.wire.solve_items import MAX_CELLS, pointer_to, solve_item, solve_items
from creditd.wire.validation import WireError
from wire.forms import at_pointer

NAN, INF = float("nan"), float("inf")
LIMITS = RequestLimits()
FEW = max(1, settings().max_examples // 4)
MANY_ROUNDS = 10_000

RULES = {
    "shapley": ({"type": "shapley"}, lambda _: Shapley()),
    "leave_one_out": ({"type": "leave_one_out"}, lambda _: LeaveOneOut()),
    "own_reward": ({"type": "own_reward"}, lambda _: OwnReward()),
    "set_reward": ({"type": "set_reward"}, lambda _: SetReward()),
    "prefix_gain": ({"type": "prefix_gain"}, lambda _: PrefixGain()),
    "max_at_k": ({"type": "max_at_k", "k": 2}, lambda _: MaxAtK(k=2)),
    "blend": (
        {"type": "blend", "from": "shapley", "to": "leave_one_out", "position": 0.25},
        lambda _: Blend(Shapley(), LeaveOneOut(), 0.25),
    ),
}


def utility(players):
    """A game without any symmetry: what some players are worth together."""
    chosen = sorted(players)
    return (
        sum(0.3 + 0.1 * i for i in chosen) + 0.05 * sum(a * b % 7 for a, b in itertools.combinations(chosen, 2)) + 0.4
    )


def answered(items, **options):
    """One answer."""
    return solve_items(SolveRequest.model_validate({"items": items, **options}), LIMITS)


def conversation(items, function=utility, **options):
    """The last answer, after evaluating whatever is asked for; the items are left as they stood in the last request."""
    for _ in range(MANY_ROUNDS):
        answer = answered(items, **options)
        if answer.done:
            return answer
        for item, found in zip(items, answer.items, strict=True):
            for coalition in found.next if found is not None else ():
                players = np.flatnonzero(coalition).tolist()
                item.setdefault("coalitions", []).append(players)
                item.setdefault("utilities", []).append(function(players))
    raise AssertionError("the conversation does not end")


def direct(n, rule, **options):
    """The credits of one game without a wire."""
    game = EvaluatedGame(n, EstimatorOptions(**options), rule)
    while not game.done:
        rows = game.ask()
        game.tell(rows, np.array([utility(np.flatnonzero(row).tolist()) for row in rows]))
    return game.credits()


def errors_of(answer):
    """What failed."""
    return [(e.row, e.code, pointer_to(e)) for e in answer.errors]


# Conversations


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("estimator", ["auto", "stratified", "permutations"])
def test_a_conversation_ends_in_the_bits_of_the_estimate(rule, estimator):
    """Whatever the batch size, credits, errors and intervals are those of the game without a wire."""
    choice, of_size = RULES[rule]
    for n, budget in ((1, 64), (2, 64), (5, 64), (9, 120)):
        options = {"type": estimator, "budget": budget, "seed": 3}
        expected = direct(n, of_size(n), **options)
        for batch_size in (1, 7, 1024):
            if batch_size == 1 and n > 5:
                continue
            answer = conversation([{"n_players": n}], credit=choice, estimator=options, batch_size=batch_size)
            [item] = answer.items
            found = item.credits
            assert found.credits.tobytes() == expected.credits.tobytes()
            assert (found.exact, found.method, found.evaluations) == (
                expected.exact,
                expected.method,
                expected.evaluations,
            )
            for name in ("standard_errors", "intervals"):
                one, other = getattr(found, name), getattr(expected, name)
                assert (one is None) == (other is None)
                assert one is None or one.tobytes() == other.tobytes()
            assert item.known <= item.planned <= budget


def test_a_mixture_has_a_weight_per_player():
    """Mixtures are credits by definition; an item of another size fails alone."""
    weights = [0.5, -0.25, 1.0]
    answer = conversation([{"n_players": 3}, {"n_players": 2}], credit={"type": "mixture", "weights": weights})
    assert answer.items[0].credits.credits.tobytes() == direct(3, Mixture(tuple(weights))).credits.tobytes()
    assert errors_of(answer) == [(1, "shape_mismatch", "/items/1/n_players")]
    assert answer.errors[0].detail == "got 2 players; expected 3, one per mixture weight"


@settings(max_examples=FEW)
@given(seed=st.integers(0, 5), places=st.permutations(range(7)), rule=st.sampled_from(sorted(set(RULES))))
def test_player_ids_make_the_order_of_players_irrelevant(seed, places, rule):
    """With ids, players in another order get the same credits to the last bit; `prefix_gain` keeps the order given."""
    names = ["g", 10, "a", 2, "2", "zz", "b"]
    choice, _ = RULES[rule]
    options = {"credit": choice, "estimator": {"budget": 60, "seed": seed, "type": "stratified"}, "batch_size": 16}
    first = conversation([{"n_players": 7, "player_ids": names}], **options).items[0].credits
    moved = conversation(
        [{"n_players": 7, "player_ids": [names[place] for place in places]}],
        lambda players: utility([places[player] for player in players]),
        **options,
    )
    found = moved.items[0].credits
    if rule == "prefix_gain":
        running = [utility(places[:stop]) for stop in range(7)]
        np.testing.assert_allclose(found.credits, utility(range(7)) - np.array(running), rtol=0, atol=1e-12)
        return
    assert found.credits.tobytes() == first.credits[list(places)].tobytes()
    if first.standard_errors is not None:
        assert found.standard_errors.tobytes() == first.standard_errors[list(places)].tobytes()


def test_early_stopping_evaluates_less_and_says_so():
    """With a target that is easily met, fewer coalitions are evaluated than planned, and errors are inflated."""
    options = {"budget": 4000, "seed": 1, "target_standard_error": 1e3, "type": "stratified"}
    items = [{"n_players": 14}]
    answer = conversation(items, estimator=options)
    [item] = answer.items
    assert item.credits.evaluations < item.planned == 4000
    expected = direct(14, Shapley(), **options)
    assert item.credits.credits.tobytes() == expected.credits.tobytes()
    assert item.credits.standard_errors.tobytes() == expected.standard_errors.tobytes()


def test_what_is_known_is_not_asked_again():
    """All 2^n utilities make any credit exact at once, in any order and with repetitions."""
    rows = [list(c) for size in range(4) for c in itertools.combinations(range(3), size)]
    rows = [*reversed(rows), rows[3]]
    item = {"n_players": 3, "coalitions": rows, "utilities": [utility(row) for row in rows]}
    answer = answered([item, {**item, "coalitions": [[*row, *row] for row in rows]}])
    assert answer.done
    first, second = answer.items
    assert first.credits.exact
    assert first.credits.credits.tobytes() == second.credits.credits.tobytes()
    assert first.credits.credits.tobytes() == direct(3, Shapley()).credits.tobytes()


def test_an_answer_is_a_function_of_its_request():
    """The same request twice gives the same coalitions; nothing is kept in between."""
    items = [{"n_players": 10}, {"n_players": 3, "coalitions": [[0]], "utilities": [1.0]}]
    first, second = answered(items), answered(items)
    for one, other in zip(first.items, second.items, strict=True):
        assert one.next.tobytes() == other.next.tobytes()
    assert not any((row == [True, False, False]).all() for row in first.items[1].next)


def test_advantages_come_when_no_item_is_open():
    """Groups are normalised as a whole, so that advantages wait for the last item, and are those of `set_credit`."""
    full = {"n_players": 2, "coalitions": [[], [0], [1], [0, 1]], "utilities": [0.0, 0.3, 0.5, 1.0]}
    tokens = {"n_tokens": 6, "spans": [[0, 2], None]}
    solved = {**full, **tokens, "group": "p", "set_reward": 0.5}
    other = {**tokens, "group": "p", "n_players": 2, "set_reward": 0.25}
    half = answered([solved, other], tokens={})
    assert not half.done
    fields = solve_item(half.items[0], half, 0)
    assert fields["status"] == "ok"
    assert "advantages" not in fields
    assert solve_item(half.items[1], half, 1)["status"] == "open"
    answer = conversation([solved, other], tokens={"other": "next"}, advantage={"type": "centered"})
    fields = [solve_item(item, answer, row) for row, item in enumerate(answer.items)]
    tables = [full["utilities"], [utility(row) for row in full["coalitions"]]]
    sets = [
        {
            "group": "p",
            "set_reward": reward,
            "n_tokens": 6,
            "utilities": table,
            "candidates": [{"span": [0, 2]}, {"span": None}],
        }
        for reward, table in zip((0.5, 0.25), tables, strict=True)
    ]
    request = v1.ShapleyRequest.model_validate(
        {
            "sets": sets,
            "utility": {"type": "table"},
            "tokens": {"other": "next"},
            "advantage": {"type": "centered"},
        }
    )
    expected = set_credit(batch_of(request, LIMITS).sets, options_of(request, LIMITS))
    assert np.concatenate([one["advantages"] for one in fields]).tobytes() == expected.advantages.tobytes()
    assert np.concatenate([one["token_advantages"] for one in fields]).tobytes() == expected.token_advantages.tobytes()
    assert [one["set_advantage"] for one in fields] == expected.set_advantages.tolist()
    assert [one["set_reward_advantage"] for one in fields] == expected.set_reward_advantages.tolist()


# What is wrong


@pytest.mark.parametrize(
    ("item", "code", "pointer", "detail"),
    [
        (
            {"coalitions": [[], [0]], "utilities": [0.0, NAN]},
            "non_finite_utility",
            "/items/1/utilities/1",
            "utility of players [0] is NaN; expected a finite number of magnitude at most 1e+100",
        ),
        (
            {"coalitions": [[]], "utilities": [-INF]},
            "non_finite_utility",
            "/items/1/utilities/0",
            "utility of players [] is -Infinity; expected a finite number of magnitude at most 1e+100",
        ),
        (
            {"coalitions": [[0, 1, 2]], "utilities": [1e101]},
            "invalid_request",
            "/items/1/utilities/0",
            "utility of players [0, 1, 2] is 1e+101; expected a finite number of magnitude at most 1e+100",
        ),
        (
            {"coalitions": [[0], [0]], "utilities": [1.0, 2.0]},
            "invalid_request",
            "/items/1/coalitions",
            "coalition [0] has two utilities: got 2.0, was told 1.0",
        ),
        (
            {"coalitions": [[0], [3]], "utilities": [1.0, 2.0]},
            "invalid_request",
            "/items/1/coalitions/1",
            "player 3 is not one of 0 … 2",
        ),
        (
            {"coalitions": [[0]], "utilities": []},
            "shape_mismatch",
            "/items/1/utilities",
            "got 0 utilities; expected 1, one per coalition",
        ),
        (
            {"player_ids": ["a", "b"]},
            "invalid_request",
            "/items/1/player_ids",
            "expected 3 different names, one per player",
        ),
        (
            {"player_ids": ["a", "b", "a"]},
            "invalid_request",
            "/items/1/player_ids",
            "expected 3 different names, one per player",
        ),
        ({"set_reward": NAN}, "non_finite_value", "/items/1/set_reward", None),
    ],
)
def test_an_item_that_is_wrong_fails_alone(item, code, pointer, detail):
    """With its code, its place and one sentence, in the first round; the items around it are solved as without it."""
    items = [{"n_players": 4}, {"n_players": 3, **item}, {"n_players": 2}]
    answer = answered(items)
    assert errors_of(answer) == [(1, code, pointer)]
    assert detail in (None, answer.errors[0].detail)
    at_pointer({"items": items}, pointer)
    last = conversation(items)
    assert errors_of(last) == [(1, code, pointer)]
    for row, n in ((0, 4), (2, 2)):
        assert last.items[row].credits.credits.tobytes() == direct(n, Shapley()).credits.tobytes()
        assert not np.isnan(solve_item(last.items[row], last, row)["advantages"]).any()


@pytest.mark.parametrize(
    ("item", "options", "code", "pointer"),
    [
        ({"n_tokens": 5}, {"tokens": {}}, "invalid_request", "/items/0/spans"),
        ({"spans": [None, None]}, {"tokens": {}}, "invalid_request", "/items/0/n_tokens"),
        ({"n_tokens": 5, "spans": [None]}, {"tokens": {}}, "shape_mismatch", "/items/0/spans"),
        ({"n_tokens": 5, "spans": [[0, 3], [2, 4]]}, {"tokens": {}}, "shape_mismatch", "/items/0/spans/1"),
        ({"n_tokens": -5, "spans": [None, None]}, {"tokens": {}}, "shape_mismatch", "/items/0/n_tokens"),
        ({}, {"expect": {"group_size": 2}}, "group_size_mismatch", "/items/0/group"),
        ({}, {"expect": {"candidates": 3}}, "shape_mismatch", "/items/0/n_players"),
    ],
)
def test_what_has_nothing_to_do_with_utilities_is_said_before_any_is_evaluated(item, options, code, pointer):
    """Spans, counts and expectations are checked in the first round: a caller's evaluations are not thrown away."""
    answer = answered([{"n_players": 2, **item}], **options)
    assert errors_of(answer) == [(0, code, pointer)]


def test_a_group_that_lost_an_item_fails_early_or_is_flagged():
    """`incomplete_group` is applied in the first round, too."""
    items = [{"n_players": 2, "group": "p"}, {"n_players": 2, "group": "p", "set_reward": NAN}]
    assert [e[1] for e in errors_of(answered(items, incomplete_group="error"))] == [
        "group_incomplete",
        "non_finite_value",
    ]
    answer = conversation(items)
    assert "group_incomplete" in solve_item(answer.items[0], answer, 0)["flags"]


@pytest.mark.parametrize(
    ("item", "options", "sentence"),
    [
        ({"n_players": 20}, {"estimator": {"budget": 5}}, "the budget is too small for 20 players: got 5"),
        ({"n_players": 20}, {"estimator": {"type": "exact", "budget": 2**19}}, "more than 65536 evaluations"),
        ({"n_players": 9}, {"estimator": {"type": "exact", "budget": 511}}, "got 511, expected 512 or more"),
        ({"n_players": 64}, {"estimator": {"budget": 2**31}}, "more than 65536 evaluations of 64 players"),
        ({"n_players": 64}, {"estimator": {"type": "permutations", "budget": 2**31}}, "more than 65536 evaluations"),
        ({"n_players": 40}, {"estimator": {"type": "exact", "budget": 2**31}}, "more than 65536 evaluations"),
        ({"n_players": 4096}, {"estimator": {"budget": 2**31}}, "more than 2048 evaluations of 4096 players"),
        (
            {"n_players": 4096},
            {"estimator": {"budget": 2**31}, "credit": {"type": "max_at_k", "k": 3}},
            "more than 2048 evaluations of 4096 players",
        ),
    ],
)
def test_budgets_that_cannot_be_are_refused(item, options, sentence):
    """Too small for the rule, or larger than the service allows: nothing of that size is ever made."""
    answer = answered([item, {"n_players": 1}], **{**options, "credit": options.get("credit", {"type": "shapley"})})
    assert errors_of(answer)[0] == (0, "budget_exceeded", "/items/0/n_players")
    assert sentence in answer.errors[0].detail


def test_a_budget_above_what_a_rule_needs_is_no_cost():
    """Rules by definition, and games with few coalitions, take any budget."""
    options = {"estimator": {"budget": 2**31}}
    assert conversation([{"n_players": 200}], credit={"type": "set_reward"}, **options).items[0].planned == 2
    assert conversation([{"n_players": 9}], **options).items[0].planned == 512


def test_more_coalitions_than_fit_are_refused():
    """What is known of one item is bounded before it is laid out."""
    n = 4096
    too_many = MAX_CELLS // n + 1
    item = {"n_players": n, "coalitions": [[]] * too_many, "utilities": [0.0] * too_many}
    answer = answered([item], credit={"type": "set_reward"})
    assert errors_of(answer) == [(0, "budget_exceeded", "/items/0/coalitions")]


def test_one_answer_asks_for_a_bounded_number_of_coalitions():
    """Items that no longer fit into an answer stay open without coalitions, and their turn comes."""
    n = 32
    items = [{"n_players": n} for _ in range(8)]
    options = {"estimator": {"type": "stratified", "budget": 65_536}, "batch_size": 65_536}
    answer = answered(items, **options)
    sizes = [item.next.size for item in answer.items]
    assert sum(sizes) <= MAX_CELLS
    assert sizes[0] == 65_536 * n
    assert sizes[-1] == 0
    fields = solve_item(answer.items[-1], answer, 7)
    assert (fields["status"], fields["next"]) == ("open", [])


@pytest.mark.parametrize(
    "credit", [{"type": "owen"}, {"type": "blend", "from": "shapley", "to": "owen", "position": 0.5}]
)
def test_owen_has_no_plan(credit):
    """A rule about unions is refused for the whole request, where it stands."""
    with pytest.raises(WireError, match="owen has no plan") as refusal:
        answered([{"n_players": 2}], credit=credit)
    assert (refusal.value.code, refusal.value.items[0].pointer) == (ErrorCode.INVALID_REQUEST, "/credit")


def test_requests_that_are_too_large_are_refused():
    """Rows, tokens and groups are checked for the request."""
    small = RequestLimits(sets=1, token_advantages=10)
    for body, pointer in (
        ({"items": [{"n_players": 1}] * 2}, ""),
        ({"items": [{"n_players": 1, "n_tokens": 11, "spans": [None]}], "tokens": {}}, "/tokens"),
    ):
        with pytest.raises(WireError) as refusal:
            solve_items(SolveRequest.model_validate(body), small)
        assert (refusal.value.code, refusal.value.items[0].pointer) == (ErrorCode.BUDGET_EXCEEDED, pointer)
    with pytest.raises(WireError) as refusal:
        answered([{"n_players": 1, "group": "p"}, {"n_players": 1}])
    assert refusal.value.items[0].pointer == "/items/1/group"


def test_a_deadline_is_looked_at_before_each_item():
    """What the check point raises ends the computation."""
    calls = []

    def checkpoint():
        calls.append(1)
        if len(calls) == 3:
            raise TimeoutError

    request = SolveRequest.model_validate({"items": [{"n_players": 2}] * 5})
    with pytest.raises(TimeoutError):
        solve_items(request, LIMITS, checkpoint)


def test_the_defaults_are_those_of_the_library():
    """A request without choices asks for what the library does by default."""
    request = SolveRequest.model_validate({"items": [{"n_players": 1}]})
    assert EstimatorOptions(**request.estimator.model_dump()) == EstimatorOptions()
    assert SetCreditOptions().rule == Shapley()
