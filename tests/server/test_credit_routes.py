import itertools

import pytest

from creditd.wire.groups import GroupRequest, GroupResponse
from creditd.wire.v1 import COLUMNS_EXAMPLE, SETS_EXAMPLE, TABLE_EXAMPLE, TOKENS_EXAMPLE
from server.credit_calls import (
    NAN,
    PAIR,
    TABLE,
    TOKENS,
    answer,
    approx,
    in_all_forms,
    in_columns,
    of_reward,
    per_set,
    refusal,
)
from server.running import GROUP, SHAPLEY, WORKED_REWARDS, columnar, nested, on_service, post, ragged, rows_of

SHAPLEY_CREDITS = [
    # φ_(k) = Σ_{j ≤ k} (r_(j) − r_(j−1))/(K − j + 1), by hand
    [0.1 / 4 + 0.4 / 3 + 0.4, 0.1 / 4 + 0.4 / 3, 0.1 / 4 + 0.4 / 3, 0.1 / 4],
    [0.05, 0.05, 0.05, 0.05],
    [1.0, 0.0, 0.0, 0.0],
    [0.3 / 4 + 0.1 / 3, 0.3 / 4, 0.3 / 4 + 0.1 / 3 + 0.2 / 2 + 0.2, 0.3 / 4 + 0.1 / 3 + 0.2 / 2],
]
# The worked group of the method: K = 4, ddof 1, `pooled`.
POOLED = [
    [1.4089806213, -0.0856286565, -0.0856286565, -0.5838317492],
    [-0.4904186693] * 4,
    [3.0592783657, -0.6772448290, -0.6772448290, -0.6772448290],
    [-0.2724548163, -0.3970055894, 0.8485021421, 0.1011975032],
]
POOLED_SETS = [0.1634728898, -0.4904186693, 0.2568859696, 0.0700598099]
POOLED_WITH_EPSILON = [
    [1.4088490164, -0.0856206585, -0.0856206585, -0.5837772167],
    [-0.4903728621] * 4,
    [3.0589926158, -0.6771815714, -0.6771815714, -0.6771815714],
]
LEFT_OUT = -0.3797772627
LEAVE_ONE_OUT = [
    [1.1393317880, LEFT_OUT, LEFT_OUT, LEFT_OUT],
    [LEFT_OUT] * 4,
    [3.4179953639, LEFT_OUT, LEFT_OUT, LEFT_OUT],
    [LEFT_OUT, LEFT_OUT, 0.3797772627, LEFT_OUT],
]
HALF_WAY_FIRST_ROW = [1.2881256566, -0.2338443500, -0.2338443500, -0.4875060177]


@pytest.mark.parametrize("form", [0, 1, 2], ids=["sets", "values", "rows"])
def test_the_worked_group_comes_back(form):
    """The worked group has its worked credits and advantages, with ε = 0 and with the default ε."""
    credits_, advantages, of_sets = per_set(
        answer(in_all_forms(WORKED_REWARDS, advantage={"type": "pooled", "epsilon": 0.0})[form])
    )
    assert credits_ == [approx(row) for row in SHAPLEY_CREDITS]
    assert advantages == [approx(row) for row in POOLED]
    assert of_sets == approx(POOLED_SETS)
    _, advantages, _ = per_set(answer(in_all_forms(WORKED_REWARDS)[form]))
    assert advantages[:3] == [approx(row) for row in POOLED_WITH_EPSILON]


@pytest.mark.parametrize("form", [0, 1], ids=["sets", "values"])
def test_rules_of_the_worked_group(form):
    """Leave-one-out and the middle of the way to it have their worked advantages."""
    exact = {"type": "pooled", "epsilon": 0.0}
    body = in_all_forms(WORKED_REWARDS, credit={"type": "leave_one_out"}, advantage=exact)[form]
    assert per_set(answer(body))[1] == [approx(row) for row in LEAVE_ONE_OUT]
    blend = {"type": "blend", "from": "shapley", "to": {"type": "leave_one_out"}, "position": 0.5}
    body = in_all_forms(WORKED_REWARDS, credit=blend, advantage=exact)[form]
    assert per_set(answer(body))[1][0] == approx(HALF_WAY_FIRST_ROW)


@pytest.mark.parametrize("utility", [{"type": "max"}, {"type": "mean", "empty": 0.25}, {"type": "top_m", "m": 2}])
@pytest.mark.parametrize("kind", ["pooled", "batch_scaled", "centered", "response_preserving", "per_slot", "none"])
def test_all_forms_have_equal_bits(utility, kind):
    """A request answered set by set, from flat values and from rows has the same numbers to the last bit."""
    forms = in_all_forms(WORKED_REWARDS, utility=utility, advantage={"type": kind})
    first, second, third = (per_set(answer(body)) for body in forms)
    assert first == second == third


def test_optional_columns_have_the_bits_of_sets():
    """Tokens, set rewards, texts, ids and nulls mean the same in both forms, to the last bit."""
    sets = [
        {
            "id": row,
            "group": row // 2,
            "n_tokens": 9 + row,
            "set_reward": None if row == 2 else 0.125 * row,
            "candidates": [
                {"reward": None if (row, k) == (1, 2) else 0.3 * k - 0.1 * row, "span": [3 * k, 3 * k + 2], "text": t}
                for k, t in enumerate("aab" if row == 3 else "abc")
            ],
        }
        for row in range(4)
    ]
    sets[3]["candidates"][1]["reward"] = sets[3]["candidates"][0]["reward"]
    everyone = [candidate for one in sets for candidate in one["candidates"]]
    columns = {
        "rewards": ragged([[c["reward"] for c in one["candidates"]] for one in sets]),
        "groups": [one["group"] for one in sets],
        "ids": [one["id"] for one in sets],
        "n_tokens": [one["n_tokens"] for one in sets],
        "set_rewards": [one["set_reward"] for one in sets],
        "spans": {"starts": [c["span"][0] for c in everyone], "stops": [c["span"][1] for c in everyone]},
        "texts": [c["text"] for c in everyone],
    }
    options = {"tokens": {"other": "next", "length_norm": True}, "malformed": {"duplicates": "collapse"}}
    by_set, by_column = answer({"sets": sets, **options}), answer({"columns": columns, **options})["columns"]
    assert per_set(by_set) == per_set({"columns": by_column})
    assert [one["token_advantages"] for one in by_set["sets"]] == rows_of(by_column["token_advantages"])
    assert [one["set_reward_advantage"] for one in by_set["sets"]] == by_column["set_reward_advantages"]
    assert [one["id"] for one in by_set["sets"]] == by_column["ids"]
    for name, of_set in (("utility_empty",) * 2, ("utility_grand",) * 2, ("gap",) * 2, ("credit_sum",) * 2):
        assert [one[of_set] for one in by_set["sets"]] == by_column[name]
    names = [[n for bit, n in enumerate(by_column["flag_names"]) if mask >> bit & 1] for mask in by_column["flags"]]
    assert [one["flags"] for one in by_set["sets"]] == names


@pytest.mark.parametrize("example", [SETS_EXAMPLE, COLUMNS_EXAMPLE, TOKENS_EXAMPLE, TABLE_EXAMPLE])
def test_every_example_of_the_schema_is_answered(example):
    """Every published example gets a whole answer in the form in which it asks."""
    document = answer(example)
    assert document["request_id"]
    assert document["usage"]["evaluations"] == 0
    if "sets" in example:
        assert [one["status"] for one in document["sets"]] == ["ok"] * len(example["sets"])
    else:
        assert document["columns"]["status"] == [0, 0]
        assert document["errors"] == []


@pytest.mark.parametrize("example", GroupRequest.model_config["json_schema_extra"]["examples"])
def test_every_group_example_is_answered(example):
    """Every published example of whole responses gets a whole answer."""
    document = answer(example, GROUP, GroupResponse)
    rows = next(iter(example["rewards"].values())) if isinstance(example["rewards"], dict) else example["rewards"]
    assert document["status"] == [0] * len(rows)
    assert [len(row) for row in document["advantages"]] == [len(row) for row in rows]


# Malformed sets by policy


def test_an_empty_set_counts_with_the_failure_reward():
    """Nothing parsed is an answer: no candidates, a flag, and a set advantage from the failure reward."""
    sets = [of_reward(1.0, 0.0, group="p"), of_reward(0.25, 0.0, group="p"), {"group": "p", "candidates": []}]
    low, high = (answer({"sets": sets, "malformed": {"failure_reward": reward}})["sets"][2] for reward in (-1.0, 2.0))
    assert (low["credits"], low["advantages"], low["flags"]) == ([], [], ["no_candidates"])
    assert low["set_advantage"] < 0 < high["set_advantage"]


def test_unscored_candidates_do_not_play():
    """A null reward is no player: null credit, a flag, and the others' credits are those of the smaller set."""
    document = answer({"sets": [of_reward(0.9, None, 0.4), of_reward(0.9, 0.4)]})
    first, second = document["sets"]
    assert first["credits"] == [second["credits"][0], None, second["credits"][1]]
    assert first["advantages"][1] is None
    assert "candidate_unscored" in first["flags"]


def test_surplus_candidates_are_truncated_or_scored():
    """Beyond the K that the prompt asked for the surplus is left out with a flag, or scored when asked."""
    policy = {"malformed": {"candidates": 2}}
    document = answer({"sets": [of_reward(0.9, 0.4, 0.7), of_reward(0.9, 0.4)], **policy})
    first, second = document["sets"]
    assert first["credits"] == [*second["credits"], None]
    assert "candidate_truncated" in first["flags"]
    assert "candidate_truncated" not in second["flags"]
    policy["malformed"]["extra"] = "score_all"
    (whole,) = answer({"sets": [of_reward(0.9, 0.4, 0.7)], **policy})["sets"]
    assert None not in whole["credits"]


def test_an_expected_number_of_candidates_is_an_assertion():
    """Another number than `expect.candidates` is an error, surplus or lack; nothing is truncated in silence."""
    document = answer({"sets": [of_reward(0.9, 0.4, 0.7), of_reward(0.9, 0.4)], "expect": {"candidates": 2}})
    assert [item["status"] for item in document["sets"]] == ["error", "ok"]
    assert document["sets"][0]["error"]["code"] == "shape_mismatch"


def test_the_cause_of_an_incomplete_group_is_named_first():
    """When one bad set fails its whole group, the refusal names that set before those that only followed."""
    sets = [{**of_reward(0.5, 0.1), "group": "g"} for _ in range(19)] + [{**of_reward(0.5, 1e200), "group": "g"}]
    refused = post({"sets": sets, "incomplete_group": "error"})
    assert refused.json()["code"] == "invalid_request"
    assert refused.json()["errors"][0]["pointer"] == "/sets/19/candidates/1/reward"
    assert "/sets/19/candidates/1/reward" in refused.json()["detail"]


def test_collapsing_needs_texts():
    """Duplicates are recognised by their texts: without any, the policy is refused and not passed over."""
    refused = post({"sets": [of_reward(0.5, 0.5)], "malformed": {"duplicates": "collapse"}})
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/malformed/duplicates")


def test_two_candidates_with_one_id_fail_their_set():
    """Ids order the arithmetic on tables, so they have to differ within a set."""
    sets = [{"utilities": [0.0, 1.0, 1.0, 1.5], "candidates": [{"id": "a"}, {"id": name}]} for name in ("b", "a")]
    first, second = answer({"sets": sets, "utility": {"type": "table"}})["sets"]
    assert (first["status"], second["error"]["pointer"]) == ("ok", "/sets/1/candidates/1/id")


def test_duplicates_are_kept_or_collapsed():
    """Copies share by symmetry, or all but the first have credit 0 exactly and the set is flagged."""
    sets = [{"candidates": [{"reward": 0.6, "text": "x"}, {"reward": 0.6, "text": "x"}, {"reward": 0.2, "text": "y"}]}]
    (kept,) = answer({"sets": sets})["sets"]
    (collapsed,) = answer({"sets": sets, "malformed": {"duplicates": "collapse"}})["sets"]
    assert kept["credits"][0] == kept["credits"][1]
    assert collapsed["credits"] == approx([0.5, 0.0, 0.1])
    assert collapsed["credits"][1] == 0.0
    assert "duplicates_collapsed" in collapsed["flags"]
    assert "duplicates_collapsed" not in kept["flags"]


# Tokens


def test_tokens_take_the_advantage_of_what_they_belong_to():
    """Tokens of a candidate take its advantage; the others what `other` says."""
    sets = [{**PAIR, "group": "p"}, {**of_reward(0.25, 0.5), "group": "p"}]
    for other in ("set", "zero", "next"):
        first = answer({"sets": sets, "tokens": {"other": other}})["sets"][0]
        one, two = first["advantages"]
        rest = first["set_advantage"] if other != "zero" else 0.0
        between = two if other == "next" else rest
        assert first["token_advantages"] == [one] * 3 + [between] + [two] * 4 + [rest] * 2


def test_set_reward_reaches_every_token_with_its_weight():
    """`set_reward` has its own GRPO advantage, which tokens carry on top with the weight asked for."""
    sets = [{**PAIR, "group": "p", "set_reward": reward} for reward in (1.0, 0.5, 0.0)]
    plain = answer({"sets": [{k: v for k, v in one.items() if k != "set_reward"} for one in sets], "tokens": {}})
    for weight in (1.0, -0.5, 0.0):
        document = answer({"sets": sets, "tokens": {"set_reward_weight": weight}})
        # r = (1, ½, 0): mean ½, standard deviation ½ with ddof 1
        assert [one["set_reward_advantage"] for one in document["sets"]] == approx([1 / 1.0002, 0.0, -1 / 1.0002])
        for one, bare in zip(document["sets"], plain["sets"], strict=True):
            on_top = weight * one["set_reward_advantage"]
            assert one["token_advantages"] == pytest.approx([value + on_top for value in bare["token_advantages"]])


def test_no_tokens_asked_none_given():
    """Without `tokens` there are no token advantages, whatever spans are sent."""
    document = answer({"sets": [PAIR]})
    assert document["sets"][0]["token_advantages"] is None
    assert answer({"columns": in_columns([PAIR], flat=True)})["columns"]["token_advantages"] is None


def test_candidates_without_tokens_may_have_null_spans():
    """A null span is a candidate without tokens; its advantage reaches none."""
    one = {"n_tokens": 3, "candidates": [{"reward": 1.0, "span": None}, {"reward": 0.0, "span": [1, 2]}]}
    (result,) = answer({"sets": [one], "tokens": {"other": "zero"}})["sets"]
    assert result["token_advantages"] == [0.0, result["advantages"][1], 0.0]


# The request as a whole


@pytest.mark.parametrize("body", [SETS_EXAMPLE, COLUMNS_EXAMPLE])
def test_a_dry_run_computes_nothing(body):
    """A dry run answers what it would cost and no credit."""
    document = answer({**body, "dry_run": True})
    assert document.get("sets") is None
    assert document.get("columns") is None
    assert set(document["usage"]) == {
        "evaluations",
        "from_cache",
        "tokens_computed",
        "tokens_naive",
        "tokens_spliced",
        "engine_s",
        "queue_s",
    }


def test_ids_come_back():
    """Sets carry the ids that they came with, strings and numbers alike, failed or not."""
    sets = [of_reward(0.5, id="a"), of_reward(NAN, id=7), of_reward(0.5)]
    assert [one["id"] for one in answer({"sets": sets})["sets"]] == ["a", 7, None]
    assert answer({"columns": {"rewards": [[0.5], [0.5]], "ids": ["a", 2**60]}})["columns"]["ids"] == ["a", 2**60]


@pytest.mark.parametrize("number", [2**64, 10**30])
def test_a_number_of_any_size_is_answered_as_an_id_or_refused(number):
    """An id of more than 64 bits comes back or is named as the caller's mistake; it is no failure of the service."""
    for body in ({"sets": [of_reward(0.5, id=number)]}, {"columns": {"rewards": [[0.5]], "ids": [number]}}):
        response = post(body)
        assert response.status_code in {200, 422}


def test_sets_without_a_group_stand_alone():
    """Without groups each set is its own group."""
    document = answer({"sets": [of_reward(0.5, 0.0), of_reward(0.9, 0.0)]})
    assert ["single_response" in one["flags"] for one in document["sets"]] == [True, True]


def test_some_sets_with_a_group_are_refused():
    """A group on some sets only is a mistake of the request, named at the first set without one."""
    document = refusal({"sets": [of_reward(0.5, group="p"), of_reward(0.5), of_reward(0.5)]})
    assert document["code"] == "invalid_request"
    assert document["errors"][0]["pointer"] == "/sets/1/group"


TWO = {"rewards": [[0.5, 0.25], [1.0]]}
WRONG_COLUMNS = {
    "groups": ({**TWO, "groups": ["a"]}, "shape_mismatch", "/columns/groups"),
    "ids": ({**TWO, "ids": [1, 2, 3]}, "shape_mismatch", "/columns/ids"),
    "n_tokens": ({**TWO, "n_tokens": [1]}, "shape_mismatch", "/columns/n_tokens"),
    "set_rewards": ({**TWO, "set_rewards": []}, "shape_mismatch", "/columns/set_rewards"),
    "texts": ({**TWO, "texts": ["a", "b"]}, "shape_mismatch", "/columns/texts"),
    "candidate_ids": ({**TWO, "candidate_ids": [1, 2, 3, 4]}, "shape_mismatch", "/columns/candidate_ids"),
    "starts": ({**TWO, "spans": {"starts": [0], "stops": [1, 2, 3]}}, "shape_mismatch", "/columns/spans/starts"),
    "stops": ({**TWO, "spans": {"starts": [0, 1, 2], "stops": [1]}}, "shape_mismatch", "/columns/spans/stops"),
    "utilities not asked": ({**TWO, "utilities": [[0.0], [0.0]]}, "invalid_request", "/columns/utilities"),
    "no set": ({"rewards": []}, "invalid_request", "/columns/rewards"),
    "no rewards": ({"groups": ["a"]}, "invalid_request", "/columns/rewards"),
    "no row": ({"rewards": {"values": [], "row_splits": [0]}}, "invalid_request", "/columns/rewards"),
}


@pytest.mark.parametrize("case", WRONG_COLUMNS)
def test_columns_that_do_not_fit_are_refused(case):
    """A column of another length than the rewards ask for fails the request and is named."""
    columns, code, pointer = WRONG_COLUMNS[case]
    document = refusal({"columns": columns})
    assert document["code"] == code
    assert [item["pointer"] for item in document["errors"]] == [pointer]


@pytest.mark.parametrize(
    "splits", [[], [0], [0, 2], [1, 3], [0, 2, 4], [0, 2, 1, 3], [0, -1, 3], [0, 2**40, 3], [-(2**62), 2**62, 3]]
)
@pytest.mark.parametrize("column", ["rewards", "utilities"])
def test_row_splits_that_lie_are_refused(splits, column):
    """Row splits that do not rise from 0 to the number of values fail the request."""
    lie = {"values": [0.0, 0.5, 0.25], "row_splits": splits}
    columns = {"rewards": lie} if column == "rewards" else {"rewards": [[0.5], [0.5]], "utilities": lie}
    options = {} if column == "rewards" else {"utility": {"type": "table"}}
    document = refusal({"columns": columns, **options})
    assert document["code"] == "shape_mismatch"
    assert document["errors"][0]["pointer"] == f"/columns/{column}/row_splits"


def test_a_table_for_each_set_is_needed():
    """As many tables as sets, and the column itself, are needed by the table utility."""
    assert refusal({"columns": TWO, **TABLE})["errors"][0]["pointer"] == "/columns/utilities"
    document = refusal({"columns": {**TWO, "utilities": [[0.0, 1.0]]}, **TABLE})
    assert (document["code"], document["errors"][0]["pointer"]) == ("shape_mismatch", "/columns/utilities")


@pytest.mark.parametrize("form", [ragged, list], ids=["values", "rows"])
def test_tables_tell_how_many_candidates_there_are(form):
    """A table of 2^K values needs no rewards beside it; its credits are those of the nested form, to the last bit."""
    tables = [[0.0, 0.3, 0.5, 1.0], [0.25], [0.0, -1.0], [0.0, 1.0, 1.0, 1.0, 0.5, 1.0, 1.0, 2.0]]
    sizes = [2, 0, 1, 3]
    sets = [{"utilities": table, "candidates": [{}] * size} for table, size in zip(tables, sizes, strict=True)]
    by_set = answer({"sets": sets, **TABLE})
    by_column = answer({"columns": {"utilities": form(tables)}, **TABLE})
    assert per_set(by_column) == per_set(by_set)
    assert [len(row) for row in per_set(by_column)[0]] == sizes
    assert by_column["columns"]["method"] == "table"


@pytest.mark.parametrize("length", [0, 3, 5, 1000])
@pytest.mark.parametrize("form", [ragged, list], ids=["values", "rows"])
def test_a_table_that_is_no_power_of_two_fails_alone(form, length):
    """Without rewards a table of another length than 2^K fails its row and no other."""
    body = {"columns": {"utilities": form([[0.0, 1.0], [0.0] * length, [0.0, 2.0]])}, **TABLE}
    document = answer(body)
    assert document["columns"]["status"] == [0, 1, 0]
    assert document["errors"][0]["code"] == "shape_mismatch"
    assert [row for n, row in enumerate(per_set(document)[0]) if n != 1] == [[1.0], [2.0]]


def test_a_table_of_too_many_candidates_is_named_where_it_stands():
    """Without rewards the offence is pointed out in the tables."""
    tables = [[0.0, 1.0], [0.0] * 8192]
    for form, pointer in ((list, "/columns/utilities/1"), (ragged, "/columns/utilities/row_splits/2")):
        (error,) = answer({"columns": {"utilities": form(tables)}, **TABLE})["errors"]
        assert (error["code"], error["pointer"]) == ("too_many_players", pointer)


@pytest.mark.parametrize("column", ["spans", "n_tokens"])
def test_tokens_need_their_columns(column):
    """Token advantages without spans or token counts are refused as a whole."""
    columns = {name: value for name, value in in_columns([PAIR], flat=True).items() if name != column}
    document = refusal({"columns": columns, **TOKENS})
    assert (document["code"], document["errors"][0]["pointer"]) == ("invalid_request", f"/columns/{column}")


@pytest.mark.parametrize("flat", [True, False], ids=["columns", "sets"])
def test_more_tokens_than_the_limit_are_refused(flat):
    """The token advantages of a request are counted, and refused with the limit in the message, before any exists."""
    sets = [PAIR] * 3
    body = {"columns": in_columns(sets, flat=True)} if flat else {"sets": sets}
    assert answer({**body, **TOKENS}, max_token_advantages=30)
    document = refusal({**body, **TOKENS}, max_token_advantages=29)
    assert document["code"] == "budget_exceeded"
    assert "29" in document["detail"]
    assert answer(body, max_token_advantages=29)


def test_a_token_count_out_of_range_costs_its_set_only():
    """A set whose token count no completion can have fails alone, however large the count is."""
    body = {"sets": [PAIR, {**PAIR, "n_tokens": 2**62}], **TOKENS}
    document = answer(body)
    assert document["sets"][1]["error"]["pointer"] == "/sets/1/n_tokens"


def test_the_settings_bound_the_sets():
    """The limits on candidates are those of the settings."""
    assert refusal(nested([[0.5] * 5]), max_candidates=4)["code"] == "too_many_players"
    three = {"sets": [{"utilities": [0.0] * 8, "candidates": [{}, {}, {}]}], **TABLE}
    assert refusal(three, max_table_candidates=2)["code"] == "too_many_players"
    assert answer(three, max_table_candidates=3)


LARGEST = 1e100
"""The largest magnitude of a number in reward units that the wire takes."""
EXTREMES = [
    [[LARGEST, -LARGEST, LARGEST, 0.0], [-LARGEST] * 4, [LARGEST, -LARGEST, -LARGEST, 5e-324]],
    [[LARGEST] * 4, [LARGEST] * 4, [LARGEST, LARGEST, LARGEST, -LARGEST]],
    [[0.0, -LARGEST, -1.0, -1.0], [5e-324, -LARGEST, -1.0, -1.0]],
]
UTILITIES = [
    {"type": "max", "empty": -LARGEST},
    {"type": "max", "floor": LARGEST},
    {"type": "sum", "empty": -LARGEST},
    {"type": "mean", "empty": LARGEST},
    {"type": "top_m", "m": 1_000_000, "empty": LARGEST},
    {"type": "rth_best", "r": 2, "default": -LARGEST},
]
RULES = [
    {"type": "shapley"},
    {"type": "prefix_gain"},
    {"type": "max_at_k", "k": 2},
    {"type": "mixture", "weights": [1e6, -1e6, 1e6, 1e6]},
]


@pytest.mark.parametrize("kind", ["pooled", "batch_scaled", "centered", "response_preserving", "per_slot", "none"])
def test_sound_sets_have_finite_numbers(kind):
    """At the largest numbers, the smallest contrasts and ε = 0, an answer holds no null and nothing overflows."""

    async def ask(service):
        for rewards, utility, rule in itertools.product(EXTREMES, UTILITIES, RULES):
            body = columnar(rewards, utility=utility, credit=rule, advantage={"type": kind, "epsilon": 0.0})
            response = await service.post(body)
            assert response.status_code == 200
            columns = response.json()["columns"]
            numbers = [*columns["credits"]["values"], *columns["advantages"]["values"], *columns["set_advantages"]]
            assert None not in [*numbers, *columns["utility_grand"], *columns["credit_sum"], *columns["gap"]]

    on_service(ask)


@pytest.mark.parametrize("number", [1.1e100, -1e308])
def test_a_number_beyond_the_largest_costs_its_set(number):
    """A reward that the arithmetic cannot square fails its set, and a choice beyond the largest the request."""
    document = answer({"sets": [PAIR, of_reward(number), of_reward(0.5, set_reward=number)]})
    assert [one["status"] for one in document["sets"]] == ["ok", "error", "error"]
    assert document["sets"][1]["error"]["pointer"] == "/sets/1/candidates/0/reward"
    assert document["sets"][2]["error"]["pointer"] == "/sets/2/set_reward"
    document = answer({"rewards": [[number, 0.0], [1.0, 0.0]]}, GROUP, GroupResponse)
    assert (document["status"], document["errors"][0]["pointer"]) == ([1, 0], "/rewards/0/0")
    refused = refusal({"sets": [PAIR], "utility": {"type": "max", "empty": number}})
    assert refused["errors"][0]["pointer"] == "/utility/empty"


def test_the_same_request_has_the_same_answer():
    """But for its id and the time it waited, an answer is a function of the request."""
    first, second = (post(nested()).json() for _ in range(2))
    for document in (first, second):
        document.pop("request_id")
        document["usage"].pop("queue_s")
    assert first == second


def test_the_limits_on_sets_and_on_tokens_of_a_set_are_settings():
    """More sets than the setting refuse the request, more tokens than the setting fail their set."""
    few = {"max_sets": 2, "max_tokens_per_set": 3}
    for path, body in ((SHAPLEY, {"columns": {"rewards": [[1.0]] * 3}}), (GROUP, {"rewards": [[1.0]] * 3})):
        refused = post(body, path=path, **few)
        assert (refused.status_code, refused.json()["code"]) == (422, "budget_exceeded")
    long = {"n_tokens": 4, "candidates": [{"reward": 1.0, "span": None}]}
    short = {"n_tokens": 3, "candidates": [{"reward": 1.0, "span": None}]}
    answer = post({"sets": [long, short], "tokens": {}}, **few).json()
    assert [item["status"] for item in answer["sets"]] == ["error", "ok"]
    assert answer["sets"][0]["error"]["pointer"] == "/sets/0/n_tokens"


def test_ids_of_candidates_matter_for_tables_only():
    """Where no table is solved, ids order nothing, so equal ones are no error in either form."""
    of_sets = {"sets": [{"candidates": [{"reward": 1.0, "id": "a"}, {"reward": 0.5, "id": "a"}]}]}
    of_columns = {"columns": {"rewards": [[1.0, 0.5]], "candidate_ids": ["a", "a"]}}
    assert [post(body).status_code for body in (of_sets, of_columns)] == [200, 200]
