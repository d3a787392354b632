"""`POST /v1/credit/scar/solve`: the caller evaluates, and the numbers are those of a model of the same opinion."""

import math
import tracemalloc

import numpy as np
import pytest

from creditd.credit.absent_units import RenderedUnits
from server.model_services import with_models
from server.running import on_service, running
from server.scar_calls import (
    FORMATS,
    SCAR,
    SCAR_SOLVE,
    TEXT,
    assert_lawful,
    document_of,
    item_of,
    request_of,
    say,
    scorer,
    tokens_of,
    value,
)

MOST_ROUNDS = 400
FILLERS = {"delete": "", "blank": " ", "mask_token": "<m>"}


def solvable(body):
    """The items of a request as this route takes them: prompts by their name, without the model."""
    names = {}
    items = []
    for item in body["items"]:
        prompt = str(item["prompt"])
        known = {name: entry for name, entry in item.items() if name != "prompt"}
        items.append({**known, "prompt_id": names.setdefault(prompt, len(names))})
    return {**{name: entry for name, entry in body.items() if name != "model"}, "items": items}


def told(body, request, answer):
    """The items of the next request: those of the last one with what the answer asks for."""
    filler = FILLERS[body.get("absent", {"type": "delete"})["type"]]
    rows = zip(body["items"], request["items"], answer["items"], strict=True)
    return {**request, "items": [{**known, **learned(item, known, found, filler)} for item, known, found in rows]}


def learned(item, known, found, filler):
    """What is known of an item beside what was, once what an answer asks for is evaluated."""
    if found["status"] != "open":
        return {}
    rendered = RenderedUnits(item["completion"], np.array(found["unit_characters"]).reshape(-1, 2), filler)
    present = [np.isin(np.arange(len(found["units"])), units) for units in found["next"]]
    worths = [value(item["prompt"], rendered.text(row)) for row in present]
    new = {
        "coalitions": [*known.get("coalitions", []), *found["next"]],
        "utilities": [*known.get("utilities", []), *(None if math.isnan(worth) else worth for worth in worths)],
    }
    for name, text in (("empty", filler), ("grand", item["completion"])):
        if found[f"needs_{name}"]:
            worth = value(item["prompt"], text)
            new |= {f"{name}_refused": True} if math.isnan(worth) else {f"utility_{name}": worth}
    return new


async def solved(services, body, form="json", **options):
    """The last answer of a conversation with services in turn, and how many answers there were."""
    request = {**solvable(body), **options}
    for turn in range(MOST_ROUNDS):
        answer = document_of(await say(services[turn % len(services)], request, form, SCAR_SOLVE), SCAR_SOLVE)
        if answer["done"]:
            return answer["items"], turn
        progress = [item for item in answer["items"] if item["status"] == "open"]
        assert any(item["next"] or item["needs_empty"] or item["needs_grand"] for item in progress)
        request = told(body, request, answer)
    raise AssertionError("the conversation does not end")


def both(body, form="json", **options):
    """The items of the route that asks a model, and of the conversation."""

    async def ask(service):
        by_model = document_of(await say(service, body, form))["items"]
        by_caller, _ = await solved([service], body, form, **options)
        return by_model, by_caller

    return on_service(ask, with_models(scorer()))


def numbers_of(item):
    """All of an item but what only one of the routes says, and where an error lies."""
    found = {name: entry for name, entry in item.items() if name not in {"planned", "evaluations", "error"}}
    return found | ({"error": item["error"]["code"]} if item["status"] == "error" else {})


MANY = ", ".join(f"word{number} sun" for number in range(10)) + "."
EVERYTHING = [
    item_of(TEXT, id="a", group=1, kl=[0.1] * 10, other_reward=0.25),
    item_of(MANY, id="b", group=1),
    item_of(
        "sun <x> wind. snow", "tool?", id="c", group=2, completion_mask=[True, False, False, False, True, True, True]
    ),
    item_of("charm <curse> sun, fog", "tool?", group=2, completion_mask=[True, False, False, False, True, True, True]),
    item_of("curse. charm", "tool?", group=2),
    item_of("", "tool?", group=2),
    item_of("doom, sun", "tool?", group=2),
    item_of("rain. fog", "silence?", group=3),
    item_of("rain fog", "loud?", group=3, completion_mask=[False, False], kl=[1.0, 1.0]),
]
"""Everything that can happen to a completion."""
CASES = {
    "auto": {},
    "shapley": {"credit": {"type": "shapley"}, "estimator": {"type": "permutations", "budget": 200}},
    "stratified": {"credit": {"type": "shapley"}, "estimator": {"type": "stratified", "budget": 200, "seed": 3}},
    "early stopping": {"estimator": {"type": "stratified", "budget": 900, "target_standard_error": 0.2}},
    "owen": {"credit": {"type": "owen"}, "absent": {"type": "blank"}},
    "prefix": {"credit": {"type": "prefix"}, "absent": {"type": "mask_token", "text": "<m>"}},
    "leave_one_out": {"credit": {"type": "leave_one_out"}},
    "uniform": {"credit": {"type": "uniform"}},
    "merged": {"segmentation": {"type": "token", "max_units": 4}},
    "strict": {"incomplete_group": "error"},
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("case", CASES)
def test_the_numbers_are_those_of_a_model_to_the_last_bit(case, form):
    """Whatever happens to a completion, both routes say the same of it."""
    body = request_of(*EVERYTHING, alpha=0.7, advantage={"type": "pooled"}, **CASES[case])
    by_model, by_caller = both(body, form)
    assert [numbers_of(one) for one in by_caller] == [numbers_of(one) for one in by_model]
    for item, one in zip(body["items"], by_caller, strict=True):
        if one["status"] == "ok":
            assert_lawful(item, one, 0.7)
            assert one["evaluations"] <= one["planned"]


def test_services_may_take_turns_and_batches_may_be_of_any_size():
    """Nothing is kept, and how many coalitions an answer names changes no bit."""
    body = request_of(*EVERYTHING[:3], estimator={"type": "permutations", "budget": 64})

    async def ask(service):
        async with running() as other:
            few, many_turns = await solved([service, other], body, batch_size=7)
        whole, one_turn = await solved([service], body)
        return few, whole, many_turns, one_turn

    few, whole, many_turns, one_turn = on_service(ask)
    assert few == whole
    assert (many_turns > 5, one_turn) == (True, 1)


def first_answer(*items, **options):
    """What the route says of completions of which nothing is known."""

    async def ask(service):
        return document_of(await say(service, {"items": list(items), **options}, path=SCAR_SOLVE), SCAR_SOLVE)

    return on_service(ask)


def test_what_an_open_completion_lacks_is_said():
    """Coalitions without the empty one, v(∅) once per prompt, v(P) of a completion without units, the units."""
    items = [
        {"id": "a", "prompt_id": "p", "completion": "sun, rain"},
        {"id": "b", "prompt_id": "p", "completion": "fog"},
        {"id": "c", "prompt_id": "q", "completion": ""},
    ]
    answer = first_answer(*items)
    assert answer["done"] is False
    first, second, third = answer["items"]
    assert [one["status"] for one in answer["items"]] == ["open"] * 3
    assert sorted(first["next"]) == [[0], [0, 1], [1]]
    assert (first["unit_characters"], first["planned"], first["evaluations"]) == ([[0, 4], [4, 9]], 4, 0)
    assert (first["needs_empty"], second["needs_empty"], third["needs_empty"]) == (True, False, True)
    assert (second["next"], third["next"]) == ([[0]], [])
    assert (first["needs_grand"], third["needs_grand"]) == (False, True)
    assert all("token_rewards" not in one for one in answer["items"])


def test_frozen_text_makes_the_empty_coalition_another_text():
    """Then it is among the next ones, beside v(∅) of the prompt."""
    item = {"completion": "sun <x>", "token_offsets": tokens_of("sun <x>"), "completion_mask": [True] + [False] * 3}
    (found,) = first_answer(item)["items"]
    assert sorted(found["next"]) == [[], [0]]
    assert found["needs_empty"] is True


def test_prompts_are_told_apart_by_name_by_group_or_not_at_all():
    """v(∅) is asked once for each prompt_id, else once for each group, else of each item."""
    one = {"completion": "sun"}

    def asked(*names):
        items = [{**one, **name} for name in names]
        return [item["needs_empty"] for item in first_answer(*items)["items"]]

    assert asked({"prompt_id": 1}, {"prompt_id": 2}, {"prompt_id": 1}) == [True, True, False]
    assert asked({"group": 1}, {"group": 2}, {"group": 1}) == [True, True, False]
    assert asked({"group": 1, "prompt_id": 1}, {"group": 1, "prompt_id": 2}) == [True, True]
    assert asked({}, {}) == [True, True]


def test_a_completion_without_a_text_has_units_alone():
    """Token ranges in, token rewards out; characters are of no interest."""
    item = {"n_tokens": 5, "units": [[0, 2], [3, 5]], "completion_mask": [True, True, False, True, True]}
    known = {"coalitions": [[], [0], [1], [0, 1]], "utilities": [0.5, 1.0, 2.0, 4.0], "utility_empty": 0.25}
    answer = first_answer({**item, **known}, segmentation={"type": "given"}, alpha=0.5)
    (found,) = answer["items"]
    assert answer["done"] is True
    assert found["unit_characters"] is None
    assert found["unit_values"] == [1.25, 2.25]
    assert found["token_rewards"] == pytest.approx([0.0, 0.625, 0.0, 0.0, 1.125 + 0.5 * 4.0 + 0.125])
    assert_lawful(item, found, 0.5)


def test_what_no_plan_asks_for_changes_nothing():
    """More utilities than needed, the empty coalition as v(∅), and v(P) by its own name count as if they were asked."""
    item = {"completion": "sun, rain, fog"}
    needed = {"coalitions": [[0], [0, 1], [0, 1, 2]], "utilities": [1.0, 2.0, 4.0], "utility_empty": 0.5}
    more = {"coalitions": [[], [2], [0], [0, 1], [1, 2]], "utilities": [0.5, 7.0, 1.0, 2.0, None], "utility_grand": 4.0}
    options = {"credit": {"type": "prefix"}}
    (one,), (other,) = (first_answer({**item, **known}, **options)["items"] for known in (needed, more))
    assert one["status"] == "ok"
    assert one == other


@pytest.mark.parametrize("refused", [None, math.nan, math.inf, 1e95])
def test_what_is_no_number_is_refused(refused):
    """A coalition, v(∅) and v(P), refused by null or by what is no number."""
    item = {"completion": "sun, rain"}
    of_two = {"coalitions": [[0], [1], [0, 1]], "utility_empty": 0.0}
    (coalition,) = first_answer({**item, **of_two, "utilities": [1.0, refused, 2.0]})["items"]
    assert (coalition["status"], coalition["flags"], coalition["token_rewards"]) == ("ok", ["fallback_return"], [0, 2])
    if refused is not None:
        of_two["utility_empty"] = refused
    else:
        of_two = {**of_two, "utility_empty": None, "empty_refused": True}
    (empty,) = first_answer({**item, **of_two, "utilities": [1.0, 1.0, 2.0]})["items"]
    assert (empty["ledger"]["alpha"], empty["utility_empty"], empty["token_rewards"]) == (0.0, None, [0.0, 2.0])


BAD_KNOWN = {
    "another number of utilities": ({"coalitions": [[0]], "utilities": []}, "shape_mismatch", "utilities"),
    "no such unit": ({"coalitions": [[0], [2]], "utilities": [0.0, 0.0]}, "invalid_request", "coalitions/1"),
    "two utilities of one": ({"coalitions": [[0], [0]], "utilities": [0.0, 1.0]}, "invalid_request", "coalitions/1"),
    "two of all units": (
        {"coalitions": [[0, 1]], "utilities": [0.0], "utility_grand": 1.0},
        "invalid_request",
        "utility_grand",
    ),
    "two of no unit": (
        {"coalitions": [[]], "utilities": [0.0], "utility_empty": 1.0},
        "invalid_request",
        "utility_empty",
    ),
    "refused and known": ({"utility_empty": 1.0, "empty_refused": True}, "invalid_request", "utility_empty"),
    "v(P) refused": ({"coalitions": [[0, 1]], "utilities": [None]}, "non_finite_utility", "utilities"),
    "v(P) refused by name": ({"grand_refused": True}, "non_finite_utility", "utility_grand"),
    "no text": ({"completion": None}, "invalid_request", "completion"),
    "a text and a number": ({"n_tokens": 2}, "invalid_request", "completion"),
    "a number without a cut": ({"completion": None, "n_tokens": 2}, "invalid_request", "completion"),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("case", BAD_KNOWN)
def test_a_wrong_item_fails_alone(case, form):
    """What contradicts itself costs the item, with the place of it; the others go on."""
    bad, code, place = BAD_KNOWN[case]
    sound = {"completion": "sun, rain"}
    body = {"items": [sound, {**sound, **bad, "id": "bad"}, sound]}

    async def ask(service):
        return document_of(await say(service, body, form, SCAR_SOLVE), SCAR_SOLVE)

    answer = on_service(ask)
    assert [one["status"] for one in answer["items"]] == ["open", "error", "open"]
    failed = answer["items"][1]
    assert (failed["id"], failed["error"]["code"], failed["error"]["pointer"]) == ("bad", code, f"/items/1/{place}")
    assert "sun" not in failed["error"]["detail"]


def test_units_that_there_are_not_have_no_coalitions():
    """A completion without units is told v(P) by its own name."""
    wrong = {"completion": "", "coalitions": [[]], "utilities": [1.0]}
    right = {"completion": "", "utility_grand": 1.0, "utility_empty": 0.25}
    answer = first_answer(wrong, right)
    assert answer["items"][0]["error"]["pointer"] == "/items/0/coalitions"
    assert answer["items"][1]["ledger"]["total"] == 0.75


@pytest.mark.parametrize(
    ("body", "code", "pointer"),
    [
        ({"items": [{"completion": "a"}], "credit": {"type": "attention"}}, "invalid_request", "/credit"),
        ({"items": [{"completion": "a"}], "model": "rm"}, "unknown_field", "/model"),
        ({"items": [{"completion": "a", "prompt": "?"}]}, "unknown_field", "/items/0/prompt"),
        ({"items": [{"completion": "a"}], "dry_run": True}, "unknown_field", "/dry_run"),
        (
            {"items": [{"completion": "a", "prompt_id": 1}, {"completion": "a"}]},
            "invalid_request",
            "/items/1/prompt_id",
        ),
        ({"items": [{"completion": "a"}], "batch_size": 0}, "invalid_request", "/batch_size"),
    ],
)
def test_what_has_no_place_here_is_refused(body, code, pointer):
    """Attention needs a model, and there is none; a name of the prompt is for all items or for none."""

    async def ask(service):
        return (await service.post(body, SCAR_SOLVE)).json()

    problem = on_service(ask)
    assert (problem["status"], problem["code"], problem["errors"][0]["pointer"]) == (422, code, pointer)


def test_tokens_that_all_share_all_segments_take_little_memory():
    """Twenty thousand tokens, each on the same twenty thousand segments, are one unit; their pairs are never made."""
    n = 20_000
    item = {"completion": ",a" * n, "token_offsets": [[0, 2 * n]] * n}
    tracemalloc.start()
    try:
        found = first_answer(item)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (found["items"][0]["status"], found["items"][0]["units"]) == ("open", [[0, n]])
    assert peak < 200_000_000


def test_what_went_wrong_is_counted_and_logged(log):
    """Items, codes and flags reach the counters and the log, and nothing of a text does."""
    fallback = {"completion": "zyxwvu", "coalitions": [[0]], "utilities": [1.0], "empty_refused": True}
    items = [fallback, {"completion": "zyxwvu", "coalitions": [[7]], "utilities": [0.0]}]

    async def ask(service):
        await service.post({"items": items}, SCAR_SOLVE)
        return (await service.client.get("/metrics")).text

    metrics = on_service(ask)
    assert (log.requests[0]["items"], log.requests[0]["failed"]) == (2, 1)
    assert log.requests[0]["flags"] == {"fallback_return": 1}
    assert "zyxwvu" not in "".join(log.texts)
    for status in ("ok", "error"):
        assert f'creditd_items_total{{route="{SCAR_SOLVE}",status="{status}"}} 1.0' in metrics
    assert 'creditd_item_errors_total{code="invalid_request"} 1.0' in metrics
    assert SCAR not in metrics.replace(SCAR_SOLVE, "")
