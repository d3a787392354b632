import dataclasses

import numpy as np
import pytest

from creditd.credit.set_credit import set_credit
from creditd.credit.set_utilities import NEEDS
from creditd.wire import v1
from creditd.wire.catalogue import CATALOGUE
from creditd.wire.choices import options_of
from creditd.wire.columns import batch_of
from creditd.wire.errors import ErrorCode
from creditd.wire.limits import RequestLimits
from creditd.wire.utilities import ALL_BUT_TABLES, OF_FEATURES, OF_REWARDS, OF_SIMILARITIES
from creditd.wire.validation import WireError
from wire.forms import FORMS, in_form, sets_with_everything

LIMITS = RequestLimits()
UTILITIES = {entry.name: entry.example["utility"] for entry in CATALOGUE.utilities if entry.name != "table"}
RULES = [
    {"type": "shapley"},
    {"type": "owen"},
    {"type": "blend", "from": "owen", "to": {"type": "prefix_gain"}, "position": 0.5},
]
AGGREGATIONS = [
    {},
    {"type": "normalize_then_sum", "weights": {"helpful": 0.5}},
    {"type": "sum_then_normalize", "weights": {"a/b~c": -2.0}},
    {"type": "normalize_then_sum", "weights": {"helpful": 0.0}},
]


def parsed(form, sets, **options):
    """A request in one form, and its columns."""
    request = v1.ShapleyRequest.model_validate(in_form(form, sets, **options))
    return request, batch_of(request, LIMITS)


def solved(form, sets, **options):
    """The answer of the arithmetic to a request in one form."""
    request, batch = parsed(form, sets, **options)
    return set_credit(batch.sets, options_of(request, LIMITS), batch.rejected)


def assert_equal_columns(one, other):
    """Equal to the last bit, whatever is nested in them."""
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype, field.name
            assert a.tobytes() == b.tobytes(), field.name
        elif dataclasses.is_dataclass(a):
            assert_equal_columns(a, b)
        elif isinstance(a, tuple) and a and dataclasses.is_dataclass(a[0]):
            assert len(a) == len(b), field.name
            for x, y in zip(a, b, strict=True):
                assert_equal_columns(x, y)
        else:
            assert a == b, field.name


@pytest.mark.parametrize("name", UTILITIES)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["type"])
def test_all_forms_are_one_batch(name, rule):
    """Sets, rows and ragged columns become equal columns of the arithmetic, for every utility and with unions."""
    utility = UTILITIES[name]
    sets = sets_with_everything()
    weights = utility.get("weights") if name == "facility_location" else None
    assert weights is None or len(weights) == 2
    options = {"utility": utility, "credit": rule, "tokens": {}}
    batches = [parsed(form, sets, **options)[1] for form in FORMS]
    for batch in batches[1:]:
        assert_equal_columns(batches[0].sets, batch.sets)
        assert batch.ids == batches[0].ids
    assert batches[0].rejected == ()
    answers = [solved(form, sets, **options) for form in FORMS]
    for answer in answers:
        assert answer.errors == ()
        assert answer.credits.tobytes() == answers[0].credits.tobytes()
        assert answer.token_advantages.tobytes() == answers[0].token_advantages.tobytes()


@pytest.mark.parametrize("aggregation", AGGREGATIONS, ids=str)
def test_all_forms_have_the_same_named_rewards(aggregation):
    """Named rewards become one weighted sum, or parts, whatever the form."""
    sets = sets_with_everything(named=True)
    for candidate in sets[1]["candidates"][:1]:
        candidate["named_rewards"] = dict.fromkeys(candidate["named_rewards"])
    batches = [parsed(form, sets, aggregation=aggregation, tokens={})[1] for form in FORMS]
    for batch in batches[1:]:
        assert_equal_columns(batches[0].sets, batch.sets)
    assert (batches[0].sets.parts is not None) == (aggregation.get("type") == "normalize_then_sum")
    sets[1]["candidates"][0]["named_rewards"] = None
    assert_equal_columns(parsed("sets", sets, aggregation=aggregation, tokens={})[1].sets, batches[0].sets)


def test_a_null_says_nothing_of_the_other_kind_of_reward():
    """A writer of all fields may leave null where it uses the other kind; both kinds at once are refused."""
    for named, used, other in ((False, "reward", "named_rewards"), (True, "named_rewards", "reward")):
        sets = sets_with_everything(named=named)
        plain = parsed("sets", sets)[1]
        for one in sets:
            for candidate in one["candidates"]:
                candidate[other] = None
        assert_equal_columns(parsed("sets", sets)[1].sets, plain.sets)
        sets[0]["candidates"][0][other] = {"helpful": 1.0} if other == "named_rewards" else 1.0
        assert sets[0]["candidates"][0][used] is not None
        with pytest.raises(WireError, match="expected one of them for all"):
            parsed("sets", sets)


def test_the_published_forms_follow_the_needs_of_the_utilities():
    """Each utility stands in the form that asks for what it needs."""
    needs = {name: set(NEEDS[name]) - {"reward"} for name in NEEDS}
    assert {name for name in needs if not needs[name]} == {*OF_REWARDS, "sum"}
    for need, names in {**OF_FEATURES, "similarities": OF_SIMILARITIES, "utilities": ("table",)}.items():
        assert {name for name in needs if needs[name] == {need}} == set(names)
    assert {*ALL_BUT_TABLES, "table"} == set(NEEDS)


@pytest.mark.parametrize("name", [name for name in UTILITIES if "reward" not in NEEDS[name]])
def test_rewards_that_nobody_needs_may_be_absent(name):
    """Utilities of features take no reward, in every form alike; a null reward still takes its candidate out."""
    sets = sets_with_everything()
    for one in sets:
        for candidate in one["candidates"]:
            del candidate["reward"]
    answers = [solved(form, sets, utility=UTILITIES[name]) for form in FORMS]
    assert {answer.credits.tobytes() for answer in answers} == {answers[0].credits.tobytes()}
    assert answers[0].errors == ()
    assert not np.isnan(answers[0].credits).any()
    sets[0]["candidates"][1]["reward"] = None
    assert np.isnan(solved("sets", sets, utility=UTILITIES[name]).credits[1])


@pytest.mark.parametrize(
    ("utility", "credit", "place", "field"),
    [
        ({"type": "max"}, "shapley", "candidates", "reward"),
        ({"type": "plurality"}, "shapley", "candidates", "label"),
        ({"type": "coverage"}, "shapley", "candidates", "topics"),
        ({"type": "noisy_or"}, "shapley", "candidates", "scores"),
        ({"type": "max"}, "owen", "candidates", "union"),
        ({"type": "log_det"}, "shapley", "set", "similarities"),
        ({"type": "max"}, "shapley", "candidates", "span"),
        ({"type": "max"}, "shapley", "set", "n_tokens"),
    ],
)
def test_a_set_that_lacks_something_fails_alone(utility, credit, place, field):
    """What is missing in one set fails this set, and says where."""
    sets = sets_with_everything()
    del (sets[1] if place == "set" else sets[1]["candidates"][1])[field]
    answer = solved("sets", sets, utility=utility, credit={"type": credit}, tokens={})
    assert [(e.row, e.code, e.field) for e in answer.errors] == [(1, "invalid_request", field)]
    assert answer.errors[0].detail.startswith(f"{field} is missing; ")
    if place == "candidates" and field in {"topics", "scores"}:
        sets[1]["candidates"][1][field] = None
        assert [e.field for e in solved("sets", sets, utility=utility, tokens={}).errors] == [field]


def refusal(**body):
    """Code, pointer and sentence of a request that is refused as a whole."""
    with pytest.raises(WireError) as refused:
        batch_of(v1.ShapleyRequest.model_validate(body), LIMITS)
    return refused.value.code, refused.value.items[0].pointer, refused.value.items[0].detail


def test_rewards_are_named_everywhere_or_nowhere():
    """Candidates with `reward` beside candidates with `named_rewards`, or with other names, refuse the request."""
    named, plain = {"named_rewards": {"a": 1.0}}, {"reward": 1.0}
    for candidates in ([named, plain], [named, {"named_rewards": {"b": 1.0}}], [{"named_rewards": {}}]):
        code, pointer, _ = refusal(sets=[{"candidates": candidates}])
        assert (code, pointer) == (ErrorCode.INVALID_REQUEST, "/sets")
    assert refusal(sets=[{"candidates": [{"named_rewards": None}]}])[1] == "/sets"


def test_groups_are_named_everywhere_or_nowhere():
    """A set without a group beside sets with one is refused."""
    code, pointer, _ = refusal(sets=[{"group": "p", "candidates": []}, {"candidates": []}])
    assert (code, pointer) == (ErrorCode.INVALID_REQUEST, "/sets/1/group")


def test_tables_come_with_the_table_utility_alone():
    """Utilities under another utility fail their set, and so do matrices with rows of another length."""
    sets = sets_with_everything()
    sets[0]["utilities"] = [0.0] * 16
    answer = solved("sets", sets)
    assert [(e.row, e.field) for e in answer.errors] == [(0, "utilities")]
    sets = sets_with_everything()
    sets[2]["similarities"] = [[1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    answer = solved("sets", sets, utility={"type": "log_det"})
    assert [(e.row, e.field, e.code) for e in answer.errors] == [(2, "similarities", "shape_mismatch")]


def test_arithmetic_on_tables_runs_in_the_order_of_ids():
    """Ids of all candidates of a set are its order; a set that lacks one keeps the order given."""
    sets = [
        {"utilities": [0.0] * 4, "candidates": [{"id": "b"}, {"id": 7}]},
        {"utilities": [0.0] * 4, "candidates": [{"id": "b"}, {}]},
    ]
    assert parsed("sets", sets, utility={"type": "table"})[1].sets.ranks.tolist() == [1, 0, 0, 1]
