"""From pydantic's findings to the wire's: short, bounded, and without a word of the input."""

from __future__ import annotations

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from creditd.wire.errors import MAX_ERRORS, ErrorCode, ErrorItem

_CHOICES = frozenset({"utility", "credit", "to", "from", "from_"})
_MAX_SEGMENT = 64


class WireError(Exception):
    """A request that cannot be understood as a whole.

    Attributes:
        code: What is wrong.
        items: Where, at most 10.
    """

    def __init__(self, code: ErrorCode, items: tuple[ErrorItem, ...]) -> None:
        super().__init__(code, items)
        self.code = code
        self.items = items

    @property
    def detail(self) -> str:
        """One sentence: the first offence and how many more there are."""
        first = self.items[0]
        where = f"{first.pointer}: " if first.pointer else ""
        more = f" (and {len(self.items) - 1} more)" if len(self.items) > 1 else ""
        return f"{where}{first.detail}{more}"


def wire_error(code: ErrorCode, pointer: str, detail: str) -> WireError:
    """The error of one offence."""
    return WireError(code, (ErrorItem(pointer=pointer, code=code, detail=detail),))


def from_validation_error(error: ValidationError) -> WireError:
    """The wire's account of a pydantic failure.

    Args:
        error: What pydantic found.

    Returns:
        At most 10 offences; the code is that of the first one. Messages never repeat the input, and pointers cut
        unknown names to 64 characters.

    Cost:
        Proportional to pydantic's findings, which the schema bounds by stopping each list at its first failure.
    """
    found = error.errors(include_url=False, include_input=False)
    depth = max(len(_segments(entry["loc"])) for entry in found)
    # Of the branches of a union, the one that was followed deepest is the one that was meant.
    deepest: dict[str, ErrorItem] = {}
    for entry in sorted(found, key=lambda entry: -len(_segments(entry["loc"]))) if depth else found:
        item = _item(entry)
        if not any(other.startswith(item.pointer + "/") for other in deepest if item.pointer):
            deepest.setdefault(item.pointer, item)
    items = sorted(deepest.values(), key=lambda item: item.pointer)[:MAX_ERRORS]
    return WireError(items[0].code, tuple(items))


def _item(entry: ErrorDetails) -> ErrorItem:
    pointer = "".join(f"/{segment}" for segment in _segments(entry["loc"]))
    kind = entry["type"]
    code = ErrorCode.UNKNOWN_FIELD if kind == "extra_forbidden" else ErrorCode.INVALID_REQUEST
    return ErrorItem(pointer=pointer, code=code, detail=_detail(kind, entry))


def _detail(kind: str, entry: ErrorDetails) -> str:
    context = entry.get("ctx", {})
    if kind == "extra_forbidden":
        return "there is no such field"
    if kind == "missing":
        return "the field is required"
    if kind == "union_tag_invalid":
        return f"got an unknown type; expected one of {context['expected_tags']}"
    if kind == "union_tag_not_found":
        return "the choice is an object with a `type`"
    if kind == "json_invalid":
        return "the body is not valid JSON"
    return str(entry["msg"]).removeprefix("Value error, ").replace("Input should be", "expected")


def _segments(loc: tuple[int | str, ...]) -> list[str]:
    """The parts of a location that exist in the body: pydantic also names the branches of unions."""
    segments: list[str] = []
    after_choice = False
    for part in loc:
        if isinstance(part, str) and (after_choice or "[" in part or part in {"Ragged", "constrained-str", "int"}):
            after_choice = False
            continue
        after_choice = part in _CHOICES
        name = "from" if part == "from_" else str(part)
        segments.append(name.replace("~", "~0").replace("/", "~1")[:_MAX_SEGMENT])
    return segments
