import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditd.credit.span_credit import SpanBatch
from creditd.wire.limits import MAX_CELLS, RequestLimits
from creditd.wire.scar import ScarSolveRequest, ScarSolveResponse
from creditd.wire.scar_items import span_request
from creditd.wire.scar_results import credited_item
from creditd.wire.scar_solve import solve_results, solve_spans
from creditd.wire.validation import WireError

LIMITS = RequestLimits()
MOST_ROUNDS = 1000


def utility(row, coalition):
    """A game without any symmetry for each item; NaN for what is refused."""
    chosen = np.flatnonzero(coalition).tolist()
    if sum(chosen) == 5 * (row % 2):
        return math.nan
    return 0.25 * row + sum(0.3 + 0.1 * unit for unit in chosen) + 0.05 * (len(chosen) % 3)


def empty_of(prompt):
    """v(∅) of a prompt; one of them has none."""
    return math.nan if prompt == 3 else 0.125 * prompt


def asked(items, **options):
    """A request and its answer."""
    request = ScarSolveRequest.model_validate({"items": items, "segmentation": {"type": "given"}, **options})
    return request, solve_spans(request, LIMITS)


def conversation(items, **options):
    """The last answer, after whatever is asked for is evaluated, and how many there were."""
    items = [dict(item) for item in items]
    for turn in range(MOST_ROUNDS):
        request, answer = asked(items, **options)
        if answer.done:
            return solve_results(request, answer), turn
        for row, (item, found) in enumerate(zip(items, answer.items, strict=True)):
            if found is None:
                continue
            item["coalitions"] = [*item.get("coalitions", []), *(np.flatnonzero(one).tolist() for one in found.next)]
            worths = [utility(row, one) for one in found.next]
            item["utilities"] = [*item.get("utilities", []), *(None if math.isnan(one) else one for one in worths)]
            for wanted, name, worth in (
                (found.needs_empty, "empty", empty_of(item["prompt_id"])),
                (found.needs_grand, "grand", 0.5 * row),
            ):
                if wanted:
                    item.update({f"{name}_refused": True} if math.isnan(worth) else {f"utility_{name}": worth})
    raise AssertionError("the conversation does not end")


def directly(items, **options):
    """What the arithmetic says when it is told whatever it asks for at once."""
    request = ScarSolveRequest.model_validate({"items": items, "segmentation": {"type": "given"}, **options})
    spans = span_request(request, LIMITS)
    batch = SpanBatch(spans.items, spans.prompts, spans.groups, spans.options, spans.rejected)
    while not batch.done:
        questions = batch.ask()
        for prompt in questions.empty:
            row = spans.prompts.tolist().index(prompt)
            batch.tell_empty(prompt, empty_of(items[row]["prompt_id"]))
        for row, coalitions in questions.coalitions:
            whole = coalitions.shape[1] == 0
            batch.tell(row, coalitions, np.array([0.5 * row if whole else utility(row, one) for one in coalitions]))
    return batch.answer()


@st.composite
def completions(draw):
    """Completions without a text: some tokens masked, units of one or two tokens, KL terms, groups of prompts."""
    items = []
    for _ in range(draw(st.integers(1, 4))):
        mask = draw(st.lists(st.sampled_from([True, True, True, False]), max_size=7))
        units, start = [], None
        for place, trainable in enumerate([*mask, False]):
            if start is not None and (not trainable or place - start == 2):
                units.append([start, place])
                start = None
            if trainable and start is None:
                start = place
        kl = draw(st.none() | st.just([0.125 * place for place in range(len(mask))]))
        prompt = draw(st.integers(0, 3))
        items.append(
            {
                "n_tokens": len(mask),
                "completion_mask": mask,
                "units": units,
                "kl": kl,
                "prompt_id": prompt,
                "group": prompt // 2,
            }
        )
    return items


@given(
    completions(),
    st.sampled_from(["auto", "shapley", "owen", "prefix", "leave_one_out", "uniform"]),
    st.integers(1, 9),
    st.sampled_from([1.0, 0.5, 0.0]),
)
def test_a_conversation_ends_in_what_the_arithmetic_says(items, credit, batch_size, alpha):
    """To the last bit, whatever is refused and however few coalitions an answer names; and the law holds."""
    options = {"credit": {"type": credit}, "alpha": alpha, "advantage": {"type": "pooled"}}
    try:
        found, _ = conversation(items, batch_size=batch_size, **options)
    except WireError:
        pytest.fail("nothing of it is wrong")
    expected = directly(items, **options)
    for item, one, credit_of in zip(items, found, expected.items, strict=True):
        if credit_of is None:
            assert one["status"] == "error"
            continue
        assert str(one | {"id": None}) == str({"id": None, **credited_item(credit_of), **_counts(one)})
        empty = 0.0 if one["utility_empty"] is None else one["ledger"]["alpha"] * one["utility_empty"]
        trainable = np.array(item["completion_mask"], dtype=np.bool_)
        kl = 0.0 if item["kl"] is None else float(np.array(item["kl"])[trainable].sum())
        total = kl + one["utility_grand"] - empty
        assert one["ledger"]["total"] == pytest.approx(total, abs=1e-9)
        assert one["token_rewards"].sum() == pytest.approx(total if trainable.any() else 0.0, abs=1e-9)


def _counts(one):
    return {"planned": one["planned"], "evaluations": one["evaluations"]}


def test_an_answer_names_no_more_than_a_document_holds():
    """Coalitions of all items together are bounded; what is left over is asked for later."""
    item = {"n_tokens": 1000, "units": [[place, place + 1] for place in range(1000)]}
    _, answer = asked(
        [item] * 12,
        batch_size=65_536,
        credit={"type": "prefix"},
        estimator={"budget": 2000},
        segmentation={"type": "given", "max_units": None},
    )
    sizes = [found.next.size for found in answer.items]
    assert sum(sizes) <= MAX_CELLS
    assert (sizes[0], 0 < sizes[8] < sizes[0], sizes[9:]) == (1_000_000, True, [0, 0, 0])


def test_answers_are_in_the_schema():
    """Open, solved and failed items are documents of the published response."""
    known = {"coalitions": [[0]], "utilities": [1.0], "utility_empty": 0.0}
    items = [{"n_tokens": 1, "units": [[0, 1]], **one} for one in (known, {"id": 7}, {"kl": [math.inf]})]
    for group, statuses in ((items, ["open", "open", "error"]), ([items[0], items[2]], ["ok", "error"])):
        request, answer = asked(group)
        results = solve_results(request, answer)
        assert [one["status"] for one in results] == statuses
        document = {
            "request_id": "r",
            "service": {"version": "0", "methods": 1},
            "usage": dict.fromkeys(
                ("evaluations", "from_cache", "tokens_computed", "tokens_naive", "tokens_spliced"), 0
            )
            | {"engine_s": 0.0, "queue_s": 0.0},
            "done": answer.done,
            "items": [
                {name: list(value) if isinstance(value, tuple) else value for name, value in _plain(one).items()}
                for one in results
            ],
        }
        ScarSolveResponse.model_validate(document, strict=False)


def _plain(item):
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in item.items()}


def test_of_several_values_of_an_empty_completion_the_first_counts():
    item = {"n_tokens": 1, "units": [[0, 1]], "prompt_id": 1, "coalitions": [[0]], "utilities": [1.0]}
    request, answer = asked([{**item, "utility_empty": 0.25}, {**item, "utility_empty": 0.75}, item])
    assert answer.done
    assert [one["utility_empty"] for one in solve_results(request, answer)] == [0.25] * 3
