import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditd.credit.span_credit import SpanBatch
from creditd.wire import codec
from creditd.wire.errors import ErrorCode
from creditd.wire.limits import RequestLimits
from creditd.wire.scar import ScarRequest, ScarSolveRequest
from creditd.wire.scar_items import MAX_SPAN_CELLS, planned_at_most, pointer_to, span_request
from creditd.wire.validation import WireError

LIMITS = RequestLimits()
NAN = float("nan")


def parsed(*items, limits=LIMITS, **options):
    """The completions of a request to the route without a model."""
    return span_request(ScarSolveRequest.model_validate({"items": list(items), **options}), limits)


def with_model(*items, **options):
    """The completions of a request to the route with one."""
    return span_request(ScarRequest.model_validate({"model": "rm", "items": list(items), **options}), LIMITS)


def units(count, **fields):
    """A completion of so many units of one token, without a text."""
    return {"n_tokens": count, "units": [[place, place + 1] for place in range(count)], **fields}


def given_units(*items, max_units=None, limits=LIMITS, **options):
    """The completions of a request that gives its units."""
    return parsed(*items, limits=limits, segmentation={"type": "given", "max_units": max_units}, **options)


def refused(*items, **options):
    """The code, pointer and sentence of a request that is refused as a whole."""
    with pytest.raises(WireError) as caught:
        given_units(*items, **options)
    (item,) = caught.value.items
    return item.code, item.pointer, item.detail


def test_choices_become_those_of_the_arithmetic():
    """Every choice of a request, with the wire's defaults and without."""
    options = parsed({"completion": "a"}).options
    assert (options.value, options.estimator.type, options.estimator.budget) == ("auto", "auto", 512)
    assert (options.alpha, options.ddof, options.group_size, options.fail_incomplete_groups) == (1.0, None, None, False)
    options = parsed(
        {"completion": "a"},
        credit={"type": "shapley"},
        estimator={"type": "exact", "budget": 9, "seed": 4},
        alpha=0.25,
        advantage={"type": "pooled", "ddof": 0, "epsilon": 0.5},
        expect={"group_size": 2},
        incomplete_group="error",
        limits=RequestLimits(units=7, evaluations=8),
    ).options
    assert (options.value, options.estimator.type, options.estimator.seed, options.alpha) == (
        "shapley",
        "exact",
        4,
        0.25,
    )
    assert (options.ddof, options.epsilon, options.group_size, options.fail_incomplete_groups) == (0, 0.5, 2, True)
    assert (options.most_units, options.most_evaluations) == (7, 8)


def test_equal_prompts_have_equal_numbers():
    """Texts by themselves, messages by role and content; groups are the prompts unless they have names."""
    a, b = [{"role": "user", "content": "a"}], [{"role": "system", "content": "a"}]
    items = [{"prompt": prompt, "completion": "x"} for prompt in ("a", a, b, "a", a)]
    found = with_model(*items)
    assert found.prompts.tolist() == found.groups.tolist() == [0, 1, 2, 0, 1]
    found = with_model(*({**item, "group": name} for item, name in zip(items, (7, "7", 7, 7, 7), strict=True)))
    assert found.prompts.tolist() == [0, 1, 2, 0, 1]
    assert found.groups.tolist() == [0, 1, 0, 0, 0]


def test_without_a_prompt_names_say_which_are_equal():
    """`prompt_id`, else the group, else each item is of its own prompt."""
    one = {"completion": "x"}
    assert parsed(one, one).prompts.tolist() == [0, 1]
    assert parsed({**one, "group": 3}, {**one, "group": 3}).prompts.tolist() == [0, 0]
    found = parsed({**one, "group": 3, "prompt_id": 1}, {**one, "group": 3, "prompt_id": 2})
    assert (found.prompts.tolist(), found.groups.tolist()) == ([0, 1], [0, 0])
    assert parsed({**one, "prompt_id": "p"}, {**one, "prompt_id": "p"}).groups.tolist() == [0, 0]


def test_a_buffer_is_what_the_list_is():
    """Offsets, masks, units, trees and KL terms as arrays give the same completions as lists do."""
    text = "ab, c."
    lists = {
        "prompt": "?",
        "completion": text,
        "token_offsets": [[0, 2], [2, 3], [3, 5], [5, 6]],
        "completion_mask": [True, True, False, True],
        "units": [[0, 1], [1, 2], [3, 4]],
        "tree": [[1, 2], [0, 3]],
        "kl": [0.5, 1.0, NAN, -1.0],
    }
    arrays = {name: np.array(entry) if isinstance(entry, list) else entry for name, entry in lists.items()}
    body = {"model": "rm", "segmentation": {"type": "given"}, "credit": {"type": "owen"}}
    requests = (
        ScarRequest.model_validate_json(json.dumps({**body, "items": [lists]})),
        ScarRequest.model_validate(codec.decode(codec.encode({**body, "items": [arrays]}))),
    )
    one, other = (span_request(request, LIMITS).items[0] for request in requests)
    for found in (one, other):
        assert found.units.tokens.tolist() == lists["units"]
        assert found.units.trainable.tolist() == lists["completion_mask"]
        assert found.tree.tolist() == lists["tree"]
    assert one.kl.tobytes() == other.kl.tobytes()


def test_each_wrong_item_is_named_with_its_row():
    """Rejected items leave the others, in order; each has one error, and its pointer names a value."""
    items = [
        {"completion": "a", "kl": [0.0, 0.0]},
        {"completion": "a"},
        {"completion": "a", "other_reward": NAN},
        {"completion": "a", "kl": [NAN]},
    ]
    found = parsed(*items)
    assert [item is None for item in found.items] == [True, False, True, True]
    assert [(error.row, error.code, pointer_to(error)) for error in found.rejected] == [
        (0, "shape_mismatch", "/items/0/kl"),
        (2, "non_finite_value", "/items/2/other_reward"),
        (3, "non_finite_value", "/items/3/kl/0"),
    ]
    assert found.rejected[2].detail == "kl is NaN; expected a finite number of magnitude at most 1e+90"


def test_tokens_of_all_items_are_bounded():
    """What an item says of itself that cannot be true fails the item, and counts for nothing."""
    limits = RequestLimits(tokens_per_set=10, token_advantages=15)
    code, pointer, detail = refused(units(10), units(6), limits=limits)
    assert (code, pointer) == (ErrorCode.BUDGET_EXCEEDED, "/items")
    assert detail == "got 16 tokens; expected at most 15 per request"
    found = given_units(units(10), {"n_tokens": 11, "units": []}, {"n_tokens": -1, "units": []}, limits=limits)
    assert [error.detail for error in found.rejected] == [
        "got 11 tokens; expected 0 to 10",
        "got -1 tokens; expected 0 to 10",
    ]


def test_segments_that_are_tokens_are_bounded():
    """Without offsets as many tokens may be as with them."""
    found = parsed({"completion": "a, b, c"}, {"completion": "a, b"}, limits=RequestLimits(tokens_per_set=2))
    assert [error.detail for error in found.rejected] == ["got 3 segments; expected at most 2"]


# Costs


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=4),
    st.sampled_from(["auto", "shapley", "owen", "prefix", "leave_one_out", "uniform"]),
    st.sampled_from(["auto", "exact", "stratified", "permutations"]),
    st.integers(1, 3000),
)
def test_no_plan_is_larger_than_was_thought_before_it_was_made(sizes, credit, estimator, budget):
    """What completions may cost at most is told by numbers of units alone; where all are equal, closely."""
    options = parsed(
        {"completion": ""},
        credit={"type": credit},
        estimator={"type": estimator if credit in {"auto", "shapley"} else "auto", "budget": budget},
        limits=RequestLimits(evaluations=2048),
    ).options
    items = [given_units(units(size)).items[0] for size in sizes]
    numbers = np.zeros(len(sizes), dtype=np.int64)
    planned = SpanBatch(items, numbers, numbers, options).planned.tolist()
    bounds = [planned_at_most(size, max(sizes), options, has_tree=False) for size in sizes]
    assert all(one <= bound for one, bound in zip(planned, bounds, strict=True))
    if len(set(sizes)) == 1 and planned[0]:
        assert bounds[0] <= planned[0] + 2 * sizes[0] + 2


def test_a_plan_that_is_too_large_is_refused_before_it_is_made():
    """One completion fails alone; many of them fail the request, with what they would cost."""
    budget = {"credit": {"type": "shapley"}, "estimator": {"type": "permutations", "budget": 1 << 16}}
    found = given_units(units(4000), units(3), **budget)
    assert [(error.code, pointer_to(error)) for error in found.rejected] == [("budget_exceeded", "/items/0/units")]
    assert found.items[1] is not None
    found = parsed({"completion": "a," * 4000}, segmentation={"type": "span", "max_units": None}, **budget)
    assert [(error.code, pointer_to(error)) for error in found.rejected] == [("budget_exceeded", "/items/0/completion")]
    code, pointer, detail = refused(*[units(500)] * 2, **budget)
    assert (code, pointer) == (ErrorCode.BUDGET_EXCEEDED, "")
    assert (
        detail == f"up to 65536000 units times evaluations are planned; expected at most {MAX_SPAN_CELLS} per request"
    )


def test_four_thousand_tokens_have_prefix_values():
    """A long completion is within the limits of what a request may cost."""
    found = given_units(units(4000), credit={"type": "prefix"}, estimator={"budget": 5000})
    assert found.rejected == ()
    batch = SpanBatch(found.items, found.prompts, found.groups, found.options)
    assert batch.planned.tolist() == [4001]


def test_the_work_ends_where_nobody_waits():
    """The checkpoint is asked before each item."""
    calls = []

    def checkpoint():
        calls.append(1)
        if len(calls) == 3:
            raise TimeoutError

    request = ScarSolveRequest.model_validate({"items": [{"completion": "a"}] * 9})
    with pytest.raises(TimeoutError):
        span_request(request, LIMITS, checkpoint)
    assert len(calls) == 3
