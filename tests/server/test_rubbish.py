import copy
import json
import random

import pytest

from creditd.wire.catalogue import CATALOGUE
from creditd.wire.errors import Problem
from creditd.wire.oar import OarResponse
from creditd.wire.scar import ScarResponse, ScarSolveResponse
from creditd.wire.v1 import ShapleyResponse
from server.model_services import with_models
from server.oar_calls import with_policies
from server.running import OAR, SHAPLEY, on_service
from wire.forms import FORMS, in_form, sets_with_everything

SOLVE = "/v1/credit/shapley/solve"
CHANGES = 40
"""Damaged requests per utility and form."""
RUBBISH = [
    None, True, False, 0, -1, 1, 2, 3, 10**6, 2**62, 2**63, 10**30, 0.5, -0.0, 1e-320, 1e100, 1e101, 1e308,
    float("nan"), float("inf"), -float("inf"), "", "a", "~1/0", "\ud800", "x" * 300, [], [[]], [[[]]], [0], [0, 0],
    [None], ["a", 1], [0.5, 1.5], [0, 2**60], {}, {"type": "max"}, {"a": 1}, {"values": [], "row_splits": [0]},
    {"values": [1.0, 2.0], "row_splits": [0, 1, 2]}, {"values": [1.0], "row_splits": [0, 2**60]},
]  # fmt: skip
"""What takes the place of something in a request."""
UTILITIES = [entry.example["utility"] for entry in CATALOGUE.utilities if entry.name != "table"]
CREDITS = [
    {"type": "shapley"},
    {"type": "owen"},
    {"type": "max_at_k", "k": 2},
    {"type": "mixture", "weights": [1.0, 0.5, 0.25]},
    {"type": "blend", "from": "prefix_gain", "to": {"type": "own_reward"}, "position": 0.25},
]


def places_in(document, path=()):
    """Paths of everything in a document."""
    entries = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in entries:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places_in(value, (*path, key))


def damaged(document, draw):
    """The document with rubbish in one to three places, or without what was there."""
    document = copy.deepcopy(document)
    for _ in range(draw.randint(1, 3)):
        path = draw.choice(list(places_in(document)) or [()])
        if not path:
            continue
        holder = document
        for key in path[:-1]:
            holder = holder[key]
        if draw.random() < 0.2:
            del holder[path[-1]]
        else:
            holder[path[-1]] = copy.deepcopy(draw.choice(RUBBISH))
    return document


def assert_understood(response, body):
    """An answer in the schema, or a problem that says where; never a failure of the service."""
    assert response.status_code in {200, 422}, (body, response.text)
    if response.status_code == 422:
        problem = Problem.model_validate_json(response.content)
        assert len(response.content) < 20_000
        assert problem.errors or problem.detail


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("utility", UTILITIES, ids=lambda utility: utility["type"])
def test_a_damaged_request_is_answered_or_refused(form, utility):
    """Whatever stands in the place of anything, no request is an internal error, and every answer is in the schema."""
    draw = random.Random(f"{form} {utility['type']}")  # noqa: S311 - test data

    async def ask(service):
        for number in range(CHANGES):
            sets = sets_with_everything(named=number % 3 == 0)
            options = {"utility": utility, "credit": draw.choice(CREDITS), "tokens": {"other": "next"}}
            if number % 5 == 0:
                options["malformed"] = {"duplicates": "collapse", "candidates": 3}
            if number % 3 == 0:
                options["aggregation"] = {"type": "normalize_then_sum", "weights": {"helpful": -0.5}}
            # NaN and lone surrogates are what JSON of other languages may hold.
            body = json.dumps(damaged(in_form(form, sets, **options), draw))
            response = await service.post(body, SHAPLEY)
            assert_understood(response, body)
            if response.status_code == 200:
                ShapleyResponse.model_validate_json(response.content)

    on_service(ask)


SPAN_CHOICES = [
    {"segmentation": {"type": "token", "max_units": 3}, "credit": {"type": "prefix"}},
    {"segmentation": {"type": "sentence"}, "estimator": {"type": "permutations", "budget": 64}},
    {"segmentation": {"type": "regex", "pattern": "a|b"}, "credit": {"type": "owen"}, "advantage": {"type": "pooled"}},
    {"absent": {"type": "mask_token", "text": "_"}, "alpha": 0.5, "expect": {"group_size": 2}},
]
COMPLETION = {
    "id": "a",
    "group": "p",
    "completion": "a, b. c",
    "token_offsets": [[0, 2], [2, 3], [3, 5], [5, 7]],
    "completion_mask": [True, True, False, True],
    "kl": [0.0, -0.5, 1.0, 0.25],
    "other_reward": 0.5,
}


@pytest.mark.parametrize("path", ["/v1/credit/scar", "/v1/credit/scar/solve"])
def test_damaged_completions_are_answered_or_refused(path):
    """The same for the routes about completions; of a model whose name was damaged, there is none."""
    draw = random.Random(path)  # noqa: S311 - test data
    solve = path.endswith("solve")
    known = {"coalitions": [[], [0], [0, 1]], "utilities": [0.0, None, 2.0], "utility_empty": 0.25, "prompt_id": 1}
    item = {**COMPLETION, **(known if solve else {"prompt": [{"role": "user", "content": "?"}]})}

    async def ask(service):
        for _ in range(10 * CHANGES):
            request = {"items": [item, {**item, "id": 2}], **draw.choice(SPAN_CHOICES)}
            body = json.dumps(damaged(request if solve else {"model": "rm", **request}, draw))
            response = await service.post(body, path)
            if not solve and response.status_code == 404:
                assert response.json()["code"] == "unknown_model"
                continue
            assert_understood(response, body)
            if response.status_code == 200:
                (ScarSolveResponse if solve else ScarResponse).model_validate_json(response.content)

    on_service(ask, with_models())


REASONED = {
    "id": "a",
    "group": "p",
    "prompt_ids": [1, 2],
    "completion_ids": [7, 8, 10, 13],
    "completion_mask": [True, False, True, True],
    "reasoning": [0, 3],
    "answer": [3, 4],
    "reward": 0.5,
}
OAR_CHOICES = [
    {"sensitivity": {"type": "perturbation", "token_id": 5}, "probe": {"type": "last"}},
    {"sensitivity": {"type": "gradient", "noise_samples": 2, "seed": 1}, "advantage": {"type": "rloo"}},
    {"reshape": {"quantile": 0.5, "floor": 0.0, "preserve_mass": False}, "expect": {"group_size": 2}},
    {"weight_version": "v0", "if_not_ready": "fail", "incomplete_group": "error"},
    {"parser": {"type": "tags", "answer_tag": "a"}},
]


def test_damaged_reasoning_is_answered_or_refused():
    """The same for the route about reasoning; of a policy whose name was damaged there is none."""
    draw = random.Random(9)  # noqa: S311 - test data

    async def ask(service):
        for _ in range(10 * CHANGES):
            request = {"model": "policy", "items": [REASONED, {**REASONED, "id": 2}], **draw.choice(OAR_CHOICES)}
            body = json.dumps(damaged(request, draw))
            response = await service.post(body, OAR)
            if response.status_code in {404, 409}:
                assert response.json()["code"] in {"unknown_model", "weight_version_unknown"}
                continue
            assert_understood(response, body)
            if response.status_code == 200:
                OarResponse.model_validate_json(response.content)

    on_service(ask, with_policies())


def test_a_damaged_conversation_is_answered_or_refused():
    """The same for the route on which the caller evaluates."""
    draw = random.Random(7)  # noqa: S311 - test data
    item = {
        "id": "a",
        "group": "p",
        "n_players": 3,
        "player_ids": ["x", 2, "2"],
        "coalitions": [[], [0], [0, 1, 2]],
        "utilities": [0.0, 1.0, 2.0],
        "set_reward": 0.5,
        "n_tokens": 9,
        "spans": [[0, 2], None, [4, 5]],
    }

    async def ask(service):
        for _ in range(10 * CHANGES):
            request = {
                "items": [item, {**item, "id": 2}],
                "credit": draw.choice(CREDITS),
                "estimator": {"type": "auto", "budget": 64, "seed": 1},
                "tokens": {},
                "batch_size": 5,
            }
            body = json.dumps(damaged(request, draw))
            assert_understood(await service.post(body, SOLVE), body)

    on_service(ask)
