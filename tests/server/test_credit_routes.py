import itertools
import json
import math

import pytest

from creditd.wire.errors import ErrorCode, Problem
from creditd.wire.v1 import (
    COLUMNS_EXAMPLE,
    SETS_EXAMPLE,
    TABLE_EXAMPLE,
    TOKENS_EXAMPLE,
    GroupRequest,
    GroupResponse,
    ShapleyResponse,
)
from server.running import GROUP, SHAPLEY, WORKED_REWARDS, columnar, nested, on_service, post, ragged, rows_of

WORKED = 1e-9
"""Worked values are written with ten digits after the point."""

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

PAIR = {"n_tokens": 10, "candidates": [{"reward": 1.0, "span": [0, 3]}, {"reward": 0.5, "span": [4, 8]}]}
TABLE_PAIR = {"utilities": [0.0, 0.3, 0.5, 1.0], "candidates": [{}, {}]}


def approx(values):
    """Equal to the worked values' last digit."""
    return pytest.approx(values, rel=0, abs=WORKED)


def answer(body, path="/v1/credit/shapley", model=ShapleyResponse, **settings):
    """A 200 that fits its model, as plain JSON."""
    response = post(body, path, **settings)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    model.model_validate_json(response.content)
    return response.json()


def refusal(body, path="/v1/credit/shapley", **settings):
    """A 422 that is a problem document, as plain JSON."""
    response = post(body, path, **settings)
    assert response.status_code == 422, response.text
    assert response.headers["content-type"] == "application/problem+json"
    Problem.model_validate_json(response.content)
    return response.json()


def in_all_forms(rewards, **options):
    """One request set by set, as flat values, and as rows."""
    rows = columnar(rewards, **options)
    rows["columns"]["rewards"] = rewards
    return nested(rewards, **options), columnar(rewards, **options), rows


def per_set(document):
    """Credits, advantages and set advantages of an answer in either form."""
    if document.get("sets"):
        sets = document["sets"]
        return (
            [one["credits"] for one in sets],
            [one["advantages"] for one in sets],
            [one["set_advantage"] for one in sets],
        )
    columns = document["columns"]
    return rows_of(columns["credits"]), rows_of(columns["advantages"]), columns["set_advantages"]


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


# One bad number among 512 sets

BAD_ROW, BAD_PLACE, ASKED, GROUP_SIZE = 137, 2, 512, 8
MARK = "12345.5"


def many_rewards():
    """512 sets of four rewards; one of them is a mark."""
    rewards = [[math.sin(7 * row + k) for k in range(4)] for row in range(ASKED)]
    rewards[BAD_ROW][BAD_PLACE] = float(MARK)
    return rewards


def many_bodies():
    """The 512 sets set by set, as flat values, and as rows; eight of each prompt."""
    rewards = many_rewards()
    groups = [row // GROUP_SIZE for row in range(ASKED)]
    yield {"sets": [{"group": g, "candidates": [{"reward": r} for r in row]} for g, row in zip(groups, rewards)]}  # noqa: B905  # one length
    yield {"columns": {"rewards": ragged(rewards), "groups": groups}}
    yield {"columns": {"rewards": rewards, "groups": groups}}


POINTERS = (
    f"/sets/{BAD_ROW}/candidates/{BAD_PLACE}/reward",
    f"/columns/rewards/values/{4 * BAD_ROW + BAD_PLACE}",
    f"/columns/rewards/{BAD_ROW}/{BAD_PLACE}",
)


@pytest.mark.parametrize(("literal", "name"), [("NaN", "NaN"), ("-Infinity", "-Infinity"), ("1e400", "Infinity")])
@pytest.mark.parametrize("form", [0, 1, 2], ids=["sets", "values", "rows"])
def test_one_bad_number_costs_one_set_of_512(form, literal, name):
    """511 sets are answered, the bad one is named by pointer, and the seven that share its prompt are flagged."""
    body = list(many_bodies())[form]
    document = answer(json.dumps(body).replace(MARK, literal))
    if form == 0:
        errors = [one["error"] for one in document["sets"] if one["status"] == "error"]
        flags = [one.get("flags") for one in document["sets"]]
        assert document["sets"][BAD_ROW]["status"] == "error"
        assert "credits" not in document["sets"][BAD_ROW]
    else:
        columns, errors = document["columns"], document["errors"]
        assert [row for row, status in enumerate(columns["status"]) if status] == [BAD_ROW]
        assert errors[0].pop("row") == BAD_ROW
        assert rows_of(columns["credits"])[BAD_ROW] == [None] * 4
        assert rows_of(columns["advantages"])[BAD_ROW] == [None] * 4
        assert columns["set_advantages"][BAD_ROW] is None
        incomplete = 1 << columns["flag_names"].index("group_incomplete")
        flags = [["group_incomplete"] if mask & incomplete else [] for mask in columns["flags"]]
        flags[BAD_ROW] = None
    assert errors[0].pop("detail").startswith(f"reward is {name}; expected a finite number")
    assert errors == [{"code": "non_finite_value", "pointer": POINTERS[form], "retryable": False}]
    neighbours = set(range(BAD_ROW - BAD_ROW % GROUP_SIZE, BAD_ROW - BAD_ROW % GROUP_SIZE + GROUP_SIZE)) - {BAD_ROW}
    assert {row for row, names in enumerate(flags) if names and "group_incomplete" in names} == neighbours


def test_a_bad_number_does_not_change_the_credits_of_others():
    """The other 511 sets have the credits, to the last bit, that they have without the bad number."""
    body = next(many_bodies())
    sound = per_set(answer(body))[0]
    document = answer(json.dumps(body).replace(MARK, "NaN"))
    assert [one.get("credits") for one in document["sets"]] == [
        None if row == BAD_ROW else expected for row, expected in enumerate(sound)
    ]


@pytest.mark.parametrize("form", [0, 1, 2], ids=["sets", "values", "rows"])
def test_a_request_without_one_sound_set_is_refused(form):
    """When no set can be answered the response is 422 with the first ten failures."""
    rewards = [[float("nan"), 0.0]] * 25
    document = refusal(in_all_forms(rewards)[form])
    assert document["code"] == "non_finite_value"
    assert len(document["errors"]) == 10
    assert (
        document["errors"][3]["pointer"]
        == (("/sets/3/candidates/0/reward", "/columns/rewards/values/6", "/columns/rewards/3/0")[form])
    )
    assert document["detail"].startswith("no set could be answered; the first: ")


# What fails one set


def of_reward(*rewards, **more):
    """A set of plain rewards with spans of one token."""
    candidates = [{"reward": r, "span": [k, k + 1]} for k, r in enumerate(rewards)]
    return {"n_tokens": 10, "candidates": candidates, **more}


def spanned(*spans, n_tokens=10):
    """A set whose candidates have these spans."""
    return {"n_tokens": n_tokens, "candidates": [{"reward": 0.5, "span": list(span)} for span in spans]}


TOKENS = {"tokens": {}}
TABLE = {"utility": {"type": "table"}}
NAN = float("nan")
BAD_SETS = {
    "reward missing": (PAIR, {"candidates": [{"reward": 1.0}, {}]}, {}, "invalid_request", "candidates/1/reward"),
    "span missing": (
        PAIR,
        {"n_tokens": 5, "candidates": [{"reward": 1.0}]},
        TOKENS,
        "invalid_request",
        "candidates/0/span",
    ),
    "n_tokens missing": (
        PAIR,
        {"candidates": [{"reward": 1.0, "span": [0, 1]}]},
        TOKENS,
        "invalid_request",
        "n_tokens",
    ),
    "n_tokens negative": (PAIR, spanned(n_tokens=-1), TOKENS, "shape_mismatch", "n_tokens"),
    "n_tokens beyond the limit": (PAIR, spanned((0, 1), n_tokens=131_073), TOKENS, "shape_mismatch", "n_tokens"),
    "span beyond the end": (PAIR, spanned((0, 1), (9, 11)), TOKENS, "shape_mismatch", "candidates/1/span"),
    "span reversed": (PAIR, spanned((3, 2)), TOKENS, "shape_mismatch", "candidates/0/span"),
    "span negative": (PAIR, spanned((-1, 2)), TOKENS, "shape_mismatch", "candidates/0/span"),
    "spans overlap": (PAIR, spanned((0, 4), (3, 6)), TOKENS, "shape_mismatch", "candidates/1/span"),
    "table too short": (
        TABLE_PAIR,
        {"utilities": [0.0, 1.0], "candidates": [{}, {}]},
        TABLE,
        "shape_mismatch",
        "utilities",
    ),
    "table missing": (TABLE_PAIR, {"candidates": [{}, {}]}, TABLE, "invalid_request", "utilities"),
    "table not finite": (
        TABLE_PAIR,
        {"utilities": [0.0, NAN], "candidates": [{}]},
        TABLE,
        "non_finite_value",
        "utilities/1",
    ),
    "table not asked": (PAIR, {**of_reward(0.5), "utilities": [0.0, 1.0]}, {}, "invalid_request", "utilities"),
    "257 candidates": (PAIR, of_reward(*[0.5] * 257), {}, "too_many_players", "candidates"),
    "table of 13": (
        TABLE_PAIR,
        {"utilities": [0.0] * 8192, "candidates": [{}] * 13},
        TABLE,
        "too_many_players",
        "candidates",
    ),
    "mixture too long": (
        PAIR,
        of_reward(0.5),
        {"credit": {"type": "mixture", "weights": [1, 0.5]}},
        "shape_mismatch",
        "candidates",
    ),
    "expected candidates": (PAIR, of_reward(0.5), {"expect": {"candidates": 2}}, "shape_mismatch", "candidates"),
    "set_reward not finite": (PAIR, of_reward(0.5, set_reward=NAN), {}, "non_finite_value", "set_reward"),
    "one text, two rewards": (
        PAIR,
        {"candidates": [{"reward": 0.0, "text": "x"}, {"reward": 1.0, "text": "x"}]},
        {"malformed": {"duplicates": "collapse"}},
        "invalid_request",
        "candidates/1/reward",
    ),
}


@pytest.mark.parametrize("case", BAD_SETS)
def test_a_bad_set_fails_alone(case):
    """Each failure that a set can have costs that set, with its code and its pointer, and no other."""
    sound, bad, options, code, place = BAD_SETS[case]
    document = answer({"sets": [sound, bad, sound], **options})
    assert [one["status"] for one in document["sets"]] == ["ok", "error", "ok"]
    error = document["sets"][1]["error"]
    assert (error["code"], error["pointer"], error["retryable"]) == (code, f"/sets/1/{place}", False)
    assert error["detail"]
    assert "flags" not in document["sets"][1]


@pytest.mark.parametrize("case", BAD_SETS)
def test_a_bad_set_alone_is_refused_with_the_same_code(case):
    """A request of one bad set is a 422 whose code and only entry are that set's."""
    _, bad, options, code, place = BAD_SETS[case]
    document = refusal({"sets": [bad], **options})
    assert document["code"] == code
    assert [(item["code"], item["pointer"]) for item in document["errors"]] == [(code, f"/sets/0/{place}")]


def in_columns(sets, *, flat):
    """Nested sets as columns, with the columns that the sets have."""
    everyone = [candidate for one in sets for candidate in one["candidates"]]
    form = ragged if flat else list
    columns = {"rewards": form([[c.get("reward") for c in one["candidates"]] for one in sets])}
    if all("n_tokens" in one for one in sets):
        columns["n_tokens"] = [one["n_tokens"] for one in sets]
        columns["spans"] = {"starts": [c["span"][0] for c in everyone], "stops": [c["span"][1] for c in everyone]}
    if any("utilities" in one for one in sets):
        columns["utilities"] = form([one["utilities"] for one in sets])
    if any("set_reward" in one for one in sets):
        columns["set_rewards"] = [one.get("set_reward") for one in sets]
    if any("text" in candidate for candidate in everyone):
        columns["texts"] = [candidate.get("text") for candidate in everyone]
    return columns


COLUMN_PLACES = {
    "n_tokens negative": ("/columns/n_tokens/1",) * 2,
    "n_tokens beyond the limit": ("/columns/n_tokens/1",) * 2,
    "span beyond the end": ("/columns/spans/starts/3",) * 2,
    "span reversed": ("/columns/spans/starts/2",) * 2,
    "span negative": ("/columns/spans/starts/2",) * 2,
    "spans overlap": ("/columns/spans/starts/3",) * 2,
    "table too short": ("/columns/utilities/row_splits/2", "/columns/utilities/1"),
    "table not finite": ("/columns/utilities/values/5", "/columns/utilities/1/1"),
    "257 candidates": ("/columns/rewards/row_splits/2", "/columns/rewards/1"),
    "table of 13": ("/columns/rewards/row_splits/2", "/columns/rewards/1"),
    "mixture too long": ("/columns/rewards/row_splits/2", "/columns/rewards/1"),
    "expected candidates": ("/columns/rewards/row_splits/2", "/columns/rewards/1"),
    "set_reward not finite": ("/columns/set_rewards/1",) * 2,
    "one text, two rewards": ("/columns/rewards/values/3", "/columns/rewards/1/1"),
}


def resolved(body, pointer):
    """The value that a JSON pointer names; KeyError, IndexError or TypeError if it names none."""
    value = body
    for part in pointer.split("/")[1:]:
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


@pytest.mark.parametrize(
    ("case", "flat"),
    [
        pytest.param(
            case,
            flat,
            id=f"{case}-{name}",
        )
        for case, (flat_place, _) in COLUMN_PLACES.items()
        for name, flat in (("values", True), ("rows", False))
    ],
)
def test_a_bad_row_fails_alone(case, flat):
    """Each failure of a row costs that row, with the code of the nested form and a pointer that names a value."""
    sound, bad, options, code, _ = BAD_SETS[case]
    body = {"columns": in_columns([sound, bad, sound], flat=flat), **options}
    document = answer(body)
    assert document["columns"]["status"] == [0, 1, 0]
    (error,) = document["errors"]
    assert (error["row"], error["code"]) == (1, code)
    resolved(body, error["pointer"])
    assert error["pointer"] == COLUMN_PLACES[case][not flat]


def test_a_group_of_another_size_fails():
    """Every set of a group that is not of the expected size fails; other groups are answered."""
    sets = [of_reward(0.5, group=group) for group in "aabccc"]
    document = answer({"sets": sets, "expect": {"group_size": 2}})
    assert [one["status"] for one in document["sets"]] == ["ok", "ok"] + 4 * ["error"]
    assert {one["error"]["code"] for one in document["sets"][2:]} == {"group_size_mismatch"}
    assert document["sets"][2]["error"]["pointer"] == "/sets/2/group"
    columns = {"rewards": [[0.5]] * 6, "groups": list("aabccc")}
    errors = answer({"columns": columns, "expect": {"group_size": 2}})["errors"]
    assert [(error["row"], error["pointer"]) for error in errors] == [
        (row, f"/columns/groups/{row}") for row in (2, 3, 4, 5)
    ]


def test_an_incomplete_group_can_be_an_error():
    """With `incomplete_group: error` a bad set takes its group with it and nothing else."""
    sets = [of_reward(NAN, group="a"), of_reward(0.5, group="a"), of_reward(0.5, group="b")]
    document = answer({"sets": sets, "incomplete_group": "error"})
    assert [one.get("error", {}).get("code") for one in document["sets"]] == [
        "non_finite_value",
        "group_incomplete",
        None,
    ]
    assert document["sets"][1]["error"]["pointer"] == "/sets/1/group"


def test_per_slot_needs_sets_of_one_size():
    """`per_slot` fails the groups whose sets differ in size."""
    sets = [of_reward(0.5, 0.25, group="a"), of_reward(0.5, group="a"), of_reward(0.5, group="b")]
    document = answer({"sets": sets, "advantage": {"type": "per_slot"}})
    assert [one.get("error", {}).get("code") for one in document["sets"]] == ["shape_mismatch", "shape_mismatch", None]


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


# Whole responses


def test_group_advantages_follow_their_formulas():
    """R = (1, ½, 0) has mean ½ and standard deviation ½ with ddof 1."""
    for kind, expected in (("grpo", 0.5 / 0.5), ("dr_grpo", 0.5), ("rloo", 0.75)):
        body = {"rewards": [[1.0, 0.5, 0.0]], "advantage": {"type": kind, "epsilon": 0.0}}
        document = answer(body, GROUP, GroupResponse)
        assert document["advantages"] == [approx([expected, 0.0, -expected])]
    body = {"rewards": [[1.0, 0.5, 0.0]], "advantage": {"ddof": 0, "epsilon": 0.0}}
    root = math.sqrt(1.5)
    assert answer(body, GROUP, GroupResponse)["advantages"] == [approx([root, 0.0, -root])]


def test_rules_of_draws_follow_their_formulas():
    """Eight responses, two right: pass@4 pays √(3/11) and −⅓ of it; max@3 of four pays ¾·(.9 − .4) to the best."""
    right = [[1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]
    (row,) = answer({"rewards": right, "advantage": {"type": "pass_at_k", "k": 4}}, GROUP, GroupResponse)["advantages"]
    assert row == [approx(math.sqrt(3 / 11))] * 2 + [approx(-math.sqrt(3 / 11) / 3)] * 6
    rewards = [[0.9, 0.4, 0.4, 0.2]]
    for advantage, best in (({"type": "max_at_k", "k": 3}, 0.375), ({"type": "leave_one_out"}, 0.5)):
        document = answer({"rewards": rewards, "advantage": advantage}, GROUP, GroupResponse)
        assert document["advantages"] == [[approx(best), 0.0, 0.0, 0.0]]


def test_rules_of_the_whole_request_follow_their_formulas():
    """Three groups of two rollouts with two binary rewards: GDPO tells apart what a sum does not."""
    rewards = {"a": [[0.0, 1.0], [0.0, 0.0], [0.0, 1.0]], "b": [[0.0, 1.0], [0.0, 1.0], [1.0, 1.0]]}
    exact = {"epsilon": 0.0, "whitening": {"type": "trl", "epsilon": 0.0}}
    gdpo = answer({"rewards": rewards, "advantage": {"type": "gdpo", **exact}}, GROUP, GroupResponse)
    for row, winner in zip(gdpo["advantages"], (1.290994448735806, 0.645497224367903, 0.645497224367903), strict=True):
        assert row == [approx(-winner), approx(winner)]
    body = {"rewards": rewards, "advantage": {"type": "grpo", "epsilon": 0.0}}
    assert answer(body, GROUP, GroupResponse)["advantages"] == [[approx(-math.sqrt(0.5)), approx(math.sqrt(0.5))]] * 3
    body = {
        "rewards": [[1.0, 0.0], [3.0, 0.0]],
        "n_tokens": [[1, 3], [2, 2]],
        "convention": "openrlhf",
        "advantage": {"type": "reinforce++_baseline"},
    }
    root = math.sqrt(9.875 / 8)
    expected = [[approx(0.625 / root), approx(-0.375 / root)], [approx(1.625 / root), approx(-1.375 / root)]]
    assert answer(body, GROUP, GroupResponse)["advantages"] == expected


def test_a_row_without_the_threshold_that_it_needs_fails_alone():
    """Without a threshold a reward that is neither 0 nor 1 fails its row, with a pointer; the others are answered."""
    body = {"rewards": {"a": [[1.0, 0.0], [0.5, 1.0]]}, "advantage": {"type": "pass_at_k", "k": 1}}
    document = answer(body, GROUP, GroupResponse)
    assert (document["status"], document["advantages"]) == ([0, 1], [[1.0, -1.0], [None, None]])
    (error,) = document["errors"]
    assert (error["row"], error["code"], error["pointer"]) == (1, "invalid_request", "/rewards/a/1/0")


def test_rows_that_do_not_fit_each_other_are_a_shape_mismatch():
    """Names and tokens have the rows of the first reward; unknown names have no weight."""
    for body, code, pointer in (
        ({"rewards": {"a": [[1.0]], "b": [[1.0, 2.0]]}}, "shape_mismatch", "/rewards/b/0"),
        ({"rewards": [[1.0]], "n_tokens": [[1], [2]]}, "shape_mismatch", "/n_tokens"),
        ({"rewards": {"a": [[1.0]]}, "weights": {"b": 1.0}}, "invalid_request", "/weights/b"),
    ):
        document = refusal(body, GROUP)
        assert (document["code"], document["errors"][0]["pointer"]) == (code, pointer)


@pytest.mark.parametrize(("convention", "epsilon"), [("trl", 1e-4), ("verl", 1e-6), ("openrlhf", 1e-9)])
def test_a_convention_is_its_epsilon(convention, epsilon):
    """The conventions differ in ε, and a given ε wins over them."""
    body = {"rewards": [[1.0, 0.5, 0.0]], "convention": convention}
    (row,) = answer(body, GROUP, GroupResponse)["advantages"]
    assert row[0] == pytest.approx(0.5 / (0.5 + epsilon), rel=1e-14)
    (row,) = answer({**body, "advantage": {"epsilon": 0.5}}, GROUP, GroupResponse)["advantages"]
    assert row[0] == pytest.approx(0.5, rel=1e-14)


def test_a_null_reward_is_left_out():
    """A null gets 0 and a flag, and the others have the advantages of the smaller group, to the last bit."""
    document = answer({"rewards": [[1.0, None, 0.0], [1.0, 0.0], [None], [0.5, 0.5]]}, GROUP, GroupResponse)
    with_null, without, nothing, constant = document["advantages"]
    assert with_null == [without[0], 0.0, without[1]]
    assert (nothing, constant) == ([0.0], [0.0, 0.0])
    assert document["flags"][:2] == [["group_incomplete"], []]
    assert "degenerate_group" in document["flags"][3]


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-1e400"])
def test_a_bad_row_of_rewards_fails_alone(literal):
    """A row with a number that is not finite is null throughout and named; the others are answered."""
    body = json.dumps({"rewards": [[1.0, 0.0], [0.5, float(MARK)], [0.0, 1.0]]}).replace(MARK, literal)
    document = answer(body, GROUP, GroupResponse)
    assert document["status"] == [0, 1, 0]
    assert document["advantages"][1] == [None, None]
    (error,) = document["errors"]
    assert (error["row"], error["code"], error["pointer"]) == (1, "non_finite_value", "/rewards/1/1")
    document = refusal(json.dumps({"rewards": [[float(MARK)]] * 12}).replace(MARK, literal), GROUP)
    assert document["code"] == "non_finite_value"
    assert len(document["errors"]) == 10


def test_group_size_is_asserted():
    """A row of another size than expected fails alone; candidates cannot be expected of whole responses."""
    document = answer({"rewards": [[1.0, 0.0], [1.0]], "expect": {"group_size": 2}}, GROUP, GroupResponse)
    assert document["status"] == [0, 1]
    assert document["errors"][0]["code"] == "group_size_mismatch"
    assert document["errors"][0]["pointer"] == "/rewards/1"
    document = refusal({"rewards": [[1.0]], "expect": {"candidates": 2}}, GROUP)
    assert document["errors"][0]["pointer"] == "/expect/candidates"


def test_the_same_request_has_the_same_answer():
    """But for its id and the time it waited, an answer is a function of the request."""
    first, second = (post(nested()).json() for _ in range(2))
    for document in (first, second):
        document.pop("request_id")
        document["usage"].pop("queue_s")
    assert first == second


def test_codes_of_sets_are_codes_of_the_wire():
    """Every code that a set can fail with here is an `ErrorCode`."""
    assert {code for *_, code, _ in BAD_SETS.values()} <= {code.value for code in ErrorCode}


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
