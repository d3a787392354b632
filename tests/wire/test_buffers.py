import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from creditd.wire import fields, groups
from creditd.wire.buffers import DTYPES, MANY_TIMES, MAX_EMPTY_ROWS, NumbersAndNulls, array_of, buffer_of

CODES = {"<f8": "d", "<f4": "f", "<i8": "q", "<i4": "i"}
COLUMNS = {
    "numbers": fields.NumberColumn,
    "numbers or null": fields.NumberOrNullColumn,
    "indices": fields.IndexColumn,
    "names": fields.NameColumn,
    "names of candidates": fields.CandidateNameColumn,
    "names or null": fields.CandidateNameOrNullColumn,
    "a list of numbers": fields.Numbers,
    "a list of numbers or null": fields.NumbersOrNull,
    "a list of indices": fields.Indices,
    "a list of names": fields.Names,
}


def checked(kind, value, *, json=False):
    """A value, or a list in JSON, as a field of a strict model; the message and the place of what is wrong."""
    adapter = TypeAdapter(kind)
    try:
        found = adapter.validate_json(value, strict=True) if json else adapter.validate_python(value, strict=True)
    except ValidationError as error:
        return [(entry["loc"][-1:], entry["type"]) for entry in error.errors()][:1]
    return found


def packed(values, dtype):
    """A buffer written by hand; null is marked in a mask, and is 7 in the data."""
    data = struct.pack(f"<{len(values)}{CODES[dtype]}", *(7 if value is None else value for value in values))
    buffer = {"dtype": dtype, "shape": [len(values)], "data": data}
    if None in values:
        bits = [0] * -(-len(values) // 8)
        for place, value in enumerate(values):
            bits[place // 8] |= (value is None) << place % 8
        buffer["missing"] = bytes(bits)
    return buffer


def lists(found):
    """A column as a list."""
    return found.tolist() if hasattr(found, "tolist") else found


def text(values):
    """The list as JSON."""
    return "[" + ",".join("null" if value is None else repr(value) for value in values) + "]"


whole = st.integers(-(2**31), 2**31 - 1) | st.none()
large = st.integers(-(2**63), 2**63 - 1)
real = st.floats(allow_nan=False, allow_infinity=False) | st.none()


@pytest.mark.parametrize("name", COLUMNS)
@given(values=st.data())
def test_a_buffer_says_what_the_list_says(name, values):
    """The same numbers or the same offence at the same place, whether a list in JSON or a buffer brings them."""
    dtype = values.draw(st.sampled_from(sorted(CODES)))
    entries = {"<f8": real, "<f4": real.map(_single), "<i8": whole | large, "<i4": whole}[dtype]
    numbers = values.draw(st.lists(entries, max_size=20))
    if dtype.startswith("<f"):
        numbers = [None if value is None else float(value) for value in numbers]
    ours = checked(COLUMNS[name], packed(numbers, dtype))
    theirs = checked(COLUMNS[name], text(numbers), json=True)
    if isinstance(theirs, list) and theirs and isinstance(theirs[0], tuple):
        assert ours[0][0] == theirs[0][0]
    else:
        assert lists(ours) == theirs
        assert [type(one) for one in lists(ours)] == [type(one) for one in theirs]


def _single(value):
    """The nearest number of four bytes that has one."""
    return None if value is None or abs(value) > 3e38 else float(np.float32(value))


@pytest.mark.parametrize("length", [fields.MAX_SETS + 1, MANY_TIMES * fields.MAX_SETS + 1])
def test_an_array_that_is_too_long_says_what_the_list_says(length):
    """The sentence, and the number in it, are those of a list, also where none of that length is made."""
    adapter = TypeAdapter(fields.NameColumn)
    with pytest.raises(ValidationError) as of_list:
        adapter.validate_python([0] * length)
    with pytest.raises(ValidationError) as of_buffer:
        adapter.validate_python(buffer_of(np.zeros(length, dtype=np.int64)) | {"data": bytes(8 * length)})
    assert [(e["type"], e["loc"], e["msg"]) for e in of_buffer.value.errors()] == [
        (e["type"], e["loc"], e["msg"]) for e in of_list.value.errors()
    ]


def test_a_column_is_a_view_of_the_bytes():
    """A buffer of eight-byte numbers is neither copied nor made into objects, and nobody can write into it."""
    buffer = packed([0.5, -0.0, 2.5], "<f8")
    found = checked(fields.NumberColumn, buffer)
    assert isinstance(found, np.ndarray)
    assert not found.flags.writeable
    assert np.shares_memory(found, np.frombuffer(buffer["data"], dtype=np.uint8))
    assert np.signbit(found).tolist() == [False, True, False]


def test_nan_is_sent_and_null_is_marked():
    """A NaN in the data is no null, whatever the mask says of others."""
    found = checked(fields.NumberOrNullColumn, packed([float("nan"), None, 1.0], "<f8"))
    assert isinstance(found, NumbersAndNulls)
    assert found.missing.tolist() == [False, True, False]
    assert np.isnan(found.values).tolist() == [True, False, False]
    nothing_missing = {**packed([float("nan")], "<f8"), "missing": b"\0"}
    assert isinstance(checked(fields.NumberOrNullColumn, nothing_missing), np.ndarray)


@pytest.mark.parametrize("rows", [[[1.0, 2.0], [3.0, 4.0]], [[1.0], [2.0], [3.0]], [[], []]])
def test_rows_of_equal_length_are_one_buffer(rows):
    """Two axes stand for a list of rows."""
    flat = [value for row in rows for value in row]
    buffer = {**packed(flat, "<f8"), "shape": [len(rows), len(rows[0])]}
    assert checked(groups.GroupRewards, buffer).tolist() == rows


@pytest.mark.parametrize("shape", [[0, 3], [MAX_EMPTY_ROWS + 1, 0], [2**60, 0]])
def test_rows_are_counted(shape):
    """As few and as many rows as in JSON, also where there is nothing in them."""
    with pytest.raises(ValidationError) as caught:
        groups.GroupRequest.model_validate({"rewards": {"dtype": "<f8", "shape": shape, "data": b""}})
    assert {entry["loc"][:1] for entry in caught.value.errors()} == {("rewards",)}
    most = {"dtype": "<f8", "shape": [MAX_EMPTY_ROWS, 0], "data": b""}
    assert len(groups.GroupRequest.model_validate({"rewards": most}).rewards) == MAX_EMPTY_ROWS


GOOD = packed([1.0, 2.0], "<f8")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"dtype": "<f2"}, "unknown dtype"),
        ({"dtype": ">f8"}, "unknown dtype"),
        ({"dtype": "|O"}, "unknown dtype"),
        ({"dtype": "<U4"}, "unknown dtype"),
        ({"dtype": ["<f8"]}, "unknown dtype"),
        ({"dtype": None}, "unknown dtype"),
        ({"shape": 2}, "one or two counts"),
        ({"shape": []}, "one or two counts"),
        ({"shape": [2, 1, 1]}, "one or two counts"),
        ({"shape": [-2]}, "one or two counts"),
        ({"shape": [2.0]}, "one or two counts"),
        ({"shape": [True, True]}, "one or two counts"),
        ({"shape": [3]}, "got 16 bytes"),
        ({"shape": [2**60]}, "got 16 bytes"),
        ({"shape": [2**63]}, "got 16 bytes"),
        ({"shape": [0]}, "got 16 bytes"),
        ({"data": b""}, "got 0 bytes"),
        ({"data": b"123"}, "got 3 bytes"),
        ({"missing": b""}, "expected 1 bytes"),
        ({"missing": b"\0\0"}, "expected 1 bytes"),
        ({"missing": "no"}, "expected 1 bytes"),
        ({"strides": [8]}, "expected an array"),
    ],
)
def test_parts_that_do_not_fit_are_told(change, sentence):
    """Each in one sentence, at the place of the column, before anything is made of a number that the buffer claims."""
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(fields.NumberColumn).validate_python({**GOOD, **change}, strict=True)
    (entry,) = caught.value.errors()
    assert entry["loc"] == ()
    assert sentence in entry["msg"]


def test_axes_are_those_of_the_list():
    """A row where rows belong, and rows where a row belongs, are what they would be as lists."""
    assert checked(fields.NumberColumn, {**GOOD, "shape": [1, 2]}) == [((0,), "float_type")]
    assert checked(groups.GroupRewards, GOOD) == [((0,), "list_type")]
    assert checked(fields.NumberColumn, {**GOOD, "shape": [0, 2], "data": b""}) == []


@pytest.mark.parametrize("name", ["dtype", "shape"])
def test_a_buffer_has_all_its_parts(name):
    """Without its type or its shape there are only bytes."""
    with pytest.raises(ValidationError, match="expected an array, or a buffer"):
        TypeAdapter(fields.NumberColumn).validate_python({key: GOOD[key] for key in GOOD if key != name}, strict=True)


def test_an_object_is_no_array():
    """What has no bytes is refused in the words for JSON."""
    for value in ({}, {"data": [1.0]}, {"values": [1.0]}, b"12345678", "x", None, 1.0):
        assert checked(fields.NumberColumn, value) == [((), "list_type")]


def test_json_has_no_buffers():
    """In JSON an object is no array, whatever it holds."""
    body = '{"dtype": "<f8", "shape": [0], "data": ""}'
    assert checked(fields.NumberColumn, body, json=True) == [((), "list_type")]


@given(st.lists(st.none() | st.integers(-5, 5), min_size=1, max_size=20))
def test_nulls_survive_both_ways(values):
    """Numbers and nulls, through a buffer and back."""
    missing = np.array([value is None for value in values])
    column = NumbersAndNulls(values=np.array([value or 0 for value in values]), missing=missing)
    buffer = {key: bytes(part) if isinstance(part, memoryview) else part for key, part in buffer_of(column).items()}
    found = array_of(buffer)
    assert isinstance(found, NumbersAndNulls)
    assert found.tolist() == column.tolist() == values
    assert len(found) == len(values)


def test_the_published_schema_is_that_of_lists():
    """Buffers leave no trace in the JSON schema."""
    assert TypeAdapter(fields.NumberColumn).json_schema() == {"items": {"type": "number"}, "type": "array"}
    assert set(DTYPES) == set(CODES)


def travelled(array):
    """A buffer as it arrives."""
    return {name: bytes(part) if isinstance(part, memoryview) else part for name, part in buffer_of(array).items()}


@given(st.lists(st.lists(st.integers(-(2**62), 2**62), min_size=2, max_size=2), max_size=5))
def test_pairs_are_one_buffer_of_two_axes(pairs):
    """Lists of pairs and a buffer of as many rows are the same integers."""
    values = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    assert lists(checked(fields.IndexPairs, travelled(values))) == pairs
    assert checked(fields.IndexPairs, pairs) == checked(fields.IndexPairs, repr(pairs), json=True) == pairs


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ([2, 3], [((0,), "too_long")]),
        ([2, 1], [((0,), "too_short")]),
        ([1, 2**16], [((0,), "too_long")]),
        ([2, 0], [((0,), "too_short")]),
    ],
)
def test_rows_of_another_length_are_no_pairs(shape, said):
    """What is no pair is refused in the words of the list, and no list of its length is made."""
    assert checked(fields.IndexPairs, travelled(np.zeros(shape, dtype=np.int64))) == said


@given(st.lists(st.booleans(), max_size=20))
def test_a_mask_is_a_buffer_of_ones_and_zeros(mask):
    """It arrives as bool; a list has True and False, and no numbers."""
    for dtype in (np.bool_, np.int64, np.int32):
        found = checked(fields.MaskColumn, travelled(np.array(mask, dtype=dtype)))
        assert (found.dtype, found.tolist()) == (np.bool_, mask)
    assert checked(fields.MaskColumn, mask) == mask


@pytest.mark.parametrize("wrong", [[0, 2], [-1], [0.5], [1.0]])
def test_what_is_neither_true_nor_false_is_refused(wrong):
    """Other integers, and floats, at the place of the first of them; nulls as well."""
    place = next(place for place, value in enumerate(wrong) if value not in (0, 1) or isinstance(value, float))
    assert checked(fields.MaskColumn, travelled(np.array(wrong))) == [((place,), "bool_type")]
    nulls = NumbersAndNulls(np.array([1, 1]), np.array([False, True]))
    assert checked(fields.MaskColumn, travelled(nulls)) == [((1,), "bool_type")]
