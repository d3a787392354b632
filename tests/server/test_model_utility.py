import itertools

import numpy as np
import pytest

from server.model_services import UTILITY, columns_of, fake, sets_of, with_models, worth
from server.running import on_service, post, rows_of

ROW = ("sun", "rain", "wind", "fog")
MANY = tuple(itertools.chain(("sun", "rain", "wind", "snow", "fog"), (f"word{n}" for n in range(9))))


def asked(body, resources=None):
    """The answer of a service with a model."""
    return on_service(lambda service: service.post(body), resources or with_models())


def table_of(row, empty=None):
    """The utilities of all coalitions of some texts, as the service's own table wants them."""
    members = [[text for place, text in enumerate(row) if mask >> place & 1] for mask in range(1 << len(row))]
    values = [worth("", " ".join(texts)) for texts in members]
    return [values[0] if empty is None else empty, *values[1:]]


def by_table(*rows, empty=None, **options):
    """What the service says of the same games as tables."""
    sets = [{"group": "p", "candidates": [{}] * len(row), "utilities": table_of(row, empty)} for row in rows]
    return post({"sets": sets, "utility": {"type": "table"}, **options}).json()["sets"]


@pytest.mark.parametrize("form", [sets_of, columns_of])
@pytest.mark.parametrize("credit", ["shapley", "leave_one_out", "own_reward"])
def test_a_model_evaluates_coalitions(form, credit):
    """Credits are those of the table of all coalitions."""
    rows, options = (ROW, ("snow", "sun")), {"credit": {"type": credit}}
    found, expected = asked(form(*rows, **UTILITY, **options)).json(), by_table(*rows, **options)
    credits_ = rows_of(found["columns"]["credits"]) if "columns" in found else [one["credits"] for one in found["sets"]]
    for row, one in zip(credits_, expected, strict=True):
        assert row == pytest.approx(one["credits"], abs=1e-12)
    assert found["model"] == "rm"


def test_all_coalitions_are_evaluated_once():
    """2^K evaluations for an exact value, in one question, and the answer says so."""
    engine = fake()
    found = asked(sets_of(ROW, **UTILITY), with_models(engine)).json()
    (one,) = found["sets"]
    assert (one["exact"], one["method"], one["standard_errors"]) == (True, "table", None)
    assert found["usage"]["evaluations"] == 16
    assert engine.batches == [16]
    assert one["gap"] == pytest.approx(0.0, abs=1e-12)
    assert one["utility_grand"] == worth("", " ".join(ROW))


@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[1::7])
def test_the_order_of_candidates_changes_no_bit(order):
    """Candidates are rendered, sampled and solved in the order of their texts."""
    (found,) = asked(sets_of(ROW, **UTILITY)).json()["sets"]
    (other,) = asked(sets_of(tuple(ROW[place] for place in order), **UTILITY)).json()["sets"]
    assert [found["credits"][place] for place in order] == other["credits"]


def test_what_the_model_reads_is_sorted_and_between_the_affixes():
    """The template puts texts in the order of their bytes, each between `before` and `after`."""
    heard = []

    def score(_, text):
        heard.append(text)
        return 0.0

    template = {"type": "sorted", "before": "- ", "after": ";\n"}
    body = sets_of(("b", "a"), utility={**UTILITY["utility"], "template": template})
    assert asked(body, with_models(fake(score=score))).status_code == 200
    assert sorted(heard) == ["", "- a;\n", "- a;\n- b;\n", "- b;\n"]


def test_the_empty_coalition_is_asked_or_given():
    """v(∅) is the model's opinion of nothing, or the request's."""
    engine = fake()
    body = sets_of(ROW, utility={**UTILITY["utility"], "empty": 0.5})
    found = asked(body, with_models(engine)).json()
    assert found["sets"][0]["utility_empty"] == 0.5
    assert found["usage"]["evaluations"] == 15
    expected = by_table(ROW, empty=0.5)[0]
    assert found["sets"][0]["credits"] == pytest.approx(expected["credits"], abs=1e-12)


@pytest.mark.parametrize("form", [sets_of, columns_of])
def test_an_estimate_says_how_sure_it_is(form):
    """Beyond the budget for all coalitions an estimator answers, with standard errors, and says so."""
    options = {"estimator": {"type": "auto", "budget": 512, "seed": 3}}
    found = asked(form(MANY, ROW, **UTILITY, **options)).json()
    assert found["usage"]["evaluations"] <= 512 + 16
    exact = np.array([worth("", text) for text in MANY])
    exact[:2] += 0.375
    if "sets" in found:
        large, small = found["sets"]
        assert (large["exact"], large["method"]) == (False, "stratified")
        assert (small["exact"], small["method"], small["standard_errors"]) == (True, "table", None)
        errors, credits_ = large["standard_errors"], large["credits"]
        assert all(low <= value <= high for value, (low, high) in zip(credits_, large["intervals"], strict=True))
    else:
        columns = found["columns"]
        assert (columns["exact"], columns["method"]) == (False, "several")
        errors, nothing = rows_of(columns["standard_errors"])
        credits_ = rows_of(columns["credits"])[0]
        assert nothing == [None] * 4
    assert np.abs(np.array(credits_) - exact).max() <= 6 * max(errors) + 1e-9
    assert sum(credits_) == pytest.approx(worth("", " ".join(MANY)), abs=1e-9)


def test_early_stopping_asks_in_rounds():
    """With a target the model is asked until the standard errors are small enough, and no further."""
    engine = fake()
    options = {"estimator": {"budget": 4096, "target_standard_error": 0.2}}
    found = asked(sets_of(MANY, **UTILITY, **options), with_models(engine)).json()
    assert found["usage"]["evaluations"] < 4096
    assert max(found["sets"][0]["standard_errors"]) <= 0.2


def test_prefix_gain_keeps_the_order_of_the_candidates():
    """A rule about the order takes the coalitions of the order; what the model reads stays sorted."""
    (found,) = asked(sets_of(("rain", "sun", "snow"), credit={"type": "prefix_gain"}, **UTILITY)).json()["sets"]
    *before, whole = (worth("", text) for text in ("", "rain", "rain sun", "rain sun snow"))
    assert found["credits"] == pytest.approx([whole - one for one in before], abs=1e-12)


def test_candidates_without_a_text_do_not_play():
    """A null text has no credit; about a set of such candidates the model is asked v(∅) alone."""
    body = sets_of(("sun", None, "rain"), (None,), malformed={"failure_reward": -1.0}, **UTILITY)
    found = asked(body).json()
    first, second = found["sets"]
    assert first["credits"][1] is None
    assert [first["credits"][0], first["credits"][2]] == pytest.approx([1.375, -0.125])
    assert "no_candidates" in second["flags"]
    assert second["utility_empty"] == 0.0
    assert found["usage"]["evaluations"] == 4


def test_copies_are_null_players():
    """Collapsed copies have credit 0 and are in no coalition."""
    body = sets_of(("sun", "sun", "rain"), malformed={"duplicates": "collapse"}, **UTILITY)
    found = asked(body).json()
    assert found["sets"][0]["credits"] == pytest.approx([1.375, 0.0, -0.125])
    assert found["usage"]["evaluations"] == 4


def test_a_coalition_that_does_not_fit_fails_its_set():
    """One coalition without a utility leaves no credit for the set; others have theirs."""
    found = asked(sets_of(("sun", "rain", "snow"), ("sun",), **UTILITY), with_models(fake(max_tokens=20))).json()
    assert [one["status"] for one in found["sets"]] == ["error", "ok"]
    assert found["sets"][0]["error"]["code"] == "context_exceeded"
    assert found["sets"][0]["error"]["pointer"] == "/sets/0/candidates"


@pytest.mark.parametrize(
    ("options", "code", "pointer"),
    [
        ({"credit": {"type": "owen"}}, "invalid_request", "/credit"),
        ({"rewards": {"type": "model", "model": "rm"}}, "invalid_request", "/rewards"),
        ({"estimator": {"type": "exact", "budget": 8}}, "budget_exceeded", "/sets/0/candidates"),
        ({"estimator": {"budget": 2}}, "budget_exceeded", "/sets/0/candidates"),
        ({"utility": {"type": "model", "model": "other"}}, "unknown_model", "/utility/model"),
    ],
)
def test_what_cannot_be_is_said_before_the_model_is_asked(options, code, pointer):
    """Each refusal has a code and a pointer, and costs no evaluation."""
    engine = fake()
    problem = asked({**sets_of(ROW, **UTILITY), **options}, with_models(engine)).json()
    assert (problem["code"], problem["errors"][0]["pointer"]) == (code, pointer), problem
    assert engine.batches == []


def test_a_dry_run_says_the_price_of_all_coalitions():
    """Evaluations and tokens of the first question, which is the whole one without a target."""
    engine = fake()
    found = asked(sets_of(ROW, MANY, dry_run=True, estimator={"budget": 100}, **UTILITY), with_models(engine)).json()
    assert 100 < found["usage"]["evaluations"] <= 116
    assert found["usage"]["tokens_naive"] > 0
    assert engine.batches == []


def test_the_price_is_refused_before_any_coalition_is_made():
    """Characters are counted from the plan, and said."""
    problem = asked(sets_of(MANY, **UTILITY), with_models(max_model_characters=10_000)).json()
    assert problem["code"] == "budget_exceeded"
    assert "characters, prompts counted with each text; expected at most 10000" in problem["detail"]
    cells = asked(
        sets_of(*([MANY * 8] * 64), estimator={"budget": 4096}, **UTILITY), with_models(max_model_characters=1 << 60)
    ).json()
    assert "players times evaluations" in cells["detail"]
