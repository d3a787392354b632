import json
import math
import struct
import threading

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from creditd.server.body import parse_body
from creditd.server.openapi import _FORMATS
from creditd.server.routes import credit
from creditd.wire import codec
from creditd.wire.catalogue import CATALOGUE
from creditd.wire.compose import ComposeRequest
from creditd.wire.groups import GroupRequest
from creditd.wire.oar import OarRequest
from creditd.wire.scar import ScarSolveRequest
from creditd.wire.solve import SolveRequest
from creditd.wire.v1 import ShapleyRequest
from server.running import (
    COMPOSE,
    GROUP,
    OAR,
    SCAR,
    SCAR_SOLVE,
    SHAPLEY,
    WORKED_REWARDS,
    columnar,
    on_service,
    post,
    ragged,
)

SOLVE = "/v1/credit/shapley/solve"
BINARY = {"Content-Type": codec.MEDIA_TYPE, "Accept": codec.MEDIA_TYPE}
KEPT_AS_LISTS = {"span", "spans", "coalitions", "reasoning", "answer"}
"""Token ranges and coalitions, which take no buffer."""
PAIRS = {"token_offsets", "units", "tree"}
"""Pairs, which take one buffer of two axes and none within a list."""
OF_OBJECTS = {"sets", "items", "candidates", "terms", "texts"}
"""Lists of something else than numbers, which a buffer would only make wrong in other words."""
EXAMPLES = [
    *((SHAPLEY, example) for example in ShapleyRequest.model_config["json_schema_extra"]["examples"]),
    *((SOLVE, example) for example in SolveRequest.model_config["json_schema_extra"]["examples"]),
    *((GROUP, example) for example in GroupRequest.model_config["json_schema_extra"]["examples"]),
    *((SCAR_SOLVE, example) for example in ScarSolveRequest.model_config["json_schema_extra"]["examples"]),
    *((COMPOSE, one) for one in ComposeRequest.model_config["json_schema_extra"]["examples"]),
    *((OAR, one) for one in OarRequest.model_config["json_schema_extra"]["examples"] if "model" not in one),
]


def buffer_by_hand(values):
    """A list of integers, or of floats, as a buffer, with nulls marked; None if it is neither."""
    numbers = [value for value in values if value is not None]
    kinds = {type(value) for value in numbers}
    whole = kinds == {int}
    if not (whole or kinds == {float}) or (whole and not -(2**63) <= min(numbers) <= max(numbers) < 2**63):
        return None
    filled = [0 if value is None else value for value in values]
    found = {
        "dtype": "<i8" if whole else "<f8",
        "shape": [len(values)],
        "data": struct.pack(f"<{len(values)}{'q' if whole else 'd'}", *filled),
    }
    if len(numbers) < len(values):
        bits = np.array([value is None for value in values])
        found["missing"] = np.packbits(bits, bitorder="little").tobytes()
    return found


def packed(value, name="", *, axes=1):
    """A document with every array of numbers as a buffer, and with two axes rows of equal length as one."""
    if isinstance(value, dict):
        return {key: packed(entry, key, axes=axes) for key, entry in value.items()}
    if not isinstance(value, list):
        return value
    if name in KEPT_AS_LISTS or (name in PAIRS and axes == 1):
        return value
    if name in OF_OBJECTS:
        return [packed(entry, axes=axes) for entry in value]
    found = matrix_by_hand(value) if axes == 2 else None
    found = buffer_by_hand(value) if found is None else found
    return [packed(entry, name, axes=axes) for entry in value] if found is None else found


def matrix_by_hand(rows):
    """Rows of equal length as one buffer of two axes; None if they are not, or not of one kind of number."""
    if not rows or not all(isinstance(row, list) and len(row) == len(rows[0]) for row in rows):
        return None
    found = buffer_by_hand([value for row in rows for value in row])
    return None if found is None else {**found, "shape": [len(rows), len(rows[0])]}


def plain(value):
    """A document as it would stand in JSON: lists for buffers, null for NaN."""
    if isinstance(value, dict) and isinstance(value.get("data"), bytes):
        return plain(np.frombuffer(value["data"], dtype=value["dtype"]).reshape(value["shape"]).tolist())
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items() if key != "queue_s"}
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def said(response):
    """Status and document of a response, whatever its format; the sign of zero counts."""
    binary = response.headers["content-type"] == codec.MEDIA_TYPE
    document = msgpack.unpackb(response.content) if binary else json.loads(response.content)
    return response.status_code, json.dumps(plain(document), sort_keys=True)


def answers(path, body):
    """What the service says to a body: in JSON, and with and without buffers, answered in either format."""

    async def ask(service):
        bodies = [
            (json.dumps(body), {"Content-Type": "application/json"}),
            (json.dumps(body), {"Content-Type": "application/json", "Accept": codec.MEDIA_TYPE}),
            (msgpack.packb(body), {"Content-Type": codec.MEDIA_TYPE}),
            (msgpack.packb(packed(body)), BINARY),
            (msgpack.packb(packed(body, axes=2)), BINARY),
        ]
        return [await service.post(content, path, **{"X-Request-Id": "r", **headers}) for content, headers in bodies]

    return on_service(ask)


def assert_alike(path, body):
    """All formats say the same; the format of an answer is the one asked for, and a refusal is always a problem."""
    responses = answers(path, body)
    first = said(responses[0])
    assert [said(response) for response in responses] == [first] * len(responses)
    asked_for = ["application/json", codec.MEDIA_TYPE, "application/json", codec.MEDIA_TYPE, codec.MEDIA_TYPE]
    if first[0] != 200:
        asked_for = ["application/problem+json"] * 5
    assert [response.headers["content-type"] for response in responses] == asked_for
    return first


@pytest.mark.parametrize(("path", "body"), EXAMPLES)
def test_examples_have_one_answer(path, body):
    """Every example of the schema is answered alike in both formats."""
    assert assert_alike(path, body)[0] == 200


@pytest.mark.parametrize("name", [entry.name for entry in CATALOGUE.utilities])
def test_every_utility_has_one_answer(name):
    """Every utility of the catalogue, whatever columns and features it needs."""
    (body,) = [entry.example for entry in CATALOGUE.utilities if entry.name == name]
    path = SOLVE if "items" in body else SHAPLEY
    assert assert_alike(path, body)[0] == 200


rewards = st.none() | st.floats() | st.sampled_from([0.0, -0.0, 1.0, 1e100, 1e200])
wrong = st.sampled_from([None, True, "x", 1.5, [], {}, 2**62 + 1, -1, 10**30, {"data": [1.0]}])


@st.composite
def columnar_bodies(draw):
    """Columns that mostly fit each other."""
    sizes = draw(st.lists(st.integers(0, 4), min_size=1, max_size=5))
    n, k = len(sizes), sum(sizes)
    columns = {"rewards": ragged([[draw(rewards) for _ in range(size)] for size in sizes])}
    if draw(st.booleans()):
        columns["rewards"] = [[draw(rewards) for _ in range(size)] for size in sizes]
    names = st.integers(-3, 3) | st.sampled_from(["a", "b"])
    if draw(st.booleans()):
        columns["groups"] = draw(st.lists(st.integers(-3, 3), min_size=n, max_size=n) | st.lists(names, min_size=n))
    if draw(st.booleans()):
        columns["ids"] = draw(st.lists(names, min_size=n, max_size=n))
    if draw(st.booleans()):
        columns["set_rewards"] = [draw(rewards) for _ in range(n)]
    body = {"columns": columns}
    if draw(st.booleans()):
        columns["n_tokens"] = [draw(st.integers(-1, 9)) for _ in range(n)]
        starts = [draw(st.integers(0, 3)) for _ in range(k)]
        columns["spans"] = {"starts": starts, "stops": [start + 1 for start in starts]}
        body["tokens"] = {"other": "next"}
    if draw(st.booleans()):
        columns["labels"] = [draw(st.none() | st.integers(0, 2)) for _ in range(k)]
        body["utility"] = {"type": "plurality"}
    if draw(st.booleans()):
        body["advantage"] = {"type": draw(st.sampled_from(["pooled", "centered", "none"]))}
    return body


@st.composite
def damaged(draw, bodies):
    """A body of which one entry may be something else."""
    body = draw(bodies)
    if draw(st.booleans()):
        places = [place for place in spots(body) if place]
        *way, last = draw(st.sampled_from(places))
        holder = body
        for step in way:
            holder = holder[step]
        holder[last] = draw(wrong)
    return body


def spots(value, way=()):
    """The ways to all parts of a document."""
    yield way
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, entry in steps:
        yield from spots(entry, (*way, step))


def packable(body):
    """Whether MessagePack has a form for a body: its integers have 64 bits."""
    try:
        msgpack.packb(body)
    except OverflowError:
        return False
    return True


@settings(max_examples=150)
@given(damaged(columnar_bodies()).filter(packable))
def test_columns_have_one_answer(body):
    """Columns of any rewards, fitting or not, are answered or refused alike: same bits, same codes, same pointers."""
    assert_alike(SHAPLEY, body)


sets = st.fixed_dictionaries(
    {
        "group": st.sampled_from(["p", "q"]),
        "n_tokens": st.integers(0, 9),
        "candidates": st.lists(
            st.fixed_dictionaries(
                {
                    "reward": rewards,
                    "span": st.none() | st.just([0, 2]),
                    "scores": st.lists(st.floats(0, 1), max_size=2),
                }
            ),
            max_size=3,
        ),
    },
    optional={"set_reward": rewards, "id": st.integers(0, 5)},
)
nested_bodies = st.fixed_dictionaries(
    {"sets": st.lists(sets, min_size=1, max_size=4)},
    optional={"tokens": st.just({"other": "set"}), "credit": st.just({"type": "mixture", "weights": [0.5, 0.25]})},
)


@settings(max_examples=60)
@given(damaged(nested_bodies).filter(packable))
def test_sets_have_one_answer(body):
    """The nested form, too, with whatever is wrong in it."""
    assert_alike(SHAPLEY, body)


group_rows = st.lists(st.lists(rewards, min_size=2, max_size=2), min_size=1, max_size=4) | st.lists(
    st.lists(rewards, max_size=3), min_size=1, max_size=4
)
group_bodies = st.fixed_dictionaries(
    {"rewards": group_rows | st.dictionaries(st.sampled_from(["a", "b", "data"]), group_rows, max_size=2)},
    optional={
        "advantage": st.fixed_dictionaries({"type": st.sampled_from(["grpo", "rloo", "gdpo", "leave_one_out"])}),
        "n_tokens": st.lists(st.lists(st.integers(-1, 9), min_size=2, max_size=2), min_size=1, max_size=4),
        "convention": st.just("verl"),
    },
)


@settings(max_examples=80)
@given(damaged(group_bodies).filter(packable))
def test_groups_have_one_answer(body):
    """Rows of rewards, named or not, equally long or not."""
    assert_alike(GROUP, body)


@st.composite
def solve_bodies(draw):
    """Games of up to three players with all or some of their utilities."""
    items = []
    for _ in range(draw(st.integers(1, 3))):
        n = draw(st.integers(1, 3))
        known = range(2**n)
        if draw(st.booleans()):
            known = draw(st.lists(st.sampled_from(known), unique=True))
        coalitions = [[player for player in range(n) if mask >> player & 1] for mask in known]
        utilities = [draw(st.floats(-9, 9) if draw(st.integers(0, 9)) else rewards) for _ in coalitions]
        items.append({"n_players": n, "coalitions": coalitions, "utilities": utilities, "n_tokens": 4})
        if draw(st.booleans()):
            items[-1]["spans"] = [[place, place + 1] for place in range(n)]
    return {"items": items, "tokens": {"other": "set"} if draw(st.booleans()) else None, "batch_size": 4}


@settings(max_examples=60)
@given(damaged(solve_bodies()).filter(packable))
def test_games_have_one_answer(body):
    """Games that a caller evaluates, open, solved or failed."""
    assert_alike(SOLVE, body)


def test_a_null_is_not_scored_and_a_nan_is_an_error():
    """The mask of a buffer says what is null; a NaN in its data costs its set, as in JSON."""
    rewards = {"values": {**buffer_by_hand([1.0, None, 3.0, 0.5]), "missing": b"\2"}, "row_splits": [0, 2, 4]}
    found = post(msgpack.packb({"columns": {"rewards": rewards}}), headers={"Content-Type": codec.MEDIA_TYPE}).json()
    assert found["columns"]["status"] == [0, 0]
    assert found["columns"]["credits"]["values"][1] is None
    rewards["values"] = buffer_by_hand([1.0, math.nan, 3.0, 0.5])
    found = post(msgpack.packb({"columns": {"rewards": rewards}}), headers={"Content-Type": codec.MEDIA_TYPE}).json()
    assert found["columns"]["status"] == [1, 0]
    assert [(one["code"], one["pointer"]) for one in found["errors"]] == [
        ("non_finite_value", "/columns/rewards/values/1")
    ]


def test_slots_of_a_failed_set_are_nan():
    """In the binary format there is NaN where JSON has null, in buffers of eight-byte floats."""
    body = msgpack.packb(packed(columnar([[math.nan, 1.0], [0.5, 0.25]])))
    columns = codec.decode(post(body, headers=BINARY).content, arrays=True)["columns"]
    assert np.isnan(columns["credits"]["values"]).tolist() == [True, True, False, False]
    assert columns["credits"]["values"].dtype == np.float64
    assert columns["status"].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        (codec.MEDIA_TYPE, codec.MEDIA_TYPE),
        (codec.MEDIA_TYPE.upper(), codec.MEDIA_TYPE),
        (f"{codec.MEDIA_TYPE}, application/json;q=0.5", codec.MEDIA_TYPE),
        (f"application/json, {codec.MEDIA_TYPE};q=0.5", "application/json"),
        (f"application/json;q=0.1, {codec.MEDIA_TYPE} ; q = 0.5", codec.MEDIA_TYPE),
        (f"{codec.MEDIA_TYPE};q=0", "application/json"),
        (f"{codec.MEDIA_TYPE};q=0.5, */*", "application/json"),
        ("text/html", "application/json"),
        (f"{codec.MEDIA_TYPE};q=x", codec.MEDIA_TYPE),
        (",;,;q=", "application/json"),
    ],
)
def test_accept_chooses_the_format(accept, expected):
    """The binary format where it is named and liked no less than JSON; JSON for everybody else."""
    headers = {} if accept is None else {"Accept": accept}
    assert post(columnar(), headers=headers).headers["content-type"] == expected


@pytest.mark.parametrize("path", [SHAPLEY, SOLVE, GROUP, SCAR, SCAR_SOLVE, OAR, COMPOSE])
@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "ends too early"),
        (b"{}", "something follows its end"),
        (b"\x82\xa7columns\x80\xa7columns\x80", "a key is repeated"),
        (b"\x81\xa7columns\xc7\x00\x05", "extension type"),
        (b"\xdd\xff\xff\xff\xff", "ends too early"),
        (b"\x91" * 100_000, "too"),
    ],
)
def test_what_is_no_document_is_a_problem(path, body, sentence):
    """A body that is not MessagePack is 422 with a pointer to the whole, and nothing of it is repeated."""
    response = post(body, path, headers=BINARY)
    assert (response.status_code, response.headers["content-type"]) == (422, "application/problem+json")
    document = response.json()
    assert document["code"] == "invalid_request"
    assert sentence in document["detail"]
    assert [item["pointer"] for item in document["errors"]] == [""]


def test_the_type_that_is_declared_counts():
    """JSON under the binary type is no document, and the other way round."""
    assert post(json.dumps(columnar()), headers=BINARY).status_code == 422
    assert post(msgpack.packb(columnar())).status_code == 422


def test_each_format_has_its_own_limit():
    """A body of buffers may be larger than JSON; what it has beside them may not."""
    limits = {"max_body_bytes": 2048, "max_binary_body_bytes": 8192}
    body = columnar([[0.5] * 10] * 50)
    buffers, lists = msgpack.packb(packed(body)), msgpack.packb(body)
    assert 2048 < len(buffers) < len(lists) < 8192
    assert post(buffers, headers=BINARY, **limits).status_code == 200
    refused = post(lists, headers=BINARY, **limits)
    assert (refused.status_code, refused.json()["code"]) == (413, "body_too_large")
    assert "more than 2048 bytes beside buffers" in refused.json()["detail"]
    too_large = post(buffers + b"\0" * 8192, headers=BINARY, **limits)
    assert (too_large.status_code, too_large.json()["code"]) == (413, "body_too_large")
    assert post(body, **limits).status_code == 413


def test_another_type_is_refused_with_both_names():
    """The sentence names what is spoken here."""
    response = post(b"", headers={"Content-Type": "application/msgpack"})
    assert response.status_code == 415
    assert "application/json" in response.json()["detail"]
    assert codec.MEDIA_TYPE in response.json()["detail"]


def test_a_failed_request_is_a_problem_whatever_was_accepted():
    """Nobody has to read MessagePack to learn what is wrong."""
    response = post(msgpack.packb(packed(columnar([[math.nan]]))), headers=BINARY)
    assert (response.status_code, response.headers["content-type"]) == (422, "application/problem+json")
    assert response.json()["code"] == "non_finite_value"


def test_the_worked_group_is_answered_in_binary():
    """The numbers of the method come out of buffers as they do of text."""
    body = {"columns": {"rewards": packed(ragged(WORKED_REWARDS)), "groups": ["p"] * 4}}
    columns = codec.decode(post(msgpack.packb(body), headers=BINARY).content, arrays=True)["columns"]
    in_text = post(columnar()).json()["columns"]
    assert columns["advantages"]["values"].tolist() == in_text["advantages"]["values"]
    assert columns["flag_names"] == in_text["flag_names"]


def test_the_document_lists_both_formats():
    """Each POST route takes and gives both, by one schema."""

    async def ask(service):
        return (await service.client.get("/openapi.json")).json()

    paths = on_service(ask)["paths"]
    for path in (SHAPLEY, SOLVE, GROUP, SCAR, SCAR_SOLVE, OAR, COMPOSE):
        operation = paths[path]["post"]
        for content in (operation["requestBody"]["content"], operation["responses"]["200"]["content"]):
            assert set(content) == {"application/json", codec.MEDIA_TYPE}
            assert content["application/json"]["schema"] == content[codec.MEDIA_TYPE]["schema"]
        assert operation["requestBody"]["description"] == _FORMATS


@pytest.mark.parametrize(("n_sets", "on_the_loop"), [(4, True), (40_000, False)])
def test_large_binary_bodies_are_read_on_a_thread(monkeypatch, n_sets, on_the_loop):
    """Buffers of megabytes are copied and converted off the event loop, and answered as small ones are."""
    threads = []

    def parse(*arguments):
        threads.append(threading.get_ident())
        return parse_body(*arguments)

    monkeypatch.setattr(credit, "parse_body", parse)
    rewards = np.tile(np.array(WORKED_REWARDS), (n_sets // 4, 1)).astype("<f8")
    body = codec.encode({"columns": {"rewards": rewards, "groups": np.arange(n_sets) // 4}})
    assert (len(body) > credit.LARGE_BODY_BYTES) is not on_the_loop
    response = post(body, headers=BINARY, max_body_bytes=1 << 20)
    advantages = codec.decode(response.content, arrays=True)["columns"]["advantages"]["values"]
    in_text = post(columnar()).json()["columns"]["advantages"]["values"]
    assert advantages[: len(in_text)].tolist() == in_text
    assert [thread == threading.get_ident() for thread in threads[:1]] == [on_the_loop]
