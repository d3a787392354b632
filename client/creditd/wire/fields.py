"""What every schema of the wire is made of: numbers with bounds, names, ragged arrays, the strict base model."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

MAX_SETS = 65_536
MAX_NAME_LENGTH = 256
MAX_MAGNITUDE = 1e100
"""Largest magnitude of a number in reward units: sums of squares of larger ones leave float64."""
MAX_WEIGHT = 1e6
"""Largest magnitude of a weight."""

Name: TypeAlias = Annotated[str, Field(max_length=MAX_NAME_LENGTH)] | Annotated[int, Field(ge=-(2**63), lt=2**63)]
Amount: TypeAlias = Annotated[float, Field(ge=-MAX_MAGNITUDE, le=MAX_MAGNITUDE, allow_inf_nan=False)]
Weight: TypeAlias = Annotated[float, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT, allow_inf_nan=False)]
Count: TypeAlias = Annotated[int, Field(ge=0)]
Positive: TypeAlias = Annotated[int, Field(ge=1, le=1_000_000)]
Index: TypeAlias = Annotated[int, Field(ge=-(2**62), le=2**62)]
Numbers: TypeAlias = Annotated[list[float], Field(fail_fast=True)]
NumbersOrNull: TypeAlias = Annotated[list[float | None], Field(fail_fast=True)]
Indices: TypeAlias = Annotated[list[Index], Field(fail_fast=True)]
Names: TypeAlias = Annotated[list[Name], Field(fail_fast=True, max_length=MAX_SETS)]


class WireModel(BaseModel):
    """Strict, closed and frozen: no conversion of types, no unknown field."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, populate_by_name=True, use_attribute_docstrings=True
    )


class Ragged(WireModel):
    """Rows of unequal length, flat."""

    values: NumbersOrNull
    """All rows, one after another; null where there is no value."""
    row_splits: Indices
    """From 0 to the number of values, non-decreasing, one more than there are rows."""


class RaggedNumbers(WireModel):
    """Rows of unequal length, flat, with a number in every slot."""

    values: Numbers
    """All rows, one after another."""
    row_splits: Indices
    """From 0 to the number of values, non-decreasing, one more than there are rows."""


class RaggedNames(WireModel):
    """Rows of names, flat."""

    values: Annotated[list[Name], Field(fail_fast=True)]
    """All rows, one after another."""
    row_splits: Indices
    """From 0 to the number of values, non-decreasing, one more than there are rows."""
