"""Arrays of numbers as raw buffers, and the fields of the schema that take them.

In the binary format an array of numbers may stand as `{"dtype": "<f8", "shape": [n], "data": BYTES}` instead of a list,
little-endian, row-major. Where the schema allows null, `"missing": BYTES` marks the nulls, one bit per number, the
lowest bit of a byte first; what `data` holds there is not looked at. A NaN in `data` was sent as NaN and is no null.

The models of the schema stay the one authority: a field that is an array of numbers is declared with `BufferOr`, which
leaves its JSON side as it is, the published schema included, and lets its Python side take a buffer in place of the
list. So JSON and binary share every other check and every pointer. A buffer that breaks a rule for the numbers in it is
shown to the list's own validator, cut down to its first offence, so that the words are the same, too. Rejected: models
of their own for binary (two schemas would drift), and lists made of all buffers (an object per number).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, InitErrorDetails, core_schema

Booleans: TypeAlias = NDArray[np.bool_]
Numeric: TypeAlias = NDArray[Any]

DTYPES: dict[str, np.dtype[Any]] = {name: np.dtype(name) for name in ("<f8", "<f4", "<i8", "<i4")}
"""What a buffer may hold; none is converted to more than twice its size."""
MAX_EMPTY_ROWS = 1 << 16
"""Most rows of a buffer without numbers, whose length says nothing of its shape."""
MANY_TIMES = 16
"""An array that is so many times too long is refused without a list of its length."""
_FIELDS = frozenset({"dtype", "shape", "data", "missing"})
_REQUIRED = ("dtype", "shape", "data")


class NumbersAndNulls:
    """Numbers, some of which are null.

    No dataclass, because writers of JSON know dataclasses and would write its parts.

    Attributes:
        values: float64 or int64; what stands at a null means nothing.
        missing: Of the same shape, bool; True for null.
    """

    __slots__ = ("missing", "values")

    def __init__(self, values: Numeric, missing: Booleans) -> None:
        self.values = values
        self.missing = missing

    def __len__(self) -> int:
        return len(self.values)

    def tolist(self) -> list[Any]:
        """The same as lists, with None for null."""
        objects = self.values.astype(np.object_)
        objects[self.missing] = None
        found: list[Any] = objects.tolist()
        return found


def array_of(buffer: Mapping[str, Any]) -> Numeric | NumbersAndNulls:
    """The array that a buffer holds.

    Args:
        buffer: An object with `dtype`, `shape`, `data` and perhaps `missing`, as it was sent.

    Returns:
        A read-only view of the bytes, or numbers with nulls.

    Raises:
        ValueError: If the parts do not fit each other, in one sentence without a word of the input.

    Cost:
        O(1) without nulls: nothing is allocated for the numbers.
    """
    if not buffer.keys() <= _FIELDS or any(name not in buffer for name in _REQUIRED):
        raise ValueError("expected an array, or a buffer with dtype, shape, data and perhaps missing")
    dtype = DTYPES.get(buffer["dtype"]) if isinstance(buffer["dtype"], str) else None
    if dtype is None:
        raise ValueError(f"got an unknown dtype; expected one of {', '.join(DTYPES)}")
    shape, data = buffer["shape"], buffer["data"]
    if not isinstance(data, bytes):
        raise ValueError("data: expected bytes")  # noqa: TRY004 - of the sender, not of the caller
    if not isinstance(shape, list) or not 1 <= len(shape) <= 2 or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError("shape: expected one or two counts")
    count = shape[0] if len(shape) == 1 else shape[0] * shape[1]
    if count * dtype.itemsize != len(data):
        raise ValueError(f"data: got {len(data)} bytes; expected as many as shape and dtype say")
    if count == 0 and max(shape) > MAX_EMPTY_ROWS:
        raise ValueError(f"shape: got rows without numbers; expected at most {MAX_EMPTY_ROWS}")
    values = np.frombuffer(data, dtype=dtype).reshape(shape)
    if "missing" not in buffer:
        return values
    bits = buffer["missing"]
    if not isinstance(bits, bytes) or len(bits) != -(-count // 8):
        raise ValueError(f"missing: expected {-(-count // 8)} bytes, one bit per number")
    mask = np.unpackbits(np.frombuffer(bits, dtype=np.uint8), count=count, bitorder="little")
    return NumbersAndNulls(values=values, missing=mask.view(np.bool_).reshape(values.shape))


def buffer_of(array: Numeric | NumbersAndNulls) -> dict[str, Any]:
    """The buffer that holds an array.

    Args:
        array: Floats or integers of any size and shape, or bools, which travel as integers.

    Returns:
        An object for the binary format; `data` is a view where the bytes are right already.
    """
    values = array.values if isinstance(array, NumbersAndNulls) else array
    kind = "<f4" if values.dtype == np.float32 else "<f8" if values.dtype.kind == "f" else "<i8"
    plain = np.ascontiguousarray(values, dtype=kind)
    # A view of bytes, because memoryviews of other types, and those without bytes, do not travel.
    buffer = {"dtype": kind, "shape": list(values.shape), "data": plain.reshape(-1).view(np.uint8).data}
    if isinstance(array, NumbersAndNulls):
        buffer["missing"] = np.packbits(array.missing.reshape(-1), bitorder="little").data
    return buffer


def is_buffer(value: object) -> bool:
    """Whether a value is meant as a buffer."""
    return type(value) is dict and isinstance(value.get("data"), bytes)


@dataclass(frozen=True)
class BufferOr:
    """Annotation of a field that takes a buffer, in the binary format alone, where JSON has a list of numbers.

    Attributes:
        listed: Type of the list, with its constraints.
        integers: Whether the numbers have to be integers, which arrive as int64; otherwise they arrive as float64.
        nulls: Whether some may be null.
        bounds: Smallest and largest integer.
        kept: Whether an array stays one, for columns; otherwise it becomes the list.
        fewest: Least length.
        longest: Greatest length.
        axes: 1 for numbers, 2 for rows of equal length.
        width: Length of each row, where it has to be one.
        booleans: Whether the integers, 0 and 1, are truth values, which arrive as bool.
    """

    listed: Any
    integers: bool = False
    nulls: bool = False
    bounds: tuple[int, int] | None = None
    kept: bool = True
    fewest: int = 0
    longest: int | None = None
    axes: int = 1
    width: int | None = None
    booleans: bool = False

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The schema of the list for JSON; for Python the same behind a look at buffers."""
        listed = handler.generate_schema(self.listed)
        python = core_schema.no_info_wrap_validator_function(self._array, listed)
        return core_schema.json_or_python_schema(json_schema=listed, python_schema=python)

    def _array(self, value: object, as_list: Callable[[object], Any]) -> Any:  # noqa: ANN401 - array or list
        if not is_buffer(value):
            return as_list(value)
        found = array_of(value)  # type: ignore[arg-type]  # is_buffer says so
        values, missing = (found.values, found.missing) if isinstance(found, NumbersAndNulls) else (found, None)
        if values.ndim != self.axes:
            return as_list([[]] * min(len(values), 1) if values.ndim > self.axes else values[:1].tolist())
        if self.longest is not None and len(values) > MANY_TIMES * self.longest:
            raise _too_long(len(values), self.longest)
        if len(values) < self.fewest or (self.longest is not None and len(values) > self.longest):
            return as_list([[] if self.axes > 1 else 0] * len(values))
        if self.width is not None and len(values) and values.shape[1] != self.width:
            return as_list([[0] * min(values.shape[1], self.width + 1)])
        offence = self._offence(values, missing)
        if offence is not None:
            self._refused(values, offence, as_list)
        dtype = np.bool_ if self.booleans else np.int64 if self.integers else np.float64
        plain: Numeric = values.astype(dtype, copy=False)
        array = plain if missing is None or not missing.any() else NumbersAndNulls(values=plain, missing=missing)
        return array if self.kept else as_list(array.tolist())

    def _offence(self, values: Numeric, missing: Booleans | None) -> tuple[int, object] | None:
        """Flat index of the first number that the list would refuse, and what stands there; None if all are right."""
        flat = values.reshape(-1)
        if missing is None and self._all_are_right(flat):
            return None
        wrong = np.zeros(0, dtype=np.bool_)
        if self.integers and values.dtype.kind == "f":
            wrong = np.ones(len(flat), dtype=np.bool_)
        elif self.bounds is not None:
            wrong = (flat < self.bounds[0]) | (flat > self.bounds[1])
        absent = np.zeros(len(flat), dtype=np.bool_) if missing is None else missing.reshape(-1)
        if len(wrong):
            offences = np.flatnonzero(wrong & ~absent if self.nulls else wrong | absent)
        else:
            offences = np.flatnonzero(absent & (not self.nulls))
        if len(offences) == 0:
            return None
        first = int(offences[0])
        return first, None if absent[first] else flat[first].item()

    def _all_are_right(self, flat: Numeric) -> bool:
        """Whether no number can be wrong, at the price of two looks at them and no mask."""
        if not self.integers or len(flat) == 0:
            return True
        if flat.dtype.kind == "f":
            return False
        return self.bounds is None or bool(self.bounds[0] <= flat.min() and flat.max() <= self.bounds[1])

    def _refused(self, values: Numeric, offence: tuple[int, object], as_list: Callable[[object], Any]) -> NoReturn:
        """Raise what the list says of the offence, at the place where it stands in the buffer.

        The list that is shown holds the offence alone, so that a refusal costs the same wherever it stands.
        """
        place, found = offence
        where = (place,) if self.axes == 1 else divmod(place, values.shape[1])
        try:
            as_list([found] if self.axes == 1 else [[found]])
        except ValidationError as error:
            raise _moved(error, where) from None
        raise RuntimeError("a number that was refused in a buffer was taken in a list")


def _too_long(length: int, longest: int) -> ValidationError:
    """What a list says that is too long, without the list."""
    limits = {"field_type": "List", "max_length": longest, "actual_length": length}
    finding: InitErrorDetails = {"type": "too_long", "loc": (), "input": None, "ctx": limits}
    return ValidationError.from_exception_data("list", [finding])


def _moved(error: ValidationError, where: tuple[int, ...]) -> ValidationError:
    """The same findings with other numbers of entries: the first ones of each location, as many as there are."""
    findings: list[InitErrorDetails] = []
    for entry in error.errors(include_url=False):
        numbers = iter(where)
        loc = tuple(next(numbers, part) if isinstance(part, int) else part for part in entry["loc"])
        finding: InitErrorDetails = {"type": entry["type"], "loc": loc, "input": None}
        if "ctx" in entry:
            finding["ctx"] = entry["ctx"]
        findings.append(finding)
    return ValidationError.from_exception_data(error.title, findings)
