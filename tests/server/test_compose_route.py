import math

import msgpack
import pytest

from creditd.wire import codec
from creditd.wire.compose import ComposeResponse
from server import credit_calls
from server.oar_calls import FORMATS, answered, item_of, request_of
from server.running import COMPOSE, SHAPLEY, WORKED_REWARDS, get, on_service, post
from server.test_binary import packed, plain

BINARY = {"Content-Type": codec.MEDIA_TYPE, "Accept": codec.MEDIA_TYPE}
NAN = float("nan")
LONG = [[0, 5], [5, 6], [6, 7], [7, 8]]
"""Spans of the four candidates of the worked responses."""
# methods.md §5 on row 1 of the worked group of §2, computed by hand: A_1 = 1.4088490164, φ = .558333, K = 4 and
# s = 4/(s_D + ε) with s_D of the group; the units of candidate 1 have one and four tokens and credits .5 and .058333.
WORKED_CREDITS = [0.558333333333, 0.158333333333, 0.158333333333, 0.025]
WORKED_ADVANTAGES = [1.4088490164, -0.0856206585, -0.0856206585, -0.5837772167]
DIGITS = 1e-9


def answer(body, **settings):
    """A 200 that fits its model, as plain JSON."""
    return credit_calls.answer(body, COMPOSE, ComposeResponse, **settings)


def refusal(body, **settings):
    """A 422 that is a problem document, as plain JSON."""
    return credit_calls.refusal(body, COMPOSE, **settings)


def in_binary(body):
    """The same answer by way of the binary format, buffers both ways."""
    response = post(msgpack.packb(packed(body)), COMPOSE, headers=BINARY)
    assert response.status_code == 200, response.text
    return plain(codec.decode(response.content))


def worked(**first):
    """The worked group of the method, with tokens; something may be known inside the first candidate."""
    sets = [
        {
            "group": "p",
            "n_tokens": 10,
            "candidates": [{"reward": r, "span": span} for r, span in zip(row, LONG, strict=True)],
        }
        for row in WORKED_REWARDS
    ]
    sets[0]["candidates"][0] |= first
    return {"sets": sets}


def one_set(**changes):
    """A response of two candidates."""
    candidates = [{"reward": 1.0, "span": [0, 4]}, {"reward": 0.5, "span": [4, 8]}]
    return {"n_tokens": 10, "candidates": candidates, **changes}


def one_candidate(**parts):
    """A request about a response whose first candidate has parts."""
    return {"sets": [one_set(candidates=[{"reward": 1.0, "span": [0, 4], **parts}, {"reward": 0.5, "span": [4, 8]}])]}


UNITS = {"units": [[0, 1], [1, 5]], "unit_values": [0.5, 0.058333333333333]}


def test_the_worked_group_is_that_of_the_other_route():
    """Without anything inside, credits, advantages and tokens are those of `/v1/credit/shapley`."""
    found = answer(worked())["sets"]
    other = credit_calls.answer({**worked(), "tokens": {}}, SHAPLEY)["sets"]
    for one, two in zip(found, other, strict=True):
        for name in ("credits", "advantages", "set_advantage", "token_advantages", "utility_grand", "flags"):
            assert one[name] == two[name]
    assert found[0]["credits"] == pytest.approx(WORKED_CREDITS, abs=DIGITS)
    assert found[0]["advantages"] == pytest.approx(WORKED_ADVANTAGES, abs=DIGITS)


@pytest.mark.parametrize("ask", [answer, in_binary])
def test_units_of_the_worked_group(ask):
    """The additive formula on the worked numbers: s from two advantages and their credits, d from those of units."""
    one = ask(worked(**UNITS))["sets"][0]
    slope = (WORKED_ADVANTAGES[0] - WORKED_ADVANTAGES[3]) / (WORKED_CREDITS[0] - WORKED_CREDITS[3])
    even = WORKED_CREDITS[0] / 5
    first = WORKED_ADVANTAGES[0] + slope * 5 * (0.5 - even)
    others = WORKED_ADVANTAGES[0] + slope * 5 * (0.058333333333 / 4 - even)
    assert one["token_advantages"][:5] == pytest.approx([first, *[others] * 4], abs=1e-7)
    assert one["unit_values"][0] == pytest.approx([0.5, 0.0583333333], abs=DIGITS)
    account = one["ledger"]["candidates"][0]
    assert account["token_sum"] == pytest.approx(5 * WORKED_ADVANTAGES[0], abs=1e-8)
    assert account["credit_gap"] == pytest.approx(0.0, abs=1e-12)
    assert [unit["tokens"] for unit in account["units"]] == [1, 4]


@pytest.mark.parametrize("ask", [answer, in_binary])
def test_bounded_units_of_the_worked_group(ask):
    """Half of the advantage at most: the unit that is furthest above gets 1.5 of it."""
    one = ask({**worked(**UNITS), "inside": {"type": "bounded"}})["sets"][0]
    assert one["token_advantages"][:2] == pytest.approx(
        [1.5 * WORKED_ADVANTAGES[0], (1 - 0.5 / 4) * WORKED_ADVANTAGES[0]], abs=1e-8
    )


@pytest.mark.parametrize("ask", [answer, in_binary])
def test_sensitivities_inside_a_candidate(ask):
    """The worked weights of methods.md §4, times the candidate's advantage."""
    sensitivities = [0.0, 0.1, 0.5, 1.0, 4.0]
    one = ask({**worked(sensitivities=sensitivities), "inside": {"type": "sensitivity"}})["sets"][0]
    weights = [0.087724, 0.877242, 1.056937, 1.223612, 1.754484]
    expected = [WORKED_ADVANTAGES[0] * weight for weight in weights]
    assert one["token_advantages"][:5] == pytest.approx(expected, abs=2e-6)
    account = one["ledger"]["candidates"][0]
    assert account["effective_share"] == pytest.approx(0.7728, abs=5e-5)
    assert account["top_share"] == pytest.approx(0.3509, abs=5e-5)
    flat = ask({**worked(sensitivities=[2.0] * 5), "inside": {"type": "sensitivity"}})["sets"][0]
    assert flat["flags"] == ["flat_sensitivity"]
    assert flat["token_advantages"][:5] == pytest.approx([WORKED_ADVANTAGES[0]] * 5, abs=DIGITS)


@pytest.mark.parametrize("form", FORMATS)
def test_what_oar_answers_is_what_a_candidate_takes(form):
    """Sensitivities as `/v1/credit/oar` gives them, its answer's null: the same weights, whatever the advantage."""
    item = item_of([7, 8, 10, 13, 20, 30, 9], answer=[4, 6], completion_mask=[True, True, False, *[True] * 4])
    (measured,) = answered(request_of(item), form)
    given = {"advantage": -2.0, "span": [1, 8], "sensitivities": measured["sensitivities"]}
    one = {"n_tokens": 9, "set_advantage": 0.5, "candidates": [given]}
    one["completion_mask"] = [True, True, True, False, *[True] * 5]
    body = {"sets": [one], "inside": {"type": "sensitivity"}}
    (found,) = (in_binary if form == "binary" else answer)(body)["sets"]
    assert found["token_advantages"] == [0.5, *(-2.0 * weight for weight in measured["weights"]), 0.5]
    account = found["ledger"]["candidates"][0]
    assert [account[name] for name in ("n_reweighted", "effective_share", "top_share")] == [
        measured[name] for name in ("n_reweighted", "effective_share", "top_share")
    ]


def test_utilities_of_partial_texts_become_credits_of_units():
    """Two candidates, 1.0 of two units and 0.5: the four orders of arrival, by hand."""
    body = one_candidate(units=[[0, 2], [2, 4]], utilities=[7.0, 0.5, 0.25, 1.0])
    one = answer(body)["sets"][0]
    # f(y) = (y + max(y − .5, 0))/2: f(.5) = .25, f(.25) = .125, f(1) = .75; Shapley of (0, .25, .125, .75)
    assert one["unit_values"] == [pytest.approx([0.4375, 0.3125], abs=1e-12), None]
    assert one["credits"] == pytest.approx([0.75, 0.25])
    tree = answer(one_candidate(units=[[0, 2], [2, 4]], utilities=[7.0, 0.5, 0.25, 1.0], tree=[[0, 1]]))["sets"][0]
    assert tree["unit_values"] == one["unit_values"]


def test_a_set_may_have_its_own_choice():
    """What a set says counts for it, what the request says for the others."""
    plain_set = one_set(candidates=[{"reward": 1.0, "span": [0, 4], "units": [[0, 1], [1, 4]], "unit_values": [1, 0]}])
    body = {"sets": [plain_set, {**plain_set, "inside": {"type": "bounded", "share": 1.0}}]}
    body |= {"advantage": {"type": "none"}, "inside": {"type": "additive", "share": 0.0}}
    first, second = answer(body)["sets"]
    assert first["token_advantages"][:4] == [1.0] * 4
    assert second["token_advantages"][:4] == pytest.approx([2.0, *[2 / 3] * 3])


def test_masked_tokens_get_nothing():
    """Exactly 0 where the policy did not choose, in both formats, and they count nowhere."""
    mask = [True, True, False, True, *[True] * 4, False, False]
    body = {"sets": [one_set(completion_mask=mask), one_set()], "advantage": {"type": "none"}}
    for ask in (answer, in_binary):
        one = ask(body)["sets"][0]
        assert one["token_advantages"] == [0.75, 0.75, 0.0, 0.75, *[0.25] * 4, 0.0, 0.0]
        assert one["ledger"]["tokens"] == 7
        assert one["ledger"]["candidates"][0]["tokens"] == 3


def test_given_advantages():
    """Bounded by default, without credits; the ledger has masses alone."""
    candidates = [
        {"advantage": 2.0, "span": [0, 2], "units": [[0, 1], [1, 2]], "unit_values": [1.0, 0.0]},
        {"advantage": None, "span": [2, 4]},
    ]
    one = answer({"sets": [{"n_tokens": 5, "set_advantage": -0.5, "candidates": candidates}]})["sets"][0]
    assert one["token_advantages"] == [3.0, 1.0, -0.5, -0.5, -0.5]
    assert one["credits"] is None
    assert one["advantages"] == [2.0, None]
    assert one["flags"] == ["candidate_unscored"]
    assert one["ledger"]["credit_sum"] is None
    additive = {
        "inside": {"type": "additive"},
        "sets": [{"n_tokens": 5, "set_advantage": -0.5, "candidates": candidates}],
    }
    additive["sets"][0]["advantage_slope"] = 2.0
    assert answer(additive)["sets"][0]["token_advantages"][:2] == [4.0, 0.0]


def test_one_wrong_set_costs_itself():
    """Others are answered; the group says that it lost one, or fails with it."""
    wrong = one_candidate(units=[[0, 4]], unit_values=[NAN])["sets"][0]
    body = {"sets": [{**wrong, "group": "p", "id": "a"}, {**one_set(), "group": "p", "id": "b"}]}
    first, second = answer(body)["sets"]
    assert (first["id"], first["status"], second["status"]) == ("a", "error", "ok")
    assert first["error"] == {
        "code": "non_finite_value",
        "pointer": "/sets/0/candidates/0/unit_values/0",
        "detail": "unit_values is NaN; expected a finite number of magnitude at most 1e+100",
        "retryable": False,
    }
    assert "group_incomplete" in second["flags"]
    problem = refusal({**body, "incomplete_group": "error"})
    assert [one["code"] for one in problem["errors"]] == ["non_finite_value", "group_incomplete"]


@pytest.mark.parametrize(
    ("body", "code", "pointer"),
    [
        (one_candidate(units=[[0, 3]], unit_values=[1.0]), "shape_mismatch", "/sets/0/candidates/0/units"),
        (one_candidate(units=[[0, 5]], unit_values=[1.0]), "shape_mismatch", "/sets/0/candidates/0/units/0"),
        (one_candidate(units=[[0, 4]]), "invalid_request", "/sets/0/candidates/0/unit_values"),
        (one_candidate(units=[[0, 4]], utilities=[0.0, 1e200]), "invalid_request", "/sets/0/candidates/0/utilities/1"),
        (one_candidate(units=[[0, 4]], utilities=[0.0]), "shape_mismatch", "/sets/0/candidates/0/utilities"),
        (one_candidate(sensitivities=[1.0] * 4), "invalid_request", "/sets/0/candidates/0/sensitivities"),
        (
            {**one_candidate(sensitivities=[1.0, 1e101, 1.0, 1.0]), "inside": {"type": "sensitivity"}},
            "invalid_request",
            "/sets/0/candidates/0/sensitivities/1",
        ),
        ({"sets": [one_set(completion_mask=[True])]}, "shape_mismatch", "/sets/0/completion_mask"),
        ({"sets": [one_set(set_advantage=1.0)]}, "invalid_request", "/sets/0/set_advantage"),
        ({"sets": [one_set(advantage_slope=1.0)]}, "invalid_request", "/sets/0/advantage_slope"),
        ({"sets": [one_set(n_tokens=200_000)]}, "shape_mismatch", "/sets/0/n_tokens"),
        ({"sets": [one_set(n_tokens=7)]}, "shape_mismatch", "/sets/0/candidates/1/span"),
        ({"sets": [one_set(prompt="p")]}, "invalid_request", "/sets/0/prompt"),
        (
            {"sets": [one_set(candidates=[{"reward": NAN, "span": None}])]},
            "non_finite_value",
            "/sets/0/candidates/0/reward",
        ),
        ({"sets": [one_set(candidates=[{"span": None}])]}, "invalid_request", "/sets/0/candidates/0/reward"),
        ({"sets": [one_set(candidates=[{"reward": 1.0}])]}, "invalid_request", "/sets/0/candidates/0/span"),
    ],
)
def test_what_is_wrong_with_a_set_has_a_pointer(body, code, pointer):
    """Into the request as it came; a request without any answer is refused with it."""
    problem = refusal(body)
    assert (problem["code"], problem["errors"][0]["pointer"]) == (code, pointer)


GIVEN = {"n_tokens": 4, "set_advantage": 0.5, "candidates": [{"advantage": 1.0, "span": [0, 4]}]}


def given(**changes):
    """A request with given advantages whose candidate is changed."""
    return {"sets": [{**GIVEN, "candidates": [{**GIVEN["candidates"][0], **changes}]}]}


@pytest.mark.parametrize(
    ("body", "code", "pointer"),
    [
        ({"sets": [GIVEN, one_set()]}, "invalid_request", "/sets/1/candidates/0/advantage"),
        ({"sets": [{**GIVEN, "set_advantage": None}]}, "invalid_request", "/sets/0/set_advantage"),
        ({"sets": [{**GIVEN, "set_advantage": NAN}]}, "non_finite_value", "/sets/0/set_advantage"),
        ({"sets": [{**GIVEN, "set_advantage": 1e101}]}, "invalid_request", "/sets/0/set_advantage"),
        ({"sets": [{**GIVEN, "advantage_slope": -1.0}]}, "invalid_request", "/sets/0/advantage_slope"),
        ({"sets": [{**GIVEN, "set_reward": 1.0}]}, "invalid_request", "/sets/0/set_reward"),
        (given(advantage=NAN), "non_finite_value", "/sets/0/candidates/0/advantage"),
        (given(advantage=-1e101), "invalid_request", "/sets/0/candidates/0/advantage"),
        (given(named_rewards={"a": 1.0}), "invalid_request", "/sets/0/candidates/0/named_rewards"),
        (given(units=[[0, 4]], utilities=[0, 1]), "invalid_request", "/sets/0/candidates/0/utilities"),
        ({**given(reward=1.0), "utility": {"type": "sum"}}, "invalid_request", "/utility/type"),
        (
            {**given(units=[[0, 4]], unit_values=[1.0]), "inside": {"type": "additive"}},
            "invalid_request",
            "/sets/0/advantage_slope",
        ),
    ],
)
def test_what_is_wrong_with_given_advantages_has_a_pointer(body, code, pointer):
    """All candidates have one or none has, numbers are numbers, and what says nothing beside them is refused."""
    problem = refusal(body)
    assert (problem["code"], problem["errors"][0]["pointer"]) == (code, pointer)


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"inside": {"type": "additive", "share": 1.5}}, "/inside/share"),
        ({"inside": {"type": "bounded", "share": -0.5}}, "/inside/share"),
        ({"inside": {"type": "sensitivity", "reshape": {"quantile": 1.0}}}, "/inside/reshape/quantile"),
        ({"inside": {"type": "other"}}, "/inside"),
        ({"utility": {"type": "model", "model": "rm"}}, "/utility"),
        ({"nothing": 1}, "/nothing"),
        ({"advantage": {"type": "none", "baseline": "others"}}, "/advantage"),
    ],
)
def test_choices_that_do_not_fit_refuse_the_request(changes, pointer):
    """The schema and the choices are looked at before any set."""
    problem = refusal({"sets": [one_set()], **changes})
    assert problem["errors"][0]["pointer"].startswith(pointer), problem


@pytest.mark.parametrize(
    ("settings", "body", "code"),
    [
        ({"max_sets": 2}, {"sets": [one_set()] * 3}, "budget_exceeded"),
        ({"max_token_advantages": 15}, {"sets": [one_set(), one_set()]}, "budget_exceeded"),
        ({"max_units": 1}, one_candidate(units=[[0, 1], [1, 4]], unit_values=[1, 1]), "too_many_players"),
        (
            {"max_table_candidates": 1},
            one_candidate(units=[[0, 1], [1, 4]], utilities=[0.0] * 4),
            "too_many_players",
        ),
    ],
)
def test_limits_are_settings(settings, body, code):
    """Sets, tokens, units, and units of tables: refused before anything is allocated for them."""
    assert refusal(body, **settings)["code"] == code


def test_both_formats_give_the_same_numbers():
    """To the last bit, buffers or lists."""
    body = worked(units=[[0, 2], [2, 5]], utilities=[0.0, 0.7, 0.2, 0.9])
    body["sets"][1]["candidates"][2] |= {"units": [[6, 7]], "unit_values": [0.05]}
    body["sets"][2]["completion_mask"] = [False, *[True] * 9]
    body["tokens"] = {"other": "next", "length_norm": True}
    one, two = answer(body), in_binary(body)
    assert one["sets"] == two["sets"]


def test_the_log_and_the_counters_know_the_route():
    """Items, failures by code, and flags, as on other routes."""

    async def ask(service):
        wrong = one_candidate(units=[[0, 4]])["sets"][0]
        await service.post({"sets": [{**wrong, "group": 1}, {**one_set(), "group": 1}]}, COMPOSE)
        return (await service.client.get("/metrics")).text

    text = on_service(ask)
    for line in (
        f'creditd_items_total{{route="{COMPOSE}",status="ok"}} 1.0',
        f'creditd_items_total{{route="{COMPOSE}",status="error"}} 1.0',
        'creditd_item_errors_total{code="invalid_request"} 1.0',
        'creditd_flags_total{flag="group_incomplete"} 1.0',
    ):
        assert line in text


def test_huge_rewards_and_credits_stay_numbers():
    """Numbers at the limit of what is taken: every answer is finite."""
    candidates = [
        {"reward": 1e100, "span": [0, 4], "units": [[0, 1], [1, 4]], "unit_values": [1e100, -1e100]},
        {"reward": -1e100, "span": [4, 8], "units": [[4, 6], [6, 8]], "utilities": [0.0, 1e100, -1e100, -1e100]},
    ]
    body = {"sets": [one_set(candidates=candidates), one_set()]}
    for inside in ("additive", "bounded"):
        for kind in ("pooled", "none", "centered"):
            for one in answer({**body, "inside": {"type": inside}, "advantage": {"type": kind}})["sets"]:
                assert all(math.isfinite(value) for value in one["token_advantages"])
                assert math.isfinite(one["ledger"]["total"])


def test_the_document_says_what_is_answered():
    """The route stands in the published document with its examples."""
    operation = get("/openapi.json").json()["paths"][COMPOSE]["post"]
    assert operation["operationId"] == "credit_compose"
    assert len(operation["requestBody"]["content"]["application/json"]["examples"]) == 3
