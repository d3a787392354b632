import math
import struct
import tracemalloc

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditd.wire.codec import (
    BYTES_PER_ARRAY,
    BYTES_PER_OBJECT,
    MAX_DEPTH,
    MAX_ENTRIES,
    MalformedBodyError,
    OversizedBodyError,
    decode,
    encode,
)

TEXT_LIMIT = 200
"""Bytes beside buffers in most tests here: bodies above it take the walk, those below it do not."""
SLACK_BYTES = 1 << 20
"""What a refusal may allocate for reasons of its own."""

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
)
documents = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=8), inner, max_size=6),
    max_leaves=40,
)
plain_documents = st.dictionaries(st.text(max_size=8), documents, max_size=6)
limits = st.sampled_from([None, 0, 50, TEXT_LIMIT, 10**6])


def buffer(values, dtype="<f8"):
    """A buffer written by hand."""
    code = {"<f8": "d", "<f4": "f", "<i8": "q", "<i4": "i"}[dtype]
    return {"dtype": dtype, "shape": [len(values)], "data": struct.pack(f"<{len(values)}{code}", *values)}


def outcome(body, limit):
    """The document, or why there is none."""
    try:
        return decode(body, limit)
    except MalformedBodyError as error:
        return error


@given(plain_documents)
def test_a_document_comes_back_as_it_went(document):
    """What JSON can say is read as it was written, whichever way it is checked."""
    body = encode(document)
    assert decode(body) == document
    assert decode(body, 10**6) == document
    walked = encode({**document, "": b"x" * 300, "~": document})
    assert decode(walked, len(walked) - 1) == {**document, "": b"x" * 300, "~": document}


@given(st.binary(max_size=60) | plain_documents.map(encode), st.data())
def test_rubbish_is_a_sentence(body, data):
    """Bytes are a document or are refused in one sentence without a word of them; nothing else is ever raised."""
    if data.draw(st.booleans()) and body:
        place = data.draw(st.integers(0, len(body) - 1))
        body = body[:place] + data.draw(st.binary(max_size=2)) + body[place + data.draw(st.integers(0, 2)) :]
    found = {limit: outcome(body, limit) for limit in (None, 0, 7, 10**6)}
    assert isinstance(found[0], MalformedBodyError)
    for one in found.values():
        assert repr(one) == repr(found[None]) or isinstance(one, MalformedBodyError)
    assert all(10 < len(str(one)) < 100 for one in found.values() if isinstance(one, MalformedBodyError))


@given(plain_documents, limits)
def test_the_walk_and_the_parser_agree(document, limit):
    """A body that ends early, or late, is refused by both; no limit changes what a body means."""
    body = encode(document)
    for damaged in (body[:-1], body + b"\xc0"):
        with pytest.raises(MalformedBodyError):
            decode(damaged, limit)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "ends too early"),
        (b"\xc1", "no form"),
        (b"\x80\x80", "something follows"),
        (b"\xd4\x01\x00", "JSON lacks"),
        (b"\xc7\x00\x05", "extension"),
        (b"\xd6\xff\x00\x00\x00\x00", "JSON lacks"),
        (b"\xa1\xff", "UTF-8"),
        (b"\x81\x01\x02", "JSON lacks"),
        (b"\x81\xc4\x01a\x01", "a key is not a string"),
        (b"\x82\xa1a\x01\xa1a\x02", "a key is repeated"),
        (b"\x91" * 5000 + b"\xc0", "nested too deeply"),
        (b"\x91" * 5000, "ends too early|nested too deeply"),
        (b"\x9a" + b"\x82\xa1a\x01\xa1a\x02" * 10, "a key is repeated"),
    ],
)
@pytest.mark.parametrize("limit", [None, 10**6, TEXT_LIMIT])
def test_what_json_lacks_is_refused(body, limit, sentence):
    """Extension types, keys that are no strings or not different, broken text, and anything cut off."""
    if limit is not None and len(body) > limit:
        sentence = f"{sentence}|beside buffers"
    with pytest.raises(MalformedBodyError, match=sentence):
        decode(body, limit)


CLAIMS = {
    "a list": b"\xdd" + struct.pack(">I", 2**32 - 1),
    "lists in lists": (b"\xdd" + struct.pack(">I", 2**31)) * 900,
    "an object": b"\xdf" + struct.pack(">I", 2**32 - 1),
    "a string": b"\xdb" + struct.pack(">I", 2**32 - 1),
    "bytes": b"\xc6" + struct.pack(">I", 2**32 - 1),
    "an extension": b"\xc9" + struct.pack(">I", 2**32 - 1) + b"\x01",
    "a list in an object": b"\x81\xa1a\xdd" + struct.pack(">I", 2**32 - 1),
    "bytes in an object": b"\x81\xa1a\xc6" + struct.pack(">I", 2**32 - 1),
}


@pytest.mark.parametrize("name", CLAIMS)
@pytest.mark.parametrize("filled", [0, 1 << 16])
def test_a_claim_allocates_nothing(name, filled):
    """A length that is not backed by bytes is refused before anything is made for it, on both ways."""
    body = CLAIMS[name] + b"\xc0" * filled
    for limit in (None, 10**6, TEXT_LIMIT):
        tracemalloc.start()
        try:
            with pytest.raises(MalformedBodyError):
                decode(body, limit)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < SLACK_BYTES + 2 * len(body)


def test_text_is_bounded_and_buffers_are_not():
    """A limit concerns everything but the bytes of buffers in objects, to the byte."""
    document = {"columns": {"rewards": buffer([0.5] * 100), "names": ["ab"] * 20, "n": 1}}
    body = encode(document)
    text = len(body) - 800
    assert decode(body, text) == document
    with pytest.raises(MalformedBodyError, match=f"more than {text - 1} bytes"):
        decode(body, text - 1)


@pytest.mark.parametrize(
    ("empty", "bytes_each", "name"), [(b"\x90", BYTES_PER_ARRAY, "arrays"), (b"\x80", BYTES_PER_OBJECT, "objects")]
)
@pytest.mark.parametrize("large", [False, True])
def test_arrays_and_objects_are_counted(empty, bytes_each, name, large):
    """So many small containers as the limit on text allows are read, and one more is refused, on both ways."""
    most = (1 << 16) // bytes_each

    def body(count):
        tail = b"\xa1z" + encode({"": b"x" * (1 << 16)})[2:] if large else b""
        return bytes([0x81 + large]) + b"\xa1a\xdd" + struct.pack(">I", count) + empty * count + tail

    within = most - 1  # the container around them counts, too
    assert len(decode(body(within), 1 << 16)["a"]) == within
    with pytest.raises(OversizedBodyError, match=f"more than {most} {name}"):
        decode(body(within + 1), 1 << 16)
    assert len(decode(body(within + 1))["a"]) == within + 1


@pytest.mark.parametrize("tail", [{}, {"z": list(range(100))}, {"z": "x" * 100}, {"z": [[{"a": [1] * 40}] * 3] * 3}])
def test_the_last_value_counts(tail):
    """Wherever the text stands, one byte too many is one too many."""
    body = encode({"a": buffer([0.5] * 1000), **tail})
    text = len(body) - 8000
    assert decode(body, text)
    with pytest.raises(MalformedBodyError):
        decode(body, text - 1)


def test_objects_around_buffers_are_few_and_shallow():
    """A large body is entered no deeper, and at no more places, than a sensible one has."""
    deep = {"a": 1}
    for _ in range(MAX_DEPTH):
        deep = {"a": deep}
    deeper = encode({"large": b"x" * 1000, "a": deep})
    with pytest.raises(MalformedBodyError, match="nested too deeply"):
        decode(deeper, 1000)
    assert decode(deeper)
    wide = encode({str(place): None for place in range(MAX_ENTRIES + 1)})
    with pytest.raises(MalformedBodyError, match=f"more than {MAX_ENTRIES} entries"):
        decode(wide, len(wide) - 1)
    assert len(decode(wide)) == MAX_ENTRIES + 1


@pytest.mark.parametrize("count", [1, 15, 16, 300, MAX_ENTRIES // 2])
def test_buffers_in_lists_of_objects_are_no_text(count):
    """A list whose entries are objects is entered, whatever its length; what stands around buffers counts."""
    rows = [{"a": b"x" * 100, "b": "y" * 50} for _ in range(count)]
    body = encode({"items": rows, "z": b"x" * 100})
    text = len(body) - 100 * (count + 1)
    if count > 1 << 14:
        with pytest.raises(OversizedBodyError, match=f"more than {MAX_ENTRIES} entries"):
            decode(body, text)
        return
    assert decode(body, text)["items"] == rows
    with pytest.raises(OversizedBodyError, match=f"more than {text - 1} bytes"):
        decode(body, text - 1)


def test_lists_that_do_not_begin_with_an_object_are_text():
    """Bytes in such a list are counted as the text around them is."""
    body = encode({"items": [1, b"x" * 1000], "z": b"x" * 100})
    with pytest.raises(OversizedBodyError, match="more than 1000 bytes"):
        decode(body, 1000)


@given(st.lists(st.floats(width=64) | st.integers(-(2**53), 2**53), max_size=9), st.integers(1, 3))
def test_arrays_become_buffers_and_buffers_arrays(values, width):
    """Every bit of a float64 comes back, of one axis or two, and any other float or integer comes back as it was."""
    rows = np.array(values * width, dtype=np.float64).reshape(width, len(values))
    body = encode({"one": rows[0], "two": rows, "apart": rows[:, ::-1], "scalar": rows.sum()})
    raw = msgpack.unpackb(body)
    assert raw["one"] == buffer(rows[0].tolist()) or not len(values)
    found = decode(body, arrays=True)
    assert found["one"].tobytes() == rows[0].tobytes()
    assert (found["two"].shape, found["two"].tobytes()) == (rows.shape, rows.tobytes())
    assert found["apart"].tobytes() == np.ascontiguousarray(rows[:, ::-1]).tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32, np.uint8, np.bool_, np.int64, ">f8", ">i4"])
def test_numbers_of_any_type_travel_as_one_of_four(dtype):
    """The bytes are little-endian whatever the array's own order, and the values are the same."""
    array = np.array([0, 1, 1, 0], dtype=dtype)
    sent = msgpack.unpackb(encode({"a": array}))["a"]
    assert sent["dtype"] in {"<f4", "<f8", "<i8"}
    assert np.frombuffer(sent["data"], sent["dtype"]).tolist() == array.tolist()


def test_what_has_no_binary_form_is_an_error():
    """An object of another type, and an integer of more than 64 bits."""
    with pytest.raises(TypeError, match="object has no binary form"):
        encode({"a": object()})
    with pytest.raises(TypeError, match="int has no binary form"):
        encode({"a": 2**64})


def test_scalars_of_arrays_are_numbers():
    """A float of NumPy is a float, NaN included, and an integer an integer."""
    found = decode(encode({"f": np.float32(0.5), "i": np.int64(3), "n": np.float64("nan"), "b": np.bool_(1)}))
    assert (found["f"], found["i"], found["b"]) == (0.5, 3, True)
    assert math.isnan(found["n"])
