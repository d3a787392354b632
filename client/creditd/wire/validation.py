"""From pydantic's findings to the wire's: short, bounded, and without a word of the input."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import accumulate

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from creditd.wire.errors import MAX_ERRORS, ErrorCode, ErrorItem

_CHOICES = frozenset(
    {"utility", "credit", "to", "from", "from_", "segmentation", "absent", "sensitivity", "parser", "inside"}
)
"""Fields whose value is one of several models: pydantic names the model after them."""
_BRANCHES = frozenset({"Ragged", "RaggedNumbers", "constrained-str", "constrained-int"})
"""How pydantic names the branches of the other unions."""
_TEXTS_OR_MORE = frozenset({"prompt", "prompts", "input"})
"""Fields that are a text or something else, of which the text is a branch called `str`."""
_PLAIN_DETAILS = {
    "extra_forbidden": "there is no such field",
    "missing": "the field is required",
    "union_tag_not_found": "the choice is an object with a `type`",
    "list_type": "expected a valid array",
    "dict_type": "expected an object",
    "model_type": "expected an object",
    "model_attributes_type": "expected an object",
    "string_not_ascii": "expected ASCII characters alone",
    "tuple_type": "expected a valid array",
    "none_required": "expected null",
    "invalid_key": "expected strings as names of fields",
    "int_parsing_size": "expected an integer of fewer digits",
}
"""What is said whatever the field; of containers in JSON's words, whatever the format of the body."""
_BOUNDS = {
    "too_short": ("at least", "min_length", "entry", "entries"),
    "too_long": ("at most", "max_length", "entry", "entries"),
    "string_too_short": ("at least", "min_length", "character", "characters"),
    "string_too_long": ("at most", "max_length", "character", "characters"),
    "bytes_too_short": ("at least", "min_length", "byte", "bytes"),
    "bytes_too_long": ("at most", "max_length", "byte", "bytes"),
}
_SHOULD = re.compile(r"^(?:(?:[A-Za-z]+ )?[Ii]nput|String|Data|Date|URL) should (?:be |have )?")
"""How pydantic begins to say what would be right."""
_OF_NOTHING = "EOF while parsing a value at line 1 column 0"
"""What pydantic's parser says of an empty text."""
MAX_SEGMENT = 64
_MAX_FINDINGS = 10_000


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


def segment_of(name: str) -> str:
    """A name as one segment of a JSON pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")


def from_validation_error(error: ValidationError) -> WireError:
    """The wire's account of a pydantic failure.

    Args:
        error: What pydantic found.

    Returns:
        At most 10 offences; the code is that of the first one. Messages never repeat the input, and pointers cut
        unknown names to 64 characters.

    Cost:
        Bounded: the schema stops each list at its first failure, and more than 10,000 findings are not looked at.
    """
    if error.error_count() > _MAX_FINDINGS:
        return wire_error(ErrorCode.INVALID_REQUEST, "", f"more than {_MAX_FINDINGS} fields do not fit the schema")
    found = [(_segments(entry), entry) for entry in error.errors(include_url=False, include_input=False)]
    # A union reports each of its branches. The one that was followed deepest was meant; equals are alternatives.
    details: dict[str, list[ErrorDetails]] = {}
    above: set[str] = set()
    for segments, entry in sorted(found, key=lambda pair: -len(pair[0])):
        pointers = list(accumulate((f"/{segment}" for segment in segments), initial=""))
        if pointers[-1] not in above:
            details.setdefault(pointers[-1], []).append(entry)
            above.update(pointers[1:-1])
    items = [_item(pointer, entries) for pointer, entries in sorted(details.items())]
    return WireError(items[0].code, tuple(items[:MAX_ERRORS]))


def _item(pointer: str, entries: list[ErrorDetails]) -> ErrorItem:
    unknown = entries[0]["type"] == "extra_forbidden"
    code = ErrorCode.UNKNOWN_FIELD if unknown else ErrorCode.INVALID_REQUEST
    return ErrorItem(pointer=pointer, code=code, detail=", or ".join(dict.fromkeys(map(_detail, entries))))


def _detail(entry: ErrorDetails) -> str:
    kind, context = entry["type"], entry.get("ctx", {})
    if kind in _PLAIN_DETAILS:
        return _PLAIN_DETAILS[kind]
    if kind == "union_tag_invalid":
        return f"got an unknown type; expected one of {context['expected_tags']}"
    if kind == "json_invalid":
        return _of_json(context["error"])
    if kind in _BOUNDS:
        return _of_length(kind, context)
    if kind == "string_pattern_mismatch":
        return f"expected a string that matches {context['pattern']}"
    return _SHOULD.sub("expected ", entry["msg"].removeprefix("Value error, "))


def _of_json(error: str) -> str:
    if error == _OF_NOTHING:
        return "the body is empty; expected a JSON object"
    return f"the body is not valid JSON: {error.replace('recursion limit exceeded', 'nested too deeply')}"


def _of_length(kind: str, context: Mapping[str, object]) -> str:
    which, name, one, many = _BOUNDS[kind]
    if kind == "too_short" and context[name] == 1:
        return "got nothing; expected at least one entry"
    return f"expected {which} {context[name]} {one if context[name] == 1 else many}"


def _segments(entry: ErrorDetails) -> list[str]:
    """The parts of a location that exist in the body: pydantic also names the branches of unions."""
    segments: list[str] = []
    after_choice = False
    loc = entry["loc"]
    for place, part in enumerate(loc):
        is_name = entry["type"] == "extra_forbidden" and place == len(loc) - 1
        of_text = part == "str" and not _TEXTS_OR_MORE.isdisjoint(loc[:place])
        named = isinstance(part, str) and (after_choice or "[" in part or part in _BRANCHES or of_text)
        if named and not is_name:
            after_choice = str(part).startswith("tagged-union[")
            continue
        after_choice = part in _CHOICES
        name = "from" if part == "from_" and not is_name else str(part)
        segments.append(segment_of(name)[:MAX_SEGMENT])
    return segments
