"""What every schema of the wire is made of: numbers with bounds, names, ragged arrays, the strict base model.

Every array of numbers takes a buffer in the binary format, but for token ranges and coalitions, which are short and
many. A type called `…Column` keeps it as an array, so that columns reach the arithmetic without an object per number;
the others make a list of it.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from creditd.wire.buffers import BufferOr, NumbersAndNulls
from creditd.wire.forms import Form, published_in

MAX_SETS = 65_536
MAX_NAME_LENGTH = 256
MAX_MAGNITUDE = 1e100
"""Largest magnitude of a number in reward units: sums of squares of larger ones leave float64."""
MAX_WEIGHT = 1e6
"""Largest magnitude of a weight."""

Name: TypeAlias = Annotated[str, Field(max_length=MAX_NAME_LENGTH)] | Annotated[int, Field(ge=-(2**63), lt=2**63)]
Amount: TypeAlias = Annotated[float, Field(ge=-MAX_MAGNITUDE, le=MAX_MAGNITUDE, allow_inf_nan=False)]
Weight: TypeAlias = Annotated[float, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT, allow_inf_nan=False)]
Count: TypeAlias = Annotated[int, Field(ge=0, lt=2**63)]
Positive: TypeAlias = Annotated[int, Field(ge=1, le=1_000_000)]
Index: TypeAlias = Annotated[int, Field(ge=-(2**62), le=2**62)]

RewardNumber: TypeAlias = Annotated[
    float, WithJsonSchema({"type": "number", "minimum": -MAX_MAGNITUDE, "maximum": MAX_MAGNITUDE})
]
"""A reward. Its size is looked at by the arithmetic, because a wrong one fails its set alone."""

_Numbers: TypeAlias = Annotated[list[float], Field(fail_fast=True)]
_NumbersOrNull: TypeAlias = Annotated[list[RewardNumber | None], Field(fail_fast=True)]
_Indices: TypeAlias = Annotated[list[Index], Field(fail_fast=True)]
_Names: TypeAlias = Annotated[list[Name], Field(fail_fast=True, max_length=MAX_SETS)]
_NamesOfCandidates: TypeAlias = Annotated[list[Name], Field(fail_fast=True)]
_NamesOrNull: TypeAlias = Annotated[list[Name | None], Field(fail_fast=True)]
_INDEX_BOUNDS = (-(2**62), 2**62)
_Pairs: TypeAlias = Annotated[list[Annotated[list[Index], Field(min_length=2, max_length=2)]], Field(fail_fast=True)]
_Booleans: TypeAlias = Annotated[list[bool], Field(fail_fast=True)]

Numbers: TypeAlias = Annotated[list[float], BufferOr(_Numbers, kept=False)]
NumbersOrNull: TypeAlias = Annotated[list[float | None], BufferOr(_NumbersOrNull, nulls=True, kept=False)]
Indices: TypeAlias = Annotated[list[int], BufferOr(_Indices, integers=True, bounds=_INDEX_BOUNDS, kept=False)]

Names: TypeAlias = Annotated[list[str | int], BufferOr(_NamesOfCandidates, integers=True, kept=False)]

NumberColumn: TypeAlias = Annotated[list[float] | NDArray[np.float64], BufferOr(_Numbers)]
NumberOrNullColumn: TypeAlias = Annotated[
    list[float | None] | NDArray[np.float64] | NumbersAndNulls, BufferOr(_NumbersOrNull, nulls=True)
]
IndexColumn: TypeAlias = Annotated[
    list[int] | NDArray[np.int64], BufferOr(_Indices, integers=True, bounds=_INDEX_BOUNDS)
]
IndexPairs: TypeAlias = Annotated[
    list[list[int]] | NDArray[np.int64], BufferOr(_Pairs, integers=True, bounds=_INDEX_BOUNDS, axes=2, width=2)
]
"""Pairs of integers; in the binary format one buffer of two axes."""
MaskColumn: TypeAlias = Annotated[
    list[bool] | NDArray[np.bool_], BufferOr(_Booleans, integers=True, bounds=(0, 1), booleans=True)
]
"""True and False; a buffer has 1 and 0."""
NameColumn: TypeAlias = Annotated[
    list[str | int] | NDArray[np.int64], BufferOr(_Names, integers=True, longest=MAX_SETS)
]
"""Names of sets, at most as many as there may be."""
CandidateNameColumn: TypeAlias = Annotated[
    list[str | int] | NDArray[np.int64], BufferOr(_NamesOfCandidates, integers=True)
]
CandidateNameOrNullColumn: TypeAlias = Annotated[
    list[str | int | None] | NDArray[np.int64] | NumbersAndNulls, BufferOr(_NamesOrNull, integers=True, nulls=True)
]


_NumberRows: TypeAlias = Annotated[list[Numbers], Field(fail_fast=True, max_length=MAX_SETS)]
_NumberRowsOfCandidates: TypeAlias = Annotated[list[Numbers], Field(fail_fast=True)]
_NumberOrNullRows: TypeAlias = Annotated[list[NumbersOrNull], Field(fail_fast=True, max_length=MAX_SETS)]
_NameRowsOfCandidates: TypeAlias = Annotated[list[Names], Field(fail_fast=True)]

NumberRows: TypeAlias = Annotated[
    list[list[float]] | NDArray[np.float64], BufferOr(_NumberRows, longest=MAX_SETS, axes=2)
]
"""One row per set; in the binary format rows of equal length may be one buffer of two axes, here and below."""
NumberRowsOfCandidates: TypeAlias = Annotated[
    list[list[float]] | NDArray[np.float64], BufferOr(_NumberRowsOfCandidates, axes=2)
]
NumberOrNullRows: TypeAlias = Annotated[
    list[list[float | None]] | NDArray[np.float64] | NumbersAndNulls,
    BufferOr(_NumberOrNullRows, nulls=True, longest=MAX_SETS, axes=2),
]
NameRowsOfCandidates: TypeAlias = Annotated[
    list[list[str | int]] | NDArray[np.int64], BufferOr(_NameRowsOfCandidates, integers=True, axes=2)
]


class WireModel(BaseModel):
    """Strict, closed and frozen: no conversion of types, no unknown field."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, populate_by_name=True, use_attribute_docstrings=True
    )

    forms: ClassVar[tuple[Form, ...]] = ()
    """Where fields depend on each other: every object that is answered has one of them."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The schema, form by form."""
        published = handler(schema)
        if cls.forms:
            published_in(cls.forms, handler.resolve_ref_schema(published))
        return published


class Ragged(WireModel):
    """Rows of unequal length, flat."""

    values: NumberOrNullColumn
    """All rows, one after another; null where there is no value."""
    row_splits: IndexColumn
    """From 0 to the number of values, non-decreasing, one more than there are rows."""


class RaggedNumbers(WireModel):
    """Rows of unequal length, flat, with a number in every slot."""

    values: NumberColumn
    """All rows, one after another."""
    row_splits: IndexColumn
    """From 0 to the number of values, non-decreasing, one more than there are rows."""


class RaggedNames(WireModel):
    """Rows of names, flat."""

    values: CandidateNameColumn
    """All rows, one after another."""
    row_splits: IndexColumn
    """From 0 to the number of values, non-decreasing, one more than there are rows."""
