"""The client against the real application, in memory: what is promised of both is checked on both."""

import asyncio
from dataclasses import fields

import httpx
import numpy as np
import pytest

from creditd.client import AsyncClient, AuthenticationError, Client, InvalidRequestError, OverloadedError, Ragged
from creditd.server.app import create_app
from creditd.server.resources import Resources
from creditd.server.settings import Settings

RNG = np.random.default_rng(20)
NAN_AND_NONE = [[0.5, None, 0.25], [float("nan"), 1.0], [], [0.1, 0.2, 0.3], [None, None], [-0.0, 0.0]]
TABLES = {"utilities": RNG.normal(size=(6, 8)), "utility": "table", "candidate_ids": [["c", "a", "b"]] * 6}
MAPPINGS = [
    {
        "id": f"set {row}",
        "group": row // 4,
        "n_tokens": 20,
        "set_reward": None if row == 5 else float(RNG.normal()),
        "candidates": [
            {"reward": float(RNG.normal()), "span": [4 * place, 4 * place + 3], "text": f"text {place % 3}"}
            for place in range(4)
        ],
    }
    for row in range(16)
]
CALLS = {
    "array": ((RNG.normal(size=(64, 4)),), {"groups": np.repeat(np.arange(8), 8), "advantage": "response_preserving"}),
    "ragged": ((Ragged.from_rows([RNG.normal(size=size) for size in (1, 5, 0, 3)]),), {"credit": "prefix_gain"}),
    "nan and none": ((NAN_AND_NONE,), {"groups": [0, 0, 0, 1, 1, 1], "set_rewards": [1.0, 2.0, None, 0.5, 0.5, 0.1]}),
    "mappings": (
        (MAPPINGS,),
        {
            "tokens": {"other": "next", "length_norm": True},
            "credit": {"type": "blend", "from": "shapley", "to": "leave_one_out", "position": 0.3},
            "expect": {"group_size": 4},
        },
    ),
    "table": ((), TABLES),
    "top m": ((RNG.normal(size=(8, 6)).tolist(),), {"utility": {"type": "top_m", "m": 2}, "advantage": "centered"}),
    "incomplete": ((NAN_AND_NONE,), {"groups": [0, 0, 0, 1, 1, 1], "incomplete_group": "error"}),
}
GROUPS = {
    "plain": (([[1.0, 0.5, 0.0], [0.3, None, 0.1], [], [0.7]],), {}),
    "nan": (([[1.0, float("nan")], [0.3, None, 0.1]],), {"convention": "verl", "advantage": "rloo"}),
    "array": ((RNG.normal(size=(32, 8)),), {"advantage": {"type": "grpo", "ddof": 0}, "expect": {"group_size": 8}}),
    "sizes": (([[1.0, 2.0], [3.0]],), {"expect": {"group_size": 2}}),
    "names": (
        ({"7": RNG.normal(size=(6, 4)), "b": [[0.5, None, float("nan"), 1.0], *RNG.normal(size=(5, 4))]},),
        {
            "weights": {"7": 0.3},
            "n_tokens": RNG.integers(0, 50, size=(6, 4)),
            "convention": "openrlhf",
            "advantage": "gdpo",
        },
    ),
    "whitened": (
        (RNG.normal(size=(16, 4)),),
        {"n_tokens": RNG.integers(1, 9, size=(16, 4)), "convention": "verl", "advantage": "reinforce++_baseline"},
    ),
    "pass at k": (
        ([[1.0, 0.0, None, 0.0], [0.5, 1.0], []],),
        {"advantage": {"type": "pass_at_k", "k": 2}},
    ),
    "max at k": ((RNG.normal(size=(8, 6)),), {"advantage": {"type": "max_at_k", "k": 3}}),
}
WRONG = {
    "a choice": ("shapley", ([[1.0]],), {"utility": "median"}),
    "a field": ("shapley", ([[1.0]],), {"expect": {"candidate": 3}}),
    "a column": ("shapley", ([[1.0]],), {"groups": ["a", "b"]}),
    "every set": ("shapley", ([[float("nan")], [float("inf")]],), {}),
    "every row": ("group", ([[float("nan")]],), {}),
    "weights": ("group", ({"a": [[1.0]]},), {"weights": {"b": 2.0}}),
    "tokens": ("group", ([[1.0, 0.0]],), {"n_tokens": [[1]]}),
    "names": ("group", ({"a": [[1.0]], "b": [[1.0], [2.0]]},), {}),
    "no k": ("group", ([[1.0]],), {"advantage": "max_at_k"}),
    "every named row": ("group", ({"7": [[float("nan")]], "b": [[1.0]]},), {}),
    "an expectation": ("group", ([[1.0]],), {"expect": {"candidates": 4}}),
}


def asked(
    method: str,
    *arguments,
    settings: Settings | None = None,
    drained: bool = False,
    wire_format: str = "binary",
    **options,
):
    """Start the service, call it, stop it."""

    async def call():
        resources = Resources(settings or Settings())
        app = create_app(resources.settings, resources)
        async with (
            app.router.lifespan_context(app),
            AsyncClient(
                "http://credit.test", transport=httpx.ASGITransport(app), deadline_s=20, wire_format=wire_format
            ) as client,
        ):
            await client.wait_until_ready(timeout_s=10)
            resources.draining = drained
            assert await client.ready() is not drained
            return await getattr(client, method)(*arguments, **options)

    return asyncio.run(call())


def asked_here(method: str, *arguments, wire_format: str = "binary", **options):
    """Compute in this process."""
    with Client("local:", wire_format=wire_format) as client:
        return getattr(client, method)(*arguments, **options)


def bits(value):
    """Give bytes for numbers, so that the sign of zero counts."""
    if isinstance(value, Ragged):
        return bits(value.values), bits(value.row_splits)
    return (value.dtype, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value


def assert_same(theirs, ours) -> None:
    """Compare every field but those that say who answered, and when."""
    for field in fields(ours):
        if field.name not in {"request_id", "usage"}:
            assert bits(getattr(theirs, field.name)) == bits(getattr(ours, field.name)), field.name
    assert theirs.flags == ours.flags


FORMATS = ("binary", "json")


@pytest.mark.parametrize("wire_format", FORMATS)
@pytest.mark.parametrize("name", CALLS)
def test_the_service_and_local_mode_answer_with_equal_bits(name, wire_format) -> None:
    """Every column, every error and every flag, whatever travels."""
    arguments, options = CALLS[name]
    options = {**options, "on_item_error": "return"}
    theirs = asked("shapley", *arguments, wire_format=wire_format, **options)
    for here in FORMATS:
        assert_same(theirs, asked_here("shapley", *arguments, wire_format=here, **options))


@pytest.mark.parametrize("wire_format", FORMATS)
@pytest.mark.parametrize("name", GROUPS)
def test_groups_are_answered_with_equal_bits(name, wire_format) -> None:
    """The same for whole responses."""
    arguments, options = GROUPS[name]
    options = {**options, "on_item_error": "return"}
    theirs = asked("group", *arguments, wire_format=wire_format, **options)
    for here in FORMATS:
        assert_same(theirs, asked_here("group", *arguments, wire_format=here, **options))


@pytest.mark.parametrize("wire_format", FORMATS)
@pytest.mark.parametrize("estimator", ["exact", {"type": "stratified", "budget": 60}])
def test_functions_are_answered_with_equal_bits(estimator, wire_format) -> None:
    """The same for utilities that are the caller's functions, with groups, tokens and standard errors."""
    sets = [RNG.normal(size=size).tolist() for size in (8, 8, 7, 7)]
    spans = [[[2 * place, 2 * place + 1] for place in range(len(row))] for row in sets]
    options = {
        "utility": lambda candidates: max(candidates, default=0.0) - 0.1 * len(candidates),
        "groups": [0, 0, 1, 1],
        "spans": spans,
        "n_tokens": [20] * 4,
        "set_rewards": [0.5, None, 1.0, 0.25],
        "tokens": {"other": "set"},
        "estimator": estimator,
    }
    assert_same(asked("shapley", sets, wire_format=wire_format, **options), asked_here("shapley", sets, **options))


@pytest.mark.parametrize("wire_format", FORMATS)
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_wrong_in_the_same_words(name, wire_format) -> None:
    """Message, status, code and offences of a refusal do not depend on where it was made, nor on what travelled."""
    method, arguments, options = WRONG[name]
    with pytest.raises(InvalidRequestError) as theirs:
        asked(method, *arguments, request_id="same", wire_format=wire_format, **options)
    with pytest.raises(InvalidRequestError) as ours:
        asked_here(method, *arguments, request_id="same", **options)
    assert str(theirs.value) == str(ours.value)
    for attribute in ("status", "code", "retryable", "items", "request_id"):
        assert getattr(theirs.value, attribute) == getattr(ours.value, attribute)


def test_info_names_the_same_choices_and_limits() -> None:
    """Local mode differs from the service's defaults in what a process in between would limit, and in nothing else."""
    ignored = {
        "body_bytes", "binary_body_bytes", "held_bytes", "body_timeout_s", "arrays", "objects", "requests_in_flight",
        "table_candidates", "weight_bytes", "shard_bytes",
    }  # fmt: skip
    theirs, ours = asked("info").model_dump(), asked_here("info").model_dump()
    for info in (theirs, ours):
        info["limits"] = {name: limit for name, limit in info["limits"].items() if name not in ignored}
    assert theirs == ours


def test_the_key_is_shown() -> None:
    """Without the key there is AuthenticationError; the probes need none."""
    with pytest.raises(AuthenticationError, match="expected the header"):
        asked("shapley", [[1.0]], settings=Settings(api_keys=("secret",)))


def test_a_draining_service_is_overloaded() -> None:
    """It is not ready, and its refusals are retried until the deadline."""
    with pytest.raises(OverloadedError) as caught:
        asked("shapley", [[1.0]], drained=True, deadline_s=0.2)
    assert caught.value.code == "draining"
