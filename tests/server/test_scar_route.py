"""`POST /v1/credit/scar`: units, values, rewards and advantages, by a model whose opinion the tests know."""

import itertools

import numpy as np
import pytest

from creditd.credit.owen_trees import owen_plan
from server.model_services import WORDS, fake, with_models
from server.scar_calls import (
    ABSENT,
    FORMATS,
    MANY,
    SPAN_VALUES,
    TEXT,
    answered,
    ask,
    item_of,
    request_of,
    scorer,
    tokens_of,
    value,
)

SPANS = ["sun and rain,", " wind.", " snow;", " fog!"]


def heard_by(body, **options):
    """The texts that a model hears, and the items of the answer."""
    heard = []

    def score(prompt, text):
        heard.append(text)
        return value(prompt, text)

    return heard, answered(body, resources=with_models(fake(score=score, **options)))


def utilities_of(units, prompt="weather?"):
    """The utility of every coalition of some texts, by the members."""
    every = range(1 << len(units))
    texts = ("".join(text for place, text in enumerate(units) if mask >> place & 1) for mask in every)
    return {mask: value(prompt, text) for mask, text in zip(every, texts, strict=True)}


@pytest.mark.parametrize("form", FORMATS)
def test_spans_get_their_shapley_values(form):
    """Values, units, tokens and ledger of a completion whose values are known by hand."""
    (found,) = answered(request_of(item_of(TEXT, id="a", kl=[0.01] * 10, other_reward=0.5), alpha=0.75), form)
    assert (found["id"], found["method"], found["exact"], found["flags"]) == ("a", "table", True, [])
    assert found["units"] == [[0, 4], [4, 6], [6, 8], [8, 10]]
    assert found["unit_characters"] == [[0, 13], [13, 19], [19, 25], [25, 30]]
    assert found["unit_values"] == pytest.approx(SPAN_VALUES, abs=1e-12)
    assert (found["utility_empty"], found["utility_grand"]) == (0.125, 4.25)
    rewards = np.full(10, 0.01)
    rewards[[3, 5, 7, 9]] += 0.75 * np.array(SPAN_VALUES)
    rewards[9] += 0.25 * 4.25 + 0.5
    assert found["token_rewards"] == pytest.approx(rewards.tolist(), abs=1e-12)
    assert (found["token_advantages"], found["standard_errors"], found["intervals"]) == (None, None, None)


SEGMENTATIONS = {
    "span": ({"type": "span"}, SPANS),
    "sentence": ({"type": "sentence"}, ["sun and rain, wind.", " snow; fog!"]),
    "lines": ({"type": "lines"}, [TEXT]),
    "regex": ({"type": "regex", "pattern": "n"}, ["sun", " and", " rain", ", wind", ". snow", "; fog!"]),
    "token": ({"type": "token"}, [TEXT[start:stop] for start, stop in tokens_of(TEXT)]),
    "given": ({"type": "given"}, ["sun and", " rain, wind. snow; fog!"]),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", SEGMENTATIONS)
def test_every_segmentation_makes_units_of_whole_tokens(name, form):
    """Units are what the segmentation says, and every token is in exactly one."""
    segmentation, expected = SEGMENTATIONS[name]
    item = item_of(TEXT, **({"units": [[0, 2], [2, 10]]} if name == "given" else {}))
    (found,) = answered(request_of(item, segmentation=segmentation), form)
    assert [TEXT[start:stop] for start, stop in found["unit_characters"]] == expected
    assert [token for start, stop in found["units"] for token in range(start, stop)] == list(range(10))
    assert len(found["token_rewards"]) == 10


def test_without_tokens_every_segment_is_one():
    """A completion without offsets is cut, and its segments have rewards."""
    (found,) = answered(request_of(item_of(TEXT, tokens=False)))
    assert found["units"] == [[0, 1], [1, 2], [2, 3], [3, 4]]
    assert found["token_rewards"] == pytest.approx(SPAN_VALUES, abs=1e-12)


@pytest.mark.parametrize("name", ABSENT)
def test_a_run_of_absent_units_is_one_filler(name):
    """What the model hears of two units under each rule; v(∅) is its opinion of the filler."""
    absent, filler, expected = ABSENT[name]
    heard, (found,) = heard_by(request_of(item_of(TEXT[:19]), absent=absent))
    assert sorted(heard) == sorted(expected)
    assert found["utility_empty"] == value("weather?", filler)


def test_masked_tokens_stand_in_every_coalition_and_get_nothing():
    """Text of tools is in all that the model hears but v(∅), parts units and runs, and its tokens get exactly 0."""
    text = "sun <tool> wind. snow"
    mask = [True, False, False, False, True, True, True]
    item = item_of(text, completion_mask=mask, kl=[0.5, 9.0, 9.0, 9.0, 0.5, 0.5, 0.5])
    heard, (found,) = heard_by(request_of(item, absent={"type": "blank"}, advantage={"type": "pooled"}))
    assert [text[start:stop] for start, stop in found["unit_characters"]] == ["sun", " wind.", " snow"]
    assert all(" <tool>" in one for one in heard if one != " ")
    assert heard.count(" ") == 1
    assert len(heard) == 1 + 8
    assert [found["token_rewards"][token] for token in (1, 2, 3)] == [0.0, 0.0, 0.0]
    assert [found["token_advantages"][token] for token in (1, 2, 3)] == [0.0, 0.0, 0.0]
    assert found["ledger"]["kl"] == 2.0


def test_what_a_caller_says_of_masked_tokens_is_not_looked_at():
    """A KL term of a masked token may be anything."""
    body = request_of(item_of("sun rain", completion_mask=[True, False], kl=[0.5, float("nan")]))
    (found,) = ask(body)["items"]
    assert found["ledger"]["kl"] == 0.5
    assert found["token_rewards"][1] == 0.0


# Values


def by_definition(credit):
    """The values of the four spans, from the table of all coalitions."""
    table = utilities_of(SPANS)
    if credit == "shapley":
        orders = list(itertools.permutations(range(4)))
        return [
            sum(table[_mask([*before, unit])] - table[_mask(before)] for before in _before(orders, unit)) / len(orders)
            for unit in range(4)
        ]
    if credit == "owen":
        plan = owen_plan(np.array([[0, 1], [2, 3], [4, 5]]), most=100)
        rows = [_mask(np.flatnonzero(row).tolist()) for row in plan.coalitions]
        return plan.values(np.array([table[row] for row in rows])).tolist()
    if credit == "prefix":
        return [table[_mask(range(unit + 1))] - table[_mask(range(unit))] for unit in range(4)]
    if credit == "leave_one_out":
        return [table[15] - table[15 - (1 << unit)] for unit in range(4)]
    shares = [4, 2, 2, 2] if credit == "uniform" else [10, 4, 4, 3]
    return [(table[15] - table[0]) * share / sum(shares) for share in shares]


def _mask(units):
    return sum(1 << unit for unit in units)


def _before(orders, unit):
    return [order[: order.index(unit)] for order in orders]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("credit", "method"),
    [
        ("shapley", "table"),
        ("owen", "owen_tree"),
        ("prefix", "definition"),
        ("leave_one_out", "definition"),
        ("uniform", "uniform"),
        ("attention", "attention"),
    ],
)
def test_every_value_is_what_it_is_called(credit, method, form):
    """Each credit by its definition over the table of all coalitions; what one leaves over is named."""
    (found,) = answered(request_of(item_of(TEXT), credit={"type": credit}), form)
    assert (found["method"], found["exact"]) == (method, True)
    assert found["unit_values"] == pytest.approx(by_definition(credit), abs=1e-12)
    rest = found["utility_grand"] - found["utility_empty"] - sum(found["unit_values"])
    assert found["ledger"]["remainder"] == pytest.approx(rest, abs=1e-12)
    assert abs(rest) == pytest.approx(0.5 if credit == "leave_one_out" else 0.0, abs=1e-12)


def test_a_tree_says_which_unions_count():
    """Owen values over a tree that is sent are those of the tree."""
    tree = [[1, 2], [0, 4], [5, 3]]
    (found,) = answered(request_of(item_of(TEXT, tree=tree), credit={"type": "owen"}))
    table = utilities_of(SPANS)
    plan = owen_plan(np.array(tree), most=100)
    rows = [_mask(np.flatnonzero(row).tolist()) for row in plan.coalitions]
    assert found["unit_values"] == plan.values(np.array([table[row] for row in rows])).tolist()


@pytest.mark.parametrize(
    ("budget", "method", "of_others"),
    [(2048, "table", "table"), (300, "owen_tree", "owen_tree"), (50, "permutations", "table")],
)
def test_auto_takes_one_value_for_all_that_are_compared(budget, method, of_others):
    """The longest completion decides: exact, else the tree, else permutations, which may be all coalitions of others.

    Completions that are not compared with it have a value of their own.
    """
    items = [item_of(MANY, group="a"), item_of(TEXT, group="a"), item_of(TEXT, "else?", group="b")]
    found = answered(request_of(*items, estimator={"type": "auto", "budget": budget}))
    assert [one["method"] for one in found] == [method, of_others, "table"]
    found = answered(request_of(item_of(MANY), item_of(TEXT), estimator={"type": "auto", "budget": budget}))
    assert [one["method"] for one in found] == [method, of_others]


def test_an_estimate_says_how_sure_it_is():
    """Permutations have standard errors and intervals, and exact values have none."""
    estimator = {"type": "permutations", "budget": 200, "seed": 7}
    (found,) = answered(request_of(item_of(MANY), estimator=estimator))
    assert (found["method"], found["exact"]) == ("permutations", False)
    assert len(found["standard_errors"]) == len(found["intervals"]) == 11
    (again,) = answered(request_of(item_of(MANY), estimator=estimator))
    assert again["unit_values"] == found["unit_values"]


def test_early_stopping_asks_in_rounds():
    """With a target the model is asked no further than the errors need."""
    engine = scorer()
    words = ", ".join([*WORDS, *(f"word{number}" for number in range(7))])
    estimator = {"type": "stratified", "budget": 4000, "target_standard_error": 0.3}
    body = request_of(item_of(words), credit={"type": "shapley"}, estimator=estimator)
    (found,) = answered(body, resources=with_models(engine))
    assert max(found["standard_errors"]) <= 0.3
    assert sum(engine.batches) < 4000


# Units


@pytest.mark.parametrize("form", FORMATS)
def test_too_many_units_are_merged_before_anything_is_evaluated(form):
    """The shortest neighbours first; final ranges and the flag come back."""
    engine = scorer()
    body = request_of(item_of(TEXT), segmentation={"type": "span", "max_units": 2})
    (found,) = answered(body, form, with_models(engine))
    assert found["units"] == [[0, 4], [4, 10]]
    assert found["unit_characters"] == [[0, 13], [13, 30]]
    assert found["flags"] == ["units_merged"]
    assert engine.batches == [4]
    (whole,) = answered(request_of(item_of(TEXT), segmentation={"type": "span", "max_units": None}), form)
    assert whole["flags"] == []


def test_the_default_limit_of_units_is_24():
    """A completion of 30 tokens has 24 units unless it is said otherwise."""
    text = " ".join(f"w{number}" for number in range(30))
    segmentation = {"type": "token"}
    (found,) = answered(request_of(item_of(text), segmentation=segmentation, credit={"type": "prefix"}))
    assert len(found["units"]) == 24
    assert "units_merged" in found["flags"]


def test_characters_are_code_points():
    """Beyond the basic plane a character counts once, in offsets and in what comes back."""
    text = "☀ sun, 🌧️ rain."
    (found,) = answered(request_of(item_of(text)))
    assert [text[start:stop] for start, stop in found["unit_characters"]] == ["☀ sun,", " 🌧️ rain."]


# Groups


def test_advantages_are_those_of_grpo():
    """Densities over the group's mean of token means and the standard deviation of all densities."""
    items = [item_of(TEXT, group="p"), item_of("rain. fog", group="p", other_reward=0.25)]
    found = answered(request_of(*items, alpha=0.5, advantage={"type": "pooled", "ddof": 1, "epsilon": 0.01}))
    densities = []
    for one, item in zip(found, items, strict=True):
        tokens = len(one["token_rewards"])
        density = np.zeros(tokens)
        for (start, stop), worth in zip(one["units"], one["unit_values"], strict=True):
            density[start:stop] = 0.5 * tokens * worth / (stop - start)
        densities.append(density + 0.5 * one["utility_grand"] + item.get("other_reward", 0.0))
    mean, spread = np.mean([d.mean() for d in densities]), np.concatenate(densities).std(ddof=1)
    for one, density in zip(found, densities, strict=True):
        assert one["token_advantages"] == pytest.approx(((density - mean) / (spread + 0.01)).tolist(), abs=1e-9)


def test_completions_of_equal_prompts_are_a_group():
    """Without groups prompts are: texts as they are, and messages by role and content."""
    messages = [{"role": "user", "content": "weather?"}]
    items = [item_of(TEXT), item_of(TEXT), item_of(TEXT, messages), item_of(TEXT, "other?"), item_of(TEXT, messages)]
    found = answered(request_of(*items, advantage={"type": "pooled"}, expect={"group_size": 2}))
    assert [one["status"] for one in found] == ["ok", "ok", "ok", "error", "ok"]
    assert found[3]["error"]["code"] == "group_size_mismatch"
    assert found[3]["error"]["pointer"] == "/items/3/group"


def test_unusual_groups_are_flagged():
    """One completion, no contrast, and a lost one each leave a flag."""
    items = [
        item_of(TEXT, "alone?"),
        item_of("nothing", "dull?"),
        item_of("nothing", "dull?"),
        item_of(TEXT),
        item_of("fog"),
        item_of("doom"),
    ]
    found = answered(request_of(*items, advantage={"type": "pooled"}))
    assert found[0]["flags"] == ["single_response"]
    assert [one["flags"] for one in found[1:3]] == [["degenerate_group"]] * 2
    assert found[1]["token_advantages"] == [0.0]
    assert [one["flags"] for one in found[3:5]] == [["group_incomplete"]] * 2
    assert found[5]["error"]["code"] == "non_finite_utility"


def test_a_lost_completion_may_take_its_group_with_it():
    """`incomplete_group: error`: the others of the group fail, and those of other groups do not."""
    items = [item_of(TEXT, group=1), item_of("doom", group=1), item_of(TEXT, group=2)]
    found = answered(request_of(*items, incomplete_group="error"))
    assert [one.get("error", {}).get("code") for one in found] == ["group_incomplete", "non_finite_utility", None]
