"""What a JSON body is asked beside its schema: not too many arrays and objects, and no key twice in one object.

Both are told by counting bytes, so that neither costs much beside the parser: a second parse is made only where the
counts leave a doubt.
"""

from __future__ import annotations

import json
from functools import cache
from itertools import chain
from operator import attrgetter
from typing import Any, TypeAlias, get_args, get_origin

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from creditd.server.errors import ServiceError
from creditd.wire.codec import BYTES_PER_ARRAY, BYTES_PER_OBJECT
from creditd.wire.errors import ErrorCode, ErrorItem
from creditd.wire.validation import MAX_SEGMENT, segment_of

Octets: TypeAlias = NDArray[np.uint8]

_BEFORE_COLON = np.isin(np.arange(256), np.frombuffer(b'" \t\r\n', dtype=np.uint8))
"""By byte: whether it may stand between a key and its colon, the end of the key included."""
_NAMES_GIVEN = attrgetter("__pydantic_fields_set__")


def check_size(body: bytes, max_bytes: int) -> None:
    """Refuse a body of too many arrays or objects before it is parsed: each takes a hundred times its two bytes.

    Args:
        body: JSON, or anything else, which the parser will refuse.
        max_bytes: The limit on the body's length, from which those on arrays and objects follow.

    Raises:
        ServiceError: If there are more.

    Cost:
        Nothing for a body that is too short for so many; else two looks at its bytes, and two more if its strings may
        be what holds the brackets.
    """
    for name, opening, bytes_each in (("arrays", b"[", BYTES_PER_ARRAY), ("objects", b"{", BYTES_PER_OBJECT)):
        most = max_bytes // bytes_each
        if len(body) <= most or np.count_nonzero(_octets(body) == opening[0]) <= most:
            continue
        if _outside_strings(body).count(opening) > most:
            detail = f"the body is too large: it has more than {most} {name}, the limit"
            raise ServiceError(ErrorCode.BODY_TOO_LARGE, detail)


def may_repeat_keys(body: bytes, asked: BaseModel) -> bool:
    """Whether a body may have a key twice in one object, of which the parser kept the last.

    Args:
        body: JSON.
        asked: The model that was made of it, whose fields and dictionaries hold each key once.

    Returns:
        False where no key is repeated; True where one is, or something in a string looks like one.

    Cost:
        A look at the bytes, and one at each object of the model. Every key ends in a quote, perhaps white space, and a
        colon: where there are no more such colons than the model has keys, no key is repeated.
    """
    octets = _octets(body)
    colons = np.flatnonzero(octets == ord(":"))
    return bool(np.count_nonzero(_BEFORE_COLON[octets[colons - 1]]) != _n_keys([asked]))


def check_keys(body: bytes) -> None:
    """Refuse a body that has a key twice in one object.

    Args:
        body: JSON.

    Raises:
        ServiceError: If a key is repeated.

    Cost:
        A parse in Python, which lets other threads run.
    """
    pointer = _repeated(body)
    if pointer is not None:
        detail = "the key is repeated; expected it once"
        item = ErrorItem(pointer=pointer, code=ErrorCode.INVALID_REQUEST, detail=detail)
        raise ServiceError(ErrorCode.INVALID_REQUEST, f"{pointer}: {detail}", (item,))


def _octets(body: bytes) -> Octets:
    return np.frombuffer(body, dtype=np.uint8)


def _outside_strings(body: bytes) -> bytes:
    """What of a JSON text stands in no string."""
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    return b"".join(body.split(b'"')[::2])


def _n_keys(models: list[Any]) -> int:
    """How many keys there were in the objects that models of one class were made from, those within them included."""
    total = sum(map(len, map(_NAMES_GIVEN, models)))
    for name in _fields_with_keys(models[0].__class__):
        total += _n_keys_of_values(list(map(attrgetter(name), models)))
    return total


def _n_keys_of_values(values: list[Any]) -> int:
    """The same of anything; models stand in a list with nothing else."""
    total = 0
    kinds = set(map(type, values))
    for kind in kinds:
        found: list[Any] = [value for value in values if type(value) is kind] if len(kinds) > 1 else values
        if issubclass(kind, BaseModel):
            total += _n_keys(found)
        elif kind is dict:
            total += sum(map(len, found)) + _n_keys_of_values([value for keyed in found for value in keyed.values()])
        elif kind is list and any(entries and isinstance(entries[0], BaseModel) for entries in found):
            total += _n_keys(list(chain.from_iterable(found)))
    return total


@cache
def _fields_with_keys(model: type[BaseModel]) -> tuple[str, ...]:
    """The fields of a model that may hold objects."""
    return tuple(name for name, field in model.model_fields.items() if _holds_keys(field.annotation))


def _holds_keys(annotation: object) -> bool:
    if get_origin(annotation) is None:
        return isinstance(annotation, type) and issubclass(annotation, BaseModel | dict)
    return get_origin(annotation) is dict or any(map(_holds_keys, get_args(annotation)))


class _Repeating:
    """Stands for an object that has a key twice."""

    def __init__(self, key: str) -> None:
        self.key = key


def _repeated(body: bytes) -> str | None:
    """Pointer to the first key that is repeated in its object, or None."""

    def as_object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Repeating:
        found = dict(pairs)
        if len(found) == len(pairs):
            return found
        seen: set[str] = set()
        return _Repeating(next(key for key, _ in pairs if key in seen or seen.add(key)))  # type: ignore[func-returns-value]

    # Numbers are of no interest, and float takes any number of digits.
    open_values = [("", json.loads(body, object_pairs_hook=as_object, parse_int=float))]
    while open_values:
        pointer, value = open_values.pop()
        if isinstance(value, _Repeating):
            return f"{pointer}/{segment_of(value.key)[:MAX_SEGMENT]}"
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        inner = [
            (f"{pointer}/{segment_of(str(key))[:MAX_SEGMENT]}", entry)
            for key, entry in entries
            if isinstance(entry, dict | list | _Repeating)
        ]
        open_values += reversed(inner)
    return None
