import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditd.server.errors import ServiceError
from creditd.server.json_bodies import check_keys, check_size, may_repeat_keys
from creditd.wire.catalogue import CATALOGUE
from creditd.wire.codec import BYTES_PER_ARRAY, BYTES_PER_OBJECT
from creditd.wire.compose import ComposeRequest
from creditd.wire.errors import ErrorCode
from creditd.wire.groups import GroupRequest
from creditd.wire.scar import ScarRequest, ScarSolveRequest
from creditd.wire.solve import SolveRequest
from creditd.wire.v1 import ShapleyRequest
from wire.forms import FORMS, in_form, sets_with_everything

LIMIT = 1 << 12
"""Bytes of a body in these tests, from which the most arrays and objects follow."""

POSTED = [
    (model, example)
    for model in (ShapleyRequest, SolveRequest, GroupRequest, ScarRequest, ScarSolveRequest, ComposeRequest)
    for example in model.model_config["json_schema_extra"]["examples"]
]
CATALOGUED = [
    (SolveRequest if "items" in entry.example else ShapleyRequest, entry.example) for entry in CATALOGUE.utilities
]
WITH_EVERYTHING = [
    (ShapleyRequest, in_form(form, sets_with_everything(named=named))) for form in FORMS for named in (False, True)
]
STRANGE = [
    (ShapleyRequest, {"sets": [{"candidates": [{"reward": 1, "text": 'he: "a": {"b": [1]}\\'}]}]}),
    (ShapleyRequest, {"columns": {"named_rewards": {":": [[1.0]], '"': [[2.0]], "\\": [[3.0]]}}}),
    (ShapleyRequest, {"columns": {"rewards": [[1.0]], "texts": ['" :', '":', '\\":', "\\\\"]}}),
]
SOUND = POSTED + CATALOGUED + WITH_EVERYTHING + STRANGE


def checked(body, asked):
    """Look for repeated keys as a route does: by a second parse, where the number of colons leaves a doubt."""
    if may_repeat_keys(body, asked):
        check_keys(body)


def written(document, *, spaced, escaped):
    """JSON, as other writers may have it."""
    text = json.dumps(document, separators=(" ,\n", "\t: ") if spaced else (",", ":"))
    return (text.replace('"type"', '"\\u0074ype"') if escaped else text).encode()


@pytest.mark.parametrize(("model", "document"), SOUND)
@pytest.mark.parametrize("spaced", [False, True])
@pytest.mark.parametrize("escaped", [False, True])
def test_keys_that_differ_pass(model, document, spaced, escaped):
    """No sound body is refused, whatever stands in its strings and however it is written."""
    body = written(document, spaced=spaced, escaped=escaped)
    checked(body, model.model_validate_json(body))
    check_size(body, LIMIT)


def objects_in(value, pointer=""):
    """Every object of a document with its pointer."""
    if isinstance(value, dict):
        yield pointer, value
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from objects_in(entry, f"{pointer}/{str(key).replace('~', '~0').replace('/', '~1')[:64]}")


class Twice(dict):
    """An object that writes its first key twice."""

    def items(self):
        """The pairs, and the first of them again."""
        pairs = list(super().items())
        return [*pairs, pairs[0]]


@given(st.sampled_from(SOUND), st.data(), st.booleans(), st.booleans())
def test_a_key_twice_is_found_wherever_it_is(sound, data, spaced, escaped):
    """The key is named by its pointer, in whatever object it stands and however it is written."""
    model, document = sound
    document = json.loads(json.dumps(document))
    pointer, chosen = data.draw(st.sampled_from([pair for pair in objects_in(document) if pair[1]]))
    twin = Twice(chosen)
    first = next(iter(chosen)).replace("~", "~0").replace("/", "~1")[:64]

    def replaced(value):
        if value is chosen:
            return twin
        if isinstance(value, dict):
            return {key: replaced(entry) for key, entry in value.items()}
        return [replaced(entry) for entry in value] if isinstance(value, list) else value

    body = written(replaced(document), spaced=spaced, escaped=escaped)
    with pytest.raises(ServiceError) as refused:
        checked(body, model.model_validate_json(body))
    assert refused.value.code is ErrorCode.INVALID_REQUEST
    assert [item.pointer for item in refused.value.items] == [f"{pointer}/{first}"]
    assert "repeated" in refused.value.detail


def test_numbers_of_any_length_are_no_hindrance():
    """The second parse of a doubtful body does not stumble over digits that Python does not convert."""
    digits = b"9" * 4000 + b".0"
    body = b'{"columns":{"rewards":[[' + digits + b']],"texts":["a :"],"texts":["b :"]}}'
    with pytest.raises(ServiceError, match="/columns/texts"):
        checked(body, ShapleyRequest.model_validate_json(body))


@pytest.mark.parametrize(
    ("unit", "bytes_each", "name"), [(b"[]", BYTES_PER_ARRAY, "arrays"), (b"{}", BYTES_PER_OBJECT, "objects")]
)
def test_arrays_and_objects_are_counted(unit, bytes_each, name):
    """As many as the limit allows pass, and one more does not."""
    most = LIMIT // bytes_each
    check_size(b",".join([unit] * most), LIMIT)
    with pytest.raises(ServiceError, match=f"more than {most} {name}, the limit") as refused:
        check_size(b",".join([unit] * (most + 1)), LIMIT)
    assert refused.value.code is ErrorCode.BODY_TOO_LARGE


@pytest.mark.parametrize("text", ["[" * LIMIT, "{[" * LIMIT, '\\"[{' * LIMIT, "\\" * LIMIT + "[" * LIMIT])
def test_brackets_in_strings_do_not_count(text):
    """A text full of brackets, quotes and backslashes is a text."""
    check_size(json.dumps({"sets": [{"candidates": [{"text": text}]}]}).encode(), LIMIT)
    with pytest.raises(ServiceError):
        check_size(json.dumps([text, [[]] * LIMIT]).encode(), LIMIT)
