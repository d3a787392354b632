import json
import math

import pytest

from creditd.wire.errors import ErrorCode
from server.credit_calls import (
    MARK,
    NAN,
    PAIR,
    TABLE,
    TABLE_PAIR,
    TOKENS,
    answer,
    in_all_forms,
    in_columns,
    of_reward,
    per_set,
    refusal,
)
from server.running import columnar, nested, post, ragged, rows_of

# One bad number among 512 sets

BAD_ROW, BAD_PLACE, ASKED, GROUP_SIZE = 137, 2, 512, 8


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


def spanned(*spans, n_tokens=10):
    """A set whose candidates have these spans."""
    return {"n_tokens": n_tokens, "candidates": [{"reward": 0.5, "span": list(span)} for span in spans]}


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


def test_codes_of_sets_are_codes_of_the_wire():
    """Every code that a set can fail with here is an `ErrorCode`."""
    assert {code for *_, code, _ in BAD_SETS.values()} <= {code.value for code in ErrorCode}


@pytest.mark.parametrize(
    "body",
    [
        columnar([[0.5] * 3] * 3),
        nested([[0.5] * 3] * 3),
        {"columns": {"rewards": [[0.5] * 3] * 3}},
        {"columns": {"named_rewards": {"a": [[0.5] * 3] * 2, "b": [[0.5] * 3] * 2}}},
        {"columns": {"row_splits": [0, 9], "topics": [[1]] * 9}, "utility": {"type": "coverage"}},
    ],
    ids=["ragged", "set by set", "rows", "named", "without rewards"],
)
def test_candidates_of_all_sets_are_bounded(body):
    """More candidates than the setting, each counted for every reward, are refused before anything is made of them."""
    response = post(body, max_all_candidates=8)
    assert response.status_code == 422
    assert response.json()["code"] == "budget_exceeded"
    assert "candidates; expected at most 8 per request" in response.json()["detail"]
    assert post(body, max_all_candidates=12).status_code == 200
