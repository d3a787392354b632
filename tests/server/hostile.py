"""Bodies that are meant to do harm, each with the answer that it deserves."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import anyio
import httpx
import msgpack
import numpy as np
from anyio.from_thread import start_blocking_portal

from creditd.server.resources import Resources
from creditd.wire import codec
from server.running import COMPOSE, GROUP, OAR, PATIENCE_S, SCAR_SOLVE, SHAPLEY, Service, running

SOLVE = "/v1/credit/shapley/solve"
HUGE = 2**60
FULL = 8_000_000
"""Bytes of a body that is as large as the default limit allows."""


class Hostile(NamedTuple):
    """A body and its answer.

    Attributes:
        body: As it is sent.
        status: Of the answer.
        code: Of the problem.
        pointers: Of its offences.
        path: Where it is sent.
        binary: Whether it is MessagePack.
    """

    body: bytes
    status: int
    code: str
    pointers: tuple[str, ...]
    path: str = SHAPLEY
    binary: bool = False

    @property
    def content_type(self) -> str:
        """The media type that it is sent with."""
        return codec.MEDIA_TYPE if self.binary else "application/json"


def text(document: Any, code: str, *pointers: str, path: str = SHAPLEY, status: int = 422) -> Hostile:
    """A body of JSON; text goes as it is."""
    body = document if isinstance(document, str) else json.dumps(document)
    return Hostile(body.encode(), status, code, pointers, path)


def packed(document: Any, code: str, *pointers: str, path: str = SHAPLEY, status: int = 422) -> Hostile:
    """A body of MessagePack; bytes go as they are."""
    body = document if isinstance(document, bytes) else msgpack.packb(document)
    return Hostile(body, status, code, pointers, path, binary=True)


def buffer(values: list[float], dtype: str = "<f8", **parts: Any) -> dict[str, Any]:
    """A buffer by hand, with parts that lie."""
    return {"dtype": dtype, "shape": [len(values)], "data": np.array(values, dtype=dtype).tobytes(), **parts}


def filled(head: str, unit: str, tail: str) -> str:
    """JSON of eight megabytes of one unit."""
    return f"{head}{','.join([unit] * ((FULL - len(head) - len(tail)) // (len(unit) + 1)))}{tail}"


def containers(head: bytes, unit: bytes, document: bytes = b"") -> bytes:
    """MessagePack of eight megabytes of empty arrays, or objects, in a list behind a head."""
    count = FULL - len(document) - 5
    return document + head + struct.pack(">I", count) + unit * count


def values_of(literal: str, count: int) -> str:
    """A column of one literal over and over."""
    return f'{{"columns": {{"rewards": {{"values": [{",".join([literal] * count)}], "row_splits": [0, {count}]}}}}}}'


def ragged_lies(splits: list[int]) -> dict[str, tuple[dict[str, Any], str]]:
    """Requests whose row splits are these in each ragged column, with the pointer to them."""
    two = {"rewards": [[0.5], [0.25]]}
    lie = {"values": [0.5, 0.25], "row_splits": splits}
    of_names = {"values": ["a", "b"], "row_splits": splits}
    coverage, served = {"type": "coverage"}, {"type": "noisy_or"}
    return {
        "rewards": ({"columns": {"rewards": lie}}, "/columns/rewards/row_splits"),
        "named_rewards": ({"columns": {"named_rewards": {"n": lie}}}, "/columns/named_rewards/n/row_splits"),
        "row_splits": (
            {"columns": {"row_splits": splits, "topics": [["a"], ["b"]]}, "utility": coverage},
            "/columns/row_splits",
        ),
        "utilities": (
            {"columns": {**two, "utilities": lie}, "utility": {"type": "table"}},
            "/columns/utilities/row_splits",
        ),
        "topics": ({"columns": {**two, "topics": of_names}, "utility": coverage}, "/columns/topics/row_splits"),
        "scores": ({"columns": {**two, "scores": lie}, "utility": served}, "/columns/scores/row_splits"),
        "similarities": (
            {"columns": {**two, "similarities": lie}, "utility": {"type": "log_det"}},
            "/columns/similarities/row_splits",
        ),
    }


@contextmanager
def one_service(resources: Resources | None = None) -> Iterator[Callable[[bytes, str, str], httpx.Response]]:
    """One service for many bodies: a function of body, path and media type that has the response in good time."""

    async def ask(service: Service, body: bytes, path: str, media_type: str) -> httpx.Response:
        with anyio.fail_after(PATIENCE_S):
            response = await service.post(body, path, **{"Content-Type": media_type})
        assert service.resources.in_flight == 0
        return response

    with start_blocking_portal() as portal, portal.wrap_async_context_manager(running(resources)) as service:
        yield partial(portal.call, ask, service)


WHOLE = ""
"""Pointer to the whole body."""
NUMBER_OF_TOKENS = {"reward": 1.0, "span": [0, 1]}


def scar(*items: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Completions without a text, whose units are given."""
    return {"items": list(items), "segmentation": {"type": "given", "max_units": None}, **options}


def composed(n_tokens: int = 4, **changes: Any) -> dict[str, Any]:
    """A request about one set of one candidate, of whose inside something is known."""
    return {"sets": [{"n_tokens": n_tokens, "candidates": [{"reward": 1.0, "span": [0, 4], **changes}]}]}


def given(*items: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Completions whose sensitivities are given."""
    return {"items": [{"advantage": 1.0, **item} for item in items], "sensitivity": {"type": "given"}, **options}


def many_units(count: int) -> dict[str, Any]:
    """A completion of so many units of one token."""
    return {"n_tokens": count, "units": [[place, place + 1] for place in range(count)]}


CASES: dict[str, Hostile] = {
    "2 MB of bad floats": text(values_of('"a number"', 170_000), "invalid_request", "/columns/rewards/values/0"),
    "2 MB of bad floats in sets": text(
        {"sets": [{"candidates": [{"reward": "x"}]}] * 60_000}, "invalid_request", "/sets/0/candidates/0/reward"
    ),
    "2 MB of NaN": text(
        f'{{"columns": {{"rewards": [{",".join(["[NaN]"] * 60_000)}]}}}}',
        "non_finite_value",
        *(f"/columns/rewards/{row}/0" for row in range(10)),
    ),
    "2 MB of bad objects": text(
        {"sets": [{"candidates": [{"reward": 1.0, f"x{number}": 0}]} for number in range(50_000)]},
        "unknown_field",
        "/sets/0/candidates/0/x0",
    ),
    "shape of 2^60": packed(
        {"columns": {"rewards": {"values": buffer([1.0], shape=[HUGE]), "row_splits": [0, 1]}}},
        "invalid_request",
        "/columns/rewards/values",
    ),
    "shape of 2^31 by 2^31": packed(
        {"rewards": buffer([1.0], shape=[2**31, 2**31])}, "invalid_request", "/rewards", path=GROUP
    ),
    "2^60 empty rows": packed({"rewards": buffer([], shape=[HUGE, 0])}, "invalid_request", "/rewards", path=GROUP),
    "array of 2^32": packed(b"\x81\xa7columns\xdd\xff\xff\xff\xff", "invalid_request", WHOLE),
    "object of 2^32": packed(b"\x81\xa7columns\xdf\xff\xff\xff\xff", "invalid_request", WHOLE),
    "bytes of 2^32": packed(b"\x81\xa7columns\xc6\xff\xff\xff\xff", "invalid_request", WHOLE),
    "text of 2^32": packed(b"\x81\xa7columns\xdb\xff\xff\xff\xff", "invalid_request", WHOLE),
    "row splits of 2^60": text(
        ragged_lies([0, 1, HUGE])["rewards"][0], "shape_mismatch", "/columns/rewards/row_splits"
    ),
    "2^60 candidates by row splits alone": text(
        ragged_lies([0, HUGE])["row_splits"][0], "shape_mismatch", "/columns/row_splits"
    ),
    "2^60 players": text({"items": [{"n_players": HUGE}]}, "invalid_request", "/items/0/n_players", path=SOLVE),
    "player 2^60": text(
        {"items": [{"n_players": 1, "coalitions": [[HUGE]], "utilities": [0.0]}]},
        "invalid_request",
        "/items/0/coalitions/0/0",
        path=SOLVE,
    ),
    "budget of 2^60": text(
        {"items": [{"n_players": 3}], "estimator": {"budget": HUGE}}, "invalid_request", "/estimator/budget", path=SOLVE
    ),
    "largest budget, most players": text(
        {"items": [{"n_players": 4096}], "estimator": {"budget": 2**31}},
        "budget_exceeded",
        "/items/0/n_players",
        path=SOLVE,
    ),
    "batch of 2^60": text(
        {"items": [{"n_players": 3}], "batch_size": HUGE}, "invalid_request", "/batch_size", path=SOLVE
    ),
    "2^60 tokens": text(
        {"sets": [{"n_tokens": HUGE, "candidates": [NUMBER_OF_TOKENS]}], "tokens": {}},
        "shape_mismatch",
        "/sets/0/n_tokens",
    ),
    "2^60 tokens by column": text(
        {"columns": {"rewards": [[1.0]], "n_tokens": [HUGE], "spans": {"starts": [0], "stops": [1]}}, "tokens": {}},
        "shape_mismatch",
        "/columns/n_tokens/0",
    ),
    "most tokens, most sets": text(
        {
            "columns": {
                "rewards": [[1.0]] * 1000,
                "n_tokens": [131_072] * 1000,
                "spans": {"starts": [0] * 1000, "stops": [1] * 1000},
            },
            "tokens": {},
        },
        "budget_exceeded",
        "/tokens",
    ),
    "span to 2^60": text(
        {"sets": [{"n_tokens": 5, "candidates": [{"reward": 1.0, "span": [0, HUGE]}]}], "tokens": {}},
        "shape_mismatch",
        "/sets/0/candidates/0/span",
    ),
    "k of 2^60": text(
        {"sets": [{"candidates": [{"reward": 1.0}]}], "credit": {"type": "max_at_k", "k": HUGE}},
        "invalid_request",
        "/credit/k",
    ),
    "2^60 tokens of a completion": text(
        scar({"n_tokens": HUGE, "units": [[0, HUGE]]}), "invalid_request", "/items/0/n_tokens", path=SCAR_SOLVE
    ),
    "most tokens, many completions": text(
        scar(*[{"n_tokens": 131_072, "units": [[0, 131_072]]}] * 40), "budget_exceeded", "/items", path=SCAR_SOLVE
    ),
    "characters to 2^60": text(
        {"items": [{"completion": "a", "token_offsets": [[0, HUGE]]}]},
        "shape_mismatch",
        "/items/0/token_offsets",
        path=SCAR_SOLVE,
    ),
    "unit 2^60": text(
        scar({**many_units(2), "coalitions": [[HUGE]], "utilities": [0.0]}),
        "invalid_request",
        "/items/0/coalitions/0/0",
        path=SCAR_SOLVE,
    ),
    "4,097 units": text(scar(many_units(4097)), "too_many_players", "/items/0/units", path=SCAR_SOLVE),
    "4,096 units, largest budget": text(
        scar(many_units(4096), estimator={"budget": 2**31}), "budget_exceeded", "/items/0/units", path=SCAR_SOLVE
    ),
    "4,096 units, all coalitions": text(
        scar(many_units(4096), estimator={"type": "exact", "budget": 2**31}),
        "budget_exceeded",
        "/items/0/units",
        path=SCAR_SOLVE,
    ),
    "many completions of 2,000 units": text(
        scar(*[many_units(2000)] * 20, credit={"type": "prefix"}, estimator={"budget": 2**31}),
        "budget_exceeded",
        WHOLE,
        path=SCAR_SOLVE,
    ),
    "many known coalitions of many units": text(
        scar(*[{**many_units(1000), "coalitions": [[0]] * 20_000, "utilities": [0.0] * 20_000}] * 2),
        "budget_exceeded",
        "/items",
        path=SCAR_SOLVE,
    ),
    "a tree that ends in itself": text(
        scar({**many_units(3), "tree": [[0, 3], [3, 4]]}, credit={"type": "owen"}),
        "invalid_request",
        "/items/0/tree",
        path=SCAR_SOLVE,
    ),
    "an answer to 2^60": text(
        given({"sensitivities": [1.0], "answer": [0, HUGE]}), "shape_mismatch", "/items/0/answer", path=OAR
    ),
    "a reasoning from -2^60": text(
        given({"sensitivities": [1.0], "reasoning": [-HUGE, 1]}), "shape_mismatch", "/items/0/reasoning", path=OAR
    ),
    "an answer to 2^63": text(
        given({"sensitivities": [1.0], "answer": [0, 2**63]}), "invalid_request", "/items/0/answer/1", path=OAR
    ),
    "token 2^60": text(
        given({"sensitivities": [1.0], "completion_ids": [HUGE]}),
        "invalid_request",
        "/items/0/completion_ids/0",
        path=OAR,
    ),
    "tokens to 2^60": text(
        given({"sensitivities": [1.0], "completion": "1", "token_offsets": [[0, HUGE]]}, parser={"type": "last_line"}),
        "shape_mismatch",
        "/items/0/token_offsets",
        path=OAR,
    ),
    "2^60 draws": text(
        {**given({"sensitivities": [1.0]}), "sensitivity": {"type": "gradient", "noise_samples": HUGE}},
        "invalid_request",
        "/sensitivity/noise_samples",
        path=OAR,
    ),
    "a tag that is a pattern": text(
        given({"sensitivities": [1.0]}, parser={"type": "tags", "answer_tag": "(a+)+"}),
        "invalid_request",
        "/parser/answer_tag",
        path=OAR,
    ),
    "most sensitivities, many completions": packed(
        given(*[{"sensitivities": buffer([0.0] * 131_072)}] * 40), "budget_exceeded", "/items", path=OAR
    ),
    "2^60 tokens of a composed set": text(composed(n_tokens=HUGE), "invalid_request", "/sets/0/n_tokens", path=COMPOSE),
    "a unit to 2^60": text(
        composed(units=[[0, HUGE]], unit_values=[1.0]),
        "shape_mismatch",
        "/sets/0/candidates/0/units/0",
        path=COMPOSE,
    ),
    "a unit from -2^60": text(
        composed(units=[[-HUGE, 4]], unit_values=[1.0]),
        "shape_mismatch",
        "/sets/0/candidates/0/units/0",
        path=COMPOSE,
    ),
    "a table of 2^13 partial texts": text(
        composed(n_tokens=13, span=[0, 13], units=[[k, k + 1] for k in range(13)], utilities=[0.0] * 2**13),
        "too_many_players",
        "/sets/0/candidates/0/units",
        path=COMPOSE,
    ),
    "4,097 units of a candidate": text(
        composed(n_tokens=4097, span=[0, 4097], units=[[k, k + 1] for k in range(4097)], unit_values=[0.0] * 4097),
        "too_many_players",
        "/sets/0/candidates/0/units",
        path=COMPOSE,
    ),
    "a tree of units that ends in itself": text(
        composed(units=[[0, 1], [1, 4]], utilities=[0.0, 0.0, 0.0, 1.0], tree=[[0, 2]]),
        "shape_mismatch",
        "/sets/0/candidates/0/tree",
        path=COMPOSE,
    ),
    "most tokens, many composed sets": text(
        {"sets": composed(n_tokens=131_072)["sets"] * 40}, "budget_exceeded", "/tokens", path=COMPOSE
    ),
    "a mask of threes": packed(
        {"sets": [{**composed()["sets"][0], "completion_mask": buffer([3] * 4, "<i8")}]},
        "invalid_request",
        "/sets/0/completion_mask/0",
        path=COMPOSE,
    ),
    "a pattern of brackets": text(
        {"items": [{"completion": "a"}], "segmentation": {"type": "regex", "pattern": "(" * 1000}},
        "invalid_request",
        "/segmentation/pattern",
        path=SCAR_SOLVE,
    ),
    "characters in rows of three": packed(
        {
            "items": [
                {"completion": "a", "token_offsets": {"dtype": "<i8", "shape": [1, 3], "data": bytes(24)}},
            ]
        },
        "invalid_request",
        "/items/0/token_offsets/0",
        path=SCAR_SOLVE,
    ),
    "rows of 2^20 characters": packed(
        {"items": [{"completion": "a", "token_offsets": buffer([0] * 2**20, "<i8", shape=[1, 2**20])}]},
        "invalid_request",
        "/items/0/token_offsets/0",
        path=SCAR_SOLVE,
    ),
    "a mask of twos": packed(
        {"items": [{"completion": "a", "completion_mask": buffer([2], "<i8")}]},
        "invalid_request",
        "/items/0/completion_mask/0",
        path=SCAR_SOLVE,
    ),
    "100,000 arrays deep": text("[" * 100_000, "invalid_request", WHOLE),
    "100,000 arrays deep, closed": text("[" * 100_000 + "]" * 100_000, "invalid_request", WHOLE),
    "100,000 objects deep": text('{"a":' * 100_000, "invalid_request", WHOLE),
    "deep in a column": text(f'{{"columns": {{"rewards": {"[" * 5000}{"]" * 5000}}}}}', "invalid_request", WHOLE),
    "100,000 arrays deep in binary": packed(b"\x91" * 100_000 + b"\xc0", "invalid_request", WHOLE),
    "50,000 objects deep in binary": packed(b"\x81\xa1a" * 50_000 + b"\xc0", "invalid_request", WHOLE),
    "a key twice": text('{"columns": {"rewards": [[1.0]], "rewards": [[2.0]]}}', "invalid_request", "/columns/rewards"),
    "a key twice in binary": packed(b"\x82\xa7columns\x80\xa7columns\x80", "invalid_request", WHOLE),
    "8 MB of arrays": text(filled("[", "[]", "]"), "body_too_large", status=413),
    "8 MB of arrays in a column": text(filled('{"columns":{"rewards":[', "[]", "]}}"), "body_too_large", status=413),
    "8 MB of objects": text(filled('{"sets":[{"candidates":[', "{}", "]}]}"), "body_too_large", status=413),
    "8 MB of arrays in binary": packed(containers(b"\xdd", b"\x90"), "body_too_large", status=413),
    "8 MB of arrays in a column in binary": packed(
        containers(b"\xdd", b"\x90", b"\x81\xa7columns\x81\xa6topics"), "body_too_large", status=413
    ),
    "8 MB of objects in binary": packed(
        containers(b"\xdd", b"\x80", b"\x81\xa4sets\x91\x81\xaacandidates"), "body_too_large", status=413
    ),
    "9 MB of nothing": text(" " * (9 << 20), "body_too_large", status=413),
}

LITERALS = {
    "1e400": "non_finite_value",
    "-1e400": "non_finite_value",
    "NaN": "non_finite_value",
    "Infinity": "non_finite_value",
    "-Infinity": "non_finite_value",
    '"NaN"': "invalid_request",
    '"1"': "invalid_request",
    "true": "invalid_request",
    "false": "invalid_request",
    "[1]": "invalid_request",
    "{}": "invalid_request",
}
"""What may stand for a number and is none, with the code of a reward that is that."""

PLACES = {
    "/sets/0/candidates/0/reward": (SHAPLEY, '{{"sets": [{{"candidates": [{{"reward": {}}}]}}]}}'),
    "/sets/0/set_reward": (SHAPLEY, '{{"sets": [{{"set_reward": {}, "candidates": []}}]}}'),
    "/columns/rewards/0/0": (SHAPLEY, '{{"columns": {{"rewards": [[{}]]}}}}'),
    "/columns/rewards/values/0": (SHAPLEY, '{{"columns": {{"rewards": {{"values": [{}], "row_splits": [0, 1]}}}}}}'),
    "/advantage/epsilon": (SHAPLEY, '{{"columns": {{"rewards": [[1]]}}, "advantage": {{"epsilon": {}}}}}'),
    "/utility/empty": (SHAPLEY, '{{"columns": {{"rewards": [[1]]}}, "utility": {{"type": "min", "empty": {}}}}}'),
    "/rewards/0/1": (GROUP, '{{"rewards": [[1, {}]]}}'),
    "/items/0/utilities/1": (SOLVE, '{{"items": [{{"n_players": 1, "coalitions": [[], [0]], "utilities": [0, {}]}}]}}'),
    "/items/0/kl/0": (SCAR_SOLVE, '{{"items": [{{"completion": "a", "kl": [{}]}}]}}'),
    "/items/0/other_reward": (SCAR_SOLVE, '{{"items": [{{"completion": "a", "other_reward": {}}}]}}'),
    "/items/0/token_offsets/0/1": (SCAR_SOLVE, '{{"items": [{{"completion": "a", "token_offsets": [[0, {}]]}}]}}'),
    "/alpha": (SCAR_SOLVE, '{{"items": [{{"completion": "a"}}], "alpha": {}}}'),
    "/items/0/advantage": (
        OAR,
        '{{"items": [{{"sensitivities": [1], "advantage": {}}}], "sensitivity": {{"type": "given"}}}}',
    ),
    "/items/0/sensitivities/0": (
        OAR,
        '{{"items": [{{"sensitivities": [{}, 0], "advantage": 1}}], "sensitivity": {{"type": "given"}}}}',
    ),
    "/reshape/floor": (
        OAR,
        '{{"items": [{{"sensitivities": [1]}}], "sensitivity": {{"type": "given"}}, "reshape": {{"floor": {}}}}}',
    ),
    "/sets/0/candidates/0/unit_values/0": (
        COMPOSE,
        '{{"sets":[{{"n_tokens":1,"candidates":[{{"reward":1,"span":[0,1],"units":[[0,1]],"unit_values":[{}]}}]}}]}}',
    ),
    "/sets/0/candidates/0/advantage": (
        COMPOSE,
        '{{"sets": [{{"n_tokens": 1, "set_advantage": 0, "candidates": [{{"advantage": {}, "span": [0, 1]}}]}}]}}',
    ),
    "/sets/0/set_advantage": (
        COMPOSE,
        '{{"sets": [{{"n_tokens": 1, "set_advantage": {}, "candidates": [{{"advantage": 1, "span": [0, 1]}}]}}]}}',
    ),
    "/inside/share": (
        COMPOSE,
        '{{"sets": [{{"n_tokens": 0, "candidates": []}}], "inside": {{"type": "bounded", "share": {}}}}}',
    ),
    "/items/0/n_players": (SOLVE, '{{"items": [{{"n_players": {}}}]}}'),
    "/columns/n_tokens/0": (
        SHAPLEY,
        '{{"columns": {{"rewards": [[1]], "n_tokens": [{}], "spans": {{"starts": [0], "stops": [1]}}}}}}',
    ),
}
"""Where a number stands, by its pointer: the route, and the body around it."""


OF_REWARDS = (
    "reward",
    "/rewards/0/0",
    "/rewards/values/0",
    "/rewards/0/1",
    "/kl/0",
    "/items/0/advantage",
    "/candidates/0/advantage",
    "/set_advantage",
    "/unit_values/0",
    "/sensitivities/0",
)
"""How pointers to rewards end, which are looked at set by set: one that is not finite has a code of its own."""


def code_of(literal: str, pointer: str) -> str:
    """The code that a literal deserves at a place."""
    if pointer == "/items/0/utilities/1" and LITERALS[literal] == "non_finite_value":
        return "non_finite_utility"
    return LITERALS[literal] if pointer.endswith(OF_REWARDS) else "invalid_request"
