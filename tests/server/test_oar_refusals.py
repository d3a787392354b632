"""What `/v1/credit/oar` refuses, of an item and of a request, and what happens when nobody waits or nobody answers."""

import json
import threading

import anyio
import pytest

from server.oar_calls import (
    CURSE,
    DOOM,
    FORMATS,
    GIVEN,
    answered,
    ask,
    given_item,
    given_request,
    item_of,
    policy,
    problem,
    request_of,
    say,
    with_policies,
)
from server.running import OAR, PATIENCE_S, on_service

NAN = float("nan")
HASHES = {"parser": {"type": "hashes"}}
SOUND = item_of([7, 8, 10, 13])
TEXT = "2+2 #### 4"
OFFSETS = [[place, place + 1] for place in range(len(TEXT))]
CHARACTERS = {"prompt_ids": [1], "completion_ids": list(map(ord, TEXT)), "advantage": 1.0}

BAD_ITEMS = {
    "no prompt": ({"prompt_ids": None}, {}, "invalid_request", "prompt_ids"),
    "a prompt of no token": ({"prompt_ids": []}, {}, "shape_mismatch", "prompt_ids"),
    "no completion": ({"completion_ids": None}, {}, "invalid_request", "completion_ids"),
    "a short mask": ({"completion_mask": [True] * 3}, {}, "shape_mismatch", "completion_mask"),
    "a long mask": ({"completion_mask": [True] * 5}, {}, "shape_mismatch", "completion_mask"),
    "an answer beyond the end": ({"answer": [3, 5]}, {}, "shape_mismatch", "answer"),
    "an answer before the beginning": ({"answer": [-1, 2]}, {}, "shape_mismatch", "answer"),
    "an answer of no token": ({"answer": [3, 3]}, {}, "shape_mismatch", "answer"),
    "an answer backwards": ({"answer": [3, 2]}, {}, "shape_mismatch", "answer"),
    "an answer far away": ({"answer": [2**61, 2**62]}, {}, "shape_mismatch", "answer"),
    "an answer within the reasoning": ({"reasoning": [0, 4]}, {}, "shape_mismatch", "answer"),
    "a reasoning beyond the end": ({"reasoning": [0, 9]}, {}, "shape_mismatch", "reasoning"),
    "an advantage of NaN": ({"advantage": NAN}, {}, "non_finite_value", "advantage"),
    "an infinite advantage": ({"advantage": float("-inf")}, {}, "non_finite_value", "advantage"),
    "a huge advantage": ({"advantage": 1e91}, {}, "invalid_request", "advantage"),
    "no advantage": ({"advantage": None}, {}, "invalid_request", "advantage"),
    "sensitivities that nobody asked for": ({"sensitivities": [1.0] * 4}, {}, "invalid_request", "sensitivities"),
    "a text that nobody reads": ({"completion": "abcd"}, {}, "invalid_request", "completion"),
    "offsets that nobody reads": ({"token_offsets": [[0, 1]] * 4}, {}, "invalid_request", "token_offsets"),
    "a token that the policy does not have": (
        {"completion_ids": [7, 8, 2**21, 1]},
        {},
        "invalid_request",
        "completion_ids",
    ),
    "too long": ({"prompt_ids": [1] * 40}, {}, "context_exceeded", "completion_ids"),
    "a sensitivity of NaN": ({"completion_ids": [7, CURSE, 7, 7]}, {}, "non_finite_utility", "completion_ids"),
}
BAD_TEXTS = {
    "an answer that a parser finds": ({"answer": [9, 10]}, HASHES, "invalid_request", "answer"),
    "a reasoning that a parser finds": ({"reasoning": [0, 4]}, HASHES, "invalid_request", "reasoning"),
    "a text without offsets": ({"completion": TEXT}, HASHES, "invalid_request", "token_offsets"),
    "offsets without a text": ({"token_offsets": OFFSETS}, HASHES, "invalid_request", "completion"),
    "too few offsets": ({"completion": TEXT, "token_offsets": OFFSETS[:9]}, HASHES, "shape_mismatch", "token_offsets"),
    "offsets backwards": (
        {"completion": TEXT, "token_offsets": OFFSETS[::-1]},
        HASHES,
        "shape_mismatch",
        "token_offsets",
    ),
    "offsets beyond the text": (
        {"completion": TEXT[:5], "token_offsets": OFFSETS},
        HASHES,
        "shape_mismatch",
        "token_offsets",
    ),
    "a token without text": (
        {"completion_ids": [0xD800] * len(TEXT)},
        HASHES,
        "invalid_request",
        "completion_ids",
    ),
}
BAD_GIVEN = {
    "no sensitivities": ({"sensitivities": None}, GIVEN, "invalid_request", "sensitivities"),
    "a null among them": ({"sensitivities": [1.0, None, 2.0]}, GIVEN, "non_finite_value", "sensitivities/1"),
    "NaN among them": ({"sensitivities": [1.0, 3.0, NAN]}, GIVEN, "non_finite_value", "sensitivities/2"),
    "infinity among them": ({"sensitivities": [float("inf"), 3.0]}, GIVEN, "non_finite_value", "sensitivities/0"),
    "other tokens": ({"completion_ids": [7, 8]}, GIVEN, "shape_mismatch", "completion_ids"),
    "no text for a parser": ({}, {**GIVEN, **HASHES}, "invalid_request", "completion"),
}
BAD = {**BAD_ITEMS, **BAD_TEXTS, **BAD_GIVEN}


def base_of(case):
    """A completion that is right, and a request about it, of the kind of a case."""
    if case in BAD_GIVEN:
        parsed = "parser" in BAD_GIVEN[case][1]
        text = {"completion": "a #### b", "token_offsets": [[0, 2], [2, 7], [7, 8]]} if parsed else {}
        return given_item([1.0, 2.0, 3.0], **text), given_request
    return (CHARACTERS if case in BAD_TEXTS else SOUND), request_of


def bad_of(case):
    """The wrong completion of a case."""
    sound, _ = base_of(case)
    bad = {**sound, **BAD[case][0]}
    text = ("completion", "token_offsets") if case == "no text for a parser" else ()
    return {key: value for key, value in bad.items() if key not in text}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("case", BAD)
def test_a_wrong_item_fails_alone(case, form):
    """Each failure that an item can have costs that item, with code, pointer and a sentence."""
    _, options, code, place = BAD[case]
    sound, request = base_of(case)
    bad = bad_of(case) | {"id": "bad"}
    found = answered(request(sound, bad, sound, **options), form, with_policies(policy(max_tokens=32)))
    assert [one["status"] for one in found] == ["ok", "error", "ok"]
    error = found[1]["error"]
    assert (found[1]["id"], error["code"], error["pointer"]) == ("bad", code, f"/items/1/{place}")
    assert error["detail"]
    assert "2+2" not in error["detail"]


@pytest.mark.parametrize("case", ["an answer backwards", "too few offsets", "NaN among them"])
def test_a_wrong_item_alone_is_refused_with_the_same_code(case):
    """A request of one wrong item is 422 with its code and pointer."""
    _, options, code, place = BAD[case]
    _, request = base_of(case)
    status, refused = problem(request(bad_of(case), **options))
    assert (status, refused["code"]) == (422, code)
    assert [(item["code"], item["pointer"]) for item in refused["errors"]] == [(code, f"/items/0/{place}")]
    assert refused["detail"].startswith("no item could be answered; the first: ")


REFUSED = {
    "unknown model": ({"model": "other"}, "unknown_model", "/model"),
    "a reward model": ({"model": "rm"}, "unknown_model", "/model"),
    "no model": ({"model": None}, "invalid_request", ""),
    "a model for given sensitivities": (GIVEN, "invalid_request", ""),
    "a version for given sensitivities": (
        {"model": None, "weight_version": "v0", **GIVEN},
        "invalid_request",
        "",
    ),
    "no such sensitivity": ({"sensitivity": {"type": "attention"}}, "invalid_request", "/sensitivity"),
    "noise of nothing": (
        {"sensitivity": {"type": "gradient", "noise_std": 0.0}},
        "invalid_request",
        "/sensitivity/noise_std",
    ),
    "no draw": (
        {"sensitivity": {"type": "gradient", "noise_samples": 0}},
        "invalid_request",
        "/sensitivity/noise_samples",
    ),
    "noise for perturbation": (
        {"sensitivity": {"type": "perturbation", "seed": 1}},
        "unknown_field",
        "/sensitivity/seed",
    ),
    "no such token": (
        {"sensitivity": {"type": "perturbation", "token_id": 2**30}},
        "invalid_request",
        "/sensitivity/token_id",
    ),
    "no such probe": ({"probe": {"type": "first"}}, "invalid_request", "/probe/type"),
    "no such parser": ({"parser": {"type": "xml"}}, "invalid_request", "/parser"),
    "a tag that is none": ({"parser": {"type": "tags", "answer_tag": "<a>"}}, "invalid_request", "/parser/answer_tag"),
    "one tag for both": ({"parser": {"type": "tags", "answer_tag": "think"}}, "invalid_request", "/parser"),
    "a quantile of 1": ({"reshape": {"quantile": 1.0}}, "invalid_request", "/reshape/quantile"),
    "a floor above 1": ({"reshape": {"floor": 1.5}}, "invalid_request", "/reshape/floor"),
    "beta below 0": ({"reshape": {"beta": -1.0}}, "invalid_request", "/reshape/beta"),
    "an unknown field": ({"utility": {"type": "max"}}, "unknown_field", "/utility"),
    "no item": ({"items": []}, "invalid_request", "/items"),
    "an id below 0": ({"items": [{**SOUND, "completion_ids": [-1]}]}, "invalid_request", "/items/0/completion_ids/0"),
    "a range of three": ({"items": [{**SOUND, "answer": [1, 2, 3]}]}, "invalid_request", "/items/0/answer"),
    "a group for some": ({"items": [SOUND, {**SOUND, "group": 1}]}, "invalid_request", "/items/0/group"),
    "rewards for some": (
        {"items": [item_of([7, 8], reward=1.0), item_of([7, 8])]},
        "invalid_request",
        "/items/1/advantage",
    ),
    "a reward and an advantage": (
        {"items": [item_of([7, 8], reward=1.0, advantage=1.0)]},
        "invalid_request",
        "/items/0/advantage",
    ),
    "k for GRPO": ({"advantage": {"type": "grpo", "k": 2}}, "invalid_request", "/advantage"),
    "a version of no letter": ({"weight_version": ""}, "invalid_request", "/weight_version"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_request_is_refused_before_the_policy_is_asked(case):
    """Each refusal has its code and a pointer, and costs nothing."""
    options, code, pointer = REFUSED[case]
    engine = policy()
    _, refused = problem({**request_of(SOUND), **options}, with_policies(engine))
    assert refused["code"] == code, refused
    assert refused["errors"][0]["pointer"] == pointer
    assert engine.measured == []


def test_a_reward_that_nobody_can_judge_fails_its_item():
    """Under pass@k without a threshold rewards are 0 or 1."""
    items = [item_of([7, 8], reward=reward) for reward in (1.0, 0.5, 0.0)]
    found = answered(request_of(*items, advantage={"type": "pass_at_k", "k": 1}))
    assert [one["status"] for one in found] == ["ok", "error", "ok"]
    assert found[1]["error"]["pointer"] == "/items/1/reward"


@pytest.mark.parametrize("form", FORMATS)
def test_padding_that_ends_texts_needs_a_named_token(form):
    """A policy whose padding is the end of a text, or that has none, is never perturbed with it in silence."""
    body = request_of(SOUND, sensitivity={"type": "perturbation"})
    for pad_id in (3, None):
        engine = policy(pad_id=pad_id, eos_id=3)
        refused = ask(body, form, with_policies(engine))
        assert (refused["code"], refused["errors"][0]["pointer"]) == ("invalid_request", "/sensitivity/token_id")
        assert engine.measured == []
        named = request_of(SOUND, sensitivity={"type": "perturbation", "token_id": 3})
        (found,) = answered(named, form, with_policies(policy(pad_id=pad_id, eos_id=3)))
        assert found["status"] == "ok"


LIMITS = {
    "policy tokens": ({}, {"max_policy_tokens": 11}, "", "a policy would read 12 tokens; expected at most 11"),
    "of draws": (
        {"sensitivity": {"type": "gradient", "noise_samples": 9}},
        {"max_policy_tokens": 59},
        "",
        "a policy would read 60 tokens; expected at most 59",
    ),
    "of perturbations": (
        {"sensitivity": {"type": "perturbation"}},
        {"max_policy_tokens": 11},
        "",
        "a policy would read 12 tokens; expected at most 11",
    ),
    "tokens": ({}, {"max_tokens_per_set": 3}, "/items/0/completion_ids", "got 4 tokens; expected at most 3"),
    "all tokens": ({}, {"max_token_advantages": 3}, "/items", "got 4 tokens; expected at most 3 per request"),
    "items": ({"items": [SOUND] * 3}, {"max_sets": 2}, "", "got 3 rows; expected at most 2 per request"),
}


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("case", LIMITS)
def test_what_costs_too_much_is_refused_with_its_cost(case, dry_run):
    """Each limit is a setting, and is said beside what was asked; nothing is measured."""
    options, settings, pointer, words = LIMITS[case]
    engine = policy()
    if case == "tokens" and dry_run:
        return  # what is wrong with an item is said with its answer
    status, refused = problem({**request_of(SOUND), **options, "dry_run": dry_run}, with_policies(engine, **settings))
    assert status == 422
    assert words in refused["detail"]
    assert [item["pointer"] for item in refused["errors"]] == [pointer]
    assert refused["code"] == ("shape_mismatch" if case == "tokens" else "budget_exceeded")
    assert engine.measured == [0] * (case == "tokens")


@pytest.mark.parametrize("method", ["gradient", "perturbation"])
def test_a_dry_run_tells_the_cost(method):
    """Usage as that of the answer, but for seconds; nothing is measured."""
    engine = policy()
    body = request_of(SOUND, item_of([7, 8, 9], prompt_ids=[5]), sensitivity={"type": method})
    dry = ask({**body, "dry_run": True}, resources=with_policies(engine))
    assert "items" not in dry
    assert (dry["model"], dry["weight_version"]) == ("policy", "v0")
    assert engine.measured == []
    spent = ask(body)["usage"]
    assert {key: value for key, value in dry["usage"].items() if not key.endswith("_s")} == {
        key: value for key, value in spent.items() if not key.endswith("_s")
    }
    assert ask(given_request(given_item(), dry_run=True))["usage"]["tokens_computed"] == 0


# Time


def test_a_deadline_ends_the_wait_for_the_policy():
    """504 where the policy takes too long."""
    gate = threading.Event()

    def slow(_, item, __):
        gate.wait(PATIENCE_S)
        return [1.0] * len(item.positions)

    async def send(service):
        response = await say(service, request_of(SOUND), **{"X-Request-Timeout-Ms": "100"})
        gate.set()
        return response

    response = on_service(send, with_policies(policy(measured=slow)))
    assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")


def test_an_overloaded_policy_says_when_to_come_back():
    """503 with Retry-After, by the tokens that wait."""
    gate = threading.Event()

    def slow(_, item, __):
        gate.wait(PATIENCE_S)
        return [1.0] * len(item.positions)

    engine = policy(measured=slow, max_queued_tokens=15)

    async def both(service):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(say, service, request_of(SOUND))
            with anyio.fail_after(PATIENCE_S):
                while not engine.status().queued_tokens:  # noqa: ASYNC110 - the engine has no event for it
                    await anyio.sleep(0.001)
            refused = await say(service, request_of(SOUND))
            gate.set()
        return refused

    response = on_service(both, with_policies(engine))
    assert (response.status_code, response.json()["code"]) == (503, "overloaded")
    assert int(response.headers["Retry-After"]) >= 1


def test_a_policy_that_fails_is_an_error_and_never_a_number():
    """502 without the words of the failure."""
    status, refused = problem(request_of(item_of([DOOM, 8])))
    assert (status, refused["code"], refused["retryable"]) == (502, "engine_failed", True)
    assert "doom" not in str(refused)


def test_a_key_twice_is_refused():
    """In an item as anywhere."""

    async def send(service):
        item = '{"advantage": 1.0, "sensitivities": [1.0], "advantage": 2.0}'
        body = f'{{"items": [{item}], "sensitivity": {{"type": "given"}}}}'
        return (await service.post(body, OAR)).json()

    refused = on_service(send, with_policies())
    assert (refused["code"], refused["errors"][0]["pointer"]) == ("invalid_request", "/items/0/advantage")


WORD = "never-in-a-log"


def test_the_log_has_no_word_of_a_completion(log):
    """One line with numbers, flags and codes; no text, no name and no version."""
    text = f"{WORD} #### {WORD}"
    item = given_item([1.0, 2.0, None], id=WORD, group=WORD, completion=text)
    item["token_offsets"] = [[0, len(WORD)], [len(WORD), len(WORD) + 6], [len(WORD) + 6, len(text)]]
    bad = {**item, "token_offsets": [[0, 999]] * 3}

    async def send(service):
        await say(service, given_request(item, bad, parser={"type": "hashes"}))
        return await say(service, request_of(SOUND, weight_version=WORD))

    on_service(send, with_policies())
    assert WORD not in json.dumps(log.requests)
    assert WORD not in "".join(log.texts)
    first, second = log.requests
    assert (first["items"], first["failed"], first["flags"]) == (2, 1, {"flat_sensitivity": 1})
    assert second["code"] == "weight_version_unknown"
