"""The binary format: `application/vnd.creditd.v1+msgpack`, the documents of JSON in MessagePack.

Every document is the JSON one, field by field, in which an array of numbers may be a raw buffer (`creditd.wire.buffers`
has its form). In answers arrays of numbers are buffers, and NaN stands in them where JSON has null.

A body is walked before anything of it is built, so that no claim makes anything large: lengths are checked against the
bytes that are there, and everything but buffers is bounded as a JSON body is. Keys are different strings; extension
types are refused. Containers nest at most 1,024 deep; as each was seen to hold what it claims, depth adds nothing.
Arrays and objects are counted while they are built: one of a byte or two takes a hundred times as much when it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgpack
import numpy as np

from creditd.wire.buffers import NumbersAndNulls, array_of, buffer_of, is_buffer

MEDIA_TYPE = "application/vnd.creditd.v1+msgpack"

BYTES_PER_ARRAY = 8
"""A body may have as many arrays as the limit on its text has times so many bytes."""
BYTES_PER_OBJECT = 16
"""The same of objects, which cost more."""
MAX_DEPTH = 16
"""How deep objects, and lists of objects, nest around buffers in a body that is larger than its text may be."""
MAX_ENTRIES = 1 << 16
"""Most entries of them in such a body."""
_STEP = 4096
"""Bytes of a list that are looked at first; twice as many each time that it is longer."""
_OBJECT_HEADS = {0xDE: 2, 0xDF: 4}
_LIST_HEADS = {0xDC: 2, 0xDD: 4}
_BYTES_HEADS = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_TEXT_HEADS = {0xD9: 1, 0xDA: 2, 0xDB: 4}


class MalformedBodyError(ValueError):
    """A body that is not MessagePack; the message has no word of the body."""


class OversizedBodyError(MalformedBodyError):
    """A body of more than the limits."""


def encode(document: Mapping[str, Any]) -> bytes:
    """A document in the binary format.

    Args:
        document: Objects, lists, strings and numbers; arrays and their scalars at any place.

    Returns:
        MessagePack in which every array is a buffer.

    Raises:
        TypeError: If it holds something else, or an integer of more than 64 bits.
        ValueError: If a string is no text.
    """
    packed: bytes = msgpack.packb(document, default=_packed)
    return packed


def decode(body: bytes, max_text_bytes: int | None = None, *, arrays: bool = False) -> Any:  # noqa: ANN401 - a document
    """The document of a body.

    Args:
        body: MessagePack.
        max_text_bytes: Most bytes of everything but buffers, which bounds the number of arrays and of objects as well;
            None: as many as there are.
        arrays: Whether buffers become arrays, for a reader that trusts the sender. A service leaves them to its schema.

    Returns:
        Objects, lists, strings, numbers and bytes.

    Raises:
        MalformedBodyError: If the body is cut off, has something behind its end, repeats a key, has a key that is no
            string or a type that JSON lacks.
        OversizedBodyError: If it has more than the limits.

    Cost:
        Memory in proportion to the body, whatever it claims; each buffer is copied once.
    """
    try:
        if max_text_bytes is not None and len(body) > max_text_bytes:
            _Walk(body, max_text_bytes).check()
        else:
            _check_whole(body)
        as_object = _with_arrays if arrays else _object
        if max_text_bytes is None:
            return msgpack.unpackb(body, object_pairs_hook=as_object, max_ext_len=0, ext_hook=_ext)
        counted = _Counted(max_text_bytes, as_object)
        return msgpack.unpackb(
            body, list_hook=counted.array, object_pairs_hook=counted.object, max_ext_len=0, ext_hook=_ext
        )
    except MalformedBodyError:
        raise
    except UnicodeDecodeError:
        raise MalformedBodyError("a string is not UTF-8") from None
    except msgpack.StackError:
        raise MalformedBodyError("it is nested too deeply") from None
    except msgpack.OutOfData:
        raise MalformedBodyError("it ends too early") from None
    except ValueError:
        raise MalformedBodyError("it has something that JSON lacks, or no form at all") from None


def _check_whole(body: bytes) -> None:
    """Every container holds what it claims, and the body ends with the document. Nothing is built."""
    reader = msgpack.Unpacker(max_buffer_size=len(body) or 1)
    reader.feed(body)
    reader.skip()
    if reader.tell() != len(body):
        raise MalformedBodyError("something follows its end")


class _Counted:
    """Hooks of the parser that end it at one array, or one object, too many."""

    def __init__(self, max_text_bytes: int, as_object: Callable[[list[tuple[Any, Any]]], Any]) -> None:
        self.most_arrays = self.arrays_left = max_text_bytes // BYTES_PER_ARRAY
        self.most_objects = self.objects_left = max_text_bytes // BYTES_PER_OBJECT
        self.as_object = as_object

    def array(self, found: list[Any]) -> list[Any]:
        """An array, as it is."""
        self.arrays_left -= 1
        if self.arrays_left < 0:
            raise OversizedBodyError(f"it has more than {self.most_arrays} arrays")
        return found

    def object(self, pairs: list[tuple[Any, Any]]) -> Any:  # noqa: ANN401 - an object or an array
        """What an object stands for."""
        self.objects_left -= 1
        if self.objects_left < 0:
            raise OversizedBodyError(f"it has more than {self.most_objects} objects")
        return self.as_object(pairs)


def _object(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MalformedBodyError("a key is repeated")
    if not set(map(type, found)) <= {str}:
        raise MalformedBodyError("a key is not a string")
    return found


def _with_arrays(pairs: list[tuple[Any, Any]]) -> Any:  # noqa: ANN401 - an object or an array
    found = _object(pairs)
    return array_of(found) if is_buffer(found) else found


def _ext(_: int, __: bytes) -> object:
    raise MalformedBodyError("it has an extension type")


def _packed(value: object) -> object:
    if isinstance(value, np.ndarray | NumbersAndNulls):
        return buffer_of(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no binary form")


class _Walk:
    """A look at a body that is larger than its text may be.

    It enters objects and lists of objects, passes over buffers, and measures other lists.
    """

    def __init__(self, body: bytes, max_text_bytes: int) -> None:
        self.body = body
        self.view = memoryview(body)
        self.limit = max_text_bytes
        self.text_bytes = 0
        self.entries = 0

    def check(self) -> None:
        """Raise what is wrong."""
        end = self._value(0, 0)
        if end != len(self.body):
            raise MalformedBodyError("something follows its end")

    def _value(self, at: int, depth: int) -> int:
        """Where the value that begins at a place ends."""
        head = self._bytes(at, 1)
        if 0x80 <= head <= 0x8F or head in _OBJECT_HEADS:
            return self._entries(at, head, depth)
        if head in _BYTES_HEADS:
            width = _BYTES_HEADS[head]
            return self._end(at + 1 + width + self._bytes(at + 1, width), at + 1 + width, at)
        if (0x90 <= head <= 0x9F or head in _LIST_HEADS) and self._begins_with_object(at, head):
            return self._list(at, head, depth)
        return self._measured(at)

    def _entries(self, at: int, head: int, depth: int) -> int:
        width = _OBJECT_HEADS.get(head, 0)
        count, place = self._entered(at, head, width, depth)
        for _ in range(count):
            place = self._value(self._key(place), depth + 1)
        return place

    def _list(self, at: int, head: int, depth: int) -> int:
        width = _LIST_HEADS.get(head, 0)
        count, place = self._entered(at, head, width, depth)
        for _ in range(count):
            place = self._value(place, depth + 1)
        return place

    def _entered(self, at: int, head: int, width: int, depth: int) -> tuple[int, int]:
        """How many entries a container has, and where the first one begins."""
        if depth == MAX_DEPTH:
            raise MalformedBodyError("it is nested too deeply")
        count = self._bytes(at + 1, width) if width else head & 0x0F
        self.entries += count
        if self.entries > MAX_ENTRIES:
            raise OversizedBodyError(f"it has more than {MAX_ENTRIES} entries of objects beside buffers")
        return count, self._end(at + 1 + width, at + 1 + width, at)

    def _begins_with_object(self, at: int, head: int) -> bool:
        """Whether the first entry of a list is an object, so that buffers may stand in the list."""
        first = at + 1 + _LIST_HEADS.get(head, 0)
        if head == 0x90 or first >= len(self.body):
            return False
        return 0x80 <= self.body[first] <= 0x8F or self.body[first] in _OBJECT_HEADS

    def _key(self, at: int) -> int:
        head = self._bytes(at, 1)
        if not 0xA0 <= head <= 0xBF and head not in _TEXT_HEADS:
            raise MalformedBodyError("a key is not a string")
        width = _TEXT_HEADS.get(head, 0)
        end = at + 1 + width + (self._bytes(at + 1, width) if width else head & 0x1F)
        return self._end(end, end, at)

    def _measured(self, at: int) -> int:
        """The end of a value that is no object and no buffer; it is text altogether."""
        left = min(len(self.body) - at, self.limit - self.text_bytes + 1)
        step = _STEP
        while True:
            reader = msgpack.Unpacker(max_buffer_size=max(min(step, left), 1))
            reader.feed(self.view[at : at + min(step, left)])
            try:
                reader.skip()
            except msgpack.OutOfData:
                if step >= left:
                    if at + left == len(self.body):
                        raise
                    raise self._too_much() from None
                step *= 2
                continue
            end: int = at + reader.tell()
            return self._end(end, end, at)

    def _end(self, end: int, end_of_text: int, at: int) -> int:
        """A place that is reached, after the text before it is counted."""
        if end > len(self.body):
            raise MalformedBodyError("it ends too early")
        self.text_bytes += end_of_text - at
        if self.text_bytes > self.limit:
            raise self._too_much()
        return end

    def _bytes(self, at: int, width: int) -> int:
        if at + width > len(self.body):
            raise MalformedBodyError("it ends too early")
        return int.from_bytes(self.view[at : at + width], "big")

    def _too_much(self) -> OversizedBodyError:
        return OversizedBodyError(f"it has more than {self.limit} bytes beside buffers")
