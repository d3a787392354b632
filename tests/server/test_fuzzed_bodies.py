import json
import random
import struct
import tracemalloc

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from creditd.wire import codec
from creditd.wire.catalogue import CATALOGUE
from creditd.wire.compose import ComposeRequest
from creditd.wire.errors import ERROR_KINDS, Problem
from creditd.wire.groups import GroupRequest
from creditd.wire.oar import OarRequest
from creditd.wire.scar import ScarRequest, ScarSolveRequest
from creditd.wire.solve import SolveRequest
from creditd.wire.v1 import ShapleyRequest
from server.hostile import SOLVE, one_service
from server.oar_calls import with_policies
from server.running import COMPOSE, GROUP, OAR, SCAR, SCAR_SOLVE, SHAPLEY
from server.test_binary import packed
from wire.forms import FORMS, in_form, sets_with_everything

pytestmark = pytest.mark.slow

MAX_PROBLEM_BYTES = 64 << 10
MAX_ALLOCATED_BYTES = 128 << 20
"""Largest plan of coalitions that one request may ask for, and the design that is solved for it."""

SOUND = [
    *((SHAPLEY, document) for document in ShapleyRequest.model_config["json_schema_extra"]["examples"]),
    *((SOLVE, document) for document in SolveRequest.model_config["json_schema_extra"]["examples"]),
    *((GROUP, document) for document in GroupRequest.model_config["json_schema_extra"]["examples"]),
    *((SCAR_SOLVE, document) for document in ScarSolveRequest.model_config["json_schema_extra"]["examples"]),
    *((COMPOSE, document) for document in ComposeRequest.model_config["json_schema_extra"]["examples"]),
    *((OAR, document) for document in OarRequest.model_config["json_schema_extra"]["examples"]),
    *((SCAR, document) for document in ScarRequest.model_config["json_schema_extra"]["examples"]),
    *((SOLVE if "items" in entry.example else SHAPLEY, entry.example) for entry in CATALOGUE.utilities),
    *((SHAPLEY, in_form(form, sets_with_everything(), tokens={})) for form in FORMS),
]
TOKENS = (
    *(b'"', b"\\", b"\\u", b"\\ud800", b"[", b"]", b"{", b"}", b":", b",", b'"type":', b"null", b"true", b"NaN"),
    *(b"1e400", b"-1e999", b"9" * 40, b"-0", b"1.0", b"0.1e-400", b"[" * 300, b"\x00", b"\xff", b"\xef\xbb\xbf"),
)
"""What is put into JSON."""
SIZES = (0, 7, 2**16 - 1, 2**31, 2**32 - 1)
CLAIMS = (
    *(bytes([head]) + struct.pack(">I", size) for head in (0xDB, 0xC6, 0xDD, 0xDF, 0xC9) for size in SIZES),
    *(bytes([head]) + struct.pack(">H", size) for head in (0xDA, 0xC5, 0xDC, 0xDE, 0xC8) for size in SIZES[:3]),
    *(bytes([head]) for head in (0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xC3, 0xD4, 0xFF)),
    *(b"\xcb" + struct.pack(">d", value) for value in (float("nan"), float("inf"), 1e308, 5e-324)),
    *(b"\xcf" + b"\xff" * 8, b"\xd3\x80" + b"\x00" * 7, b"\xd6\xff\x00\x00\x00\x00", b"\x91" * 300),
)
"""What is put into MessagePack: heads with claims of any size, numbers at the ends of their ranges, extensions."""


@pytest.fixture(scope="module")
def post():
    """Send a body to one service, which is there for all examples, and have the response."""
    with one_service(with_policies()) as ask:
        tracemalloc.start()
        yield ask
        tracemalloc.stop()


def assert_understood(post, body, path, media_type):
    """The answer is 200, or a problem that is known, small and short; nothing large is made on the way."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    response = post(body, path, media_type)
    assert tracemalloc.get_traced_memory()[1] - before < MAX_ALLOCATED_BYTES
    if response.status_code == 200:
        return
    problem = Problem.model_validate_json(response.content)
    # A name of a model that a bit has changed is that of none.
    assert response.status_code in ({404, 413, 422} if path in {SCAR, OAR} else {413, 422}), problem
    assert response.status_code == ERROR_KINDS[problem.code].status
    assert len(response.content) < MAX_PROBLEM_BYTES
    assert problem.detail


def damaged(body, draw, pieces):
    """The body after some bits were turned, and some bytes were cut out, repeated, moved, cut off or put in."""
    for _ in range(draw.randint(1, 4)):
        start = draw.randrange(len(body) + 1)
        stop = min(len(body), start + draw.choice((0, 1, 1, 2, 5, 30)))
        kind = draw.randrange(6)
        if kind == 0 and start < len(body):
            body = body[:start] + bytes([body[start] ^ 1 << draw.randrange(8)]) + body[start + 1 :]
        elif kind == 1:
            body = body[:start] + body[stop:]
        elif kind == 2:
            body = body[:stop] + body[start:stop] * draw.choice((1, 2, 50)) + body[stop:]
        elif kind == 3:
            body = body[:start] if draw.random() < 0.5 else body[start:]
        else:
            body = body[:start] + draw.choice(pieces) + body[stop if kind == 4 else start :]
    return body


seeds = st.integers(0, 2**32)


@settings(max_examples=400)
@given(st.sampled_from(SOUND), seeds)
def test_damaged_json_is_answered_or_refused(post, sound, seed):
    """Whatever happens to the bytes of a sound request, the service understands or says what it does not."""
    path, document = sound
    body = damaged(json.dumps(document).encode(), random.Random(seed), TOKENS)  # noqa: S311 - test data
    assert_understood(post, body, path, "application/json")


@settings(max_examples=400)
@given(st.sampled_from(SOUND), seeds, st.booleans())
def test_damaged_messagepack_is_answered_or_refused(post, sound, seed, buffers):
    """The same of the binary format, with lists and with buffers."""
    path, document = sound
    body = msgpack.packb(packed(document) if buffers else document)
    body = damaged(body, random.Random(seed), CLAIMS)  # noqa: S311 - test data
    assert_understood(post, body, path, codec.MEDIA_TYPE)


texts = st.lists(st.sampled_from([*TOKENS, b" ", b"0", b"sets", b'"sets"', b'"columns"', b'{"sets":[']), max_size=30)


@settings(max_examples=200)
@given(
    texts.map(b"".join) | st.binary(max_size=80),
    st.sampled_from([SHAPLEY, SOLVE, GROUP, SCAR, SCAR_SOLVE, OAR, COMPOSE]),
)
@example(b"", SHAPLEY)
def test_any_bytes_as_json_are_refused(post, body, path):
    """Bytes, and words of JSON in any order."""
    assert_understood(post, body, path, "application/json")


claims = st.lists(st.sampled_from([*CLAIMS, b"\x81", b"\xa4sets", b"\xa7columns", b"\xa5items", b"\x91"]), max_size=30)


@settings(max_examples=200)
@given(
    claims.map(b"".join) | st.binary(max_size=80),
    st.sampled_from([SHAPLEY, SOLVE, GROUP, SCAR, SCAR_SOLVE, OAR, COMPOSE]),
)
@example(b"", SHAPLEY)
def test_any_bytes_as_messagepack_are_refused(post, body, path):
    """Bytes, and heads of MessagePack in any order."""
    assert_understood(post, body, path, codec.MEDIA_TYPE)
