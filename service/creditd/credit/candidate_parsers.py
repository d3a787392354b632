"""Parsers that find, in the text of one completion, the candidates a policy wrote there.

A completion holds K candidates in some written form: a numbered list, bullets, a JSON array, tags, or what a regular
expression says. A parser gives the text of each and the characters it stands on; `creditd.credit.segments` turns
characters into tokens. The set of parsers is closed and named, so that a request can choose one without code.

Reference: ShapE-GRPO, arXiv:2603.29871v1, which gives credit to the candidates of one response.
Differs from the paper: how the paper finds the candidates in a response is not known to us; these rules are ours.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from types import MappingProxyType
from typing import TypeAlias

Span: TypeAlias = tuple[int, int]

_NUMBER = re.compile(r"^([ \t]*)(?:\(([0-9]{1,9})\)|([0-9]{1,9})[.):])(?=\s|\Z)", re.MULTILINE)
_BULLET = re.compile(r"^([ \t]*)[-*•+](?=\s|\Z)", re.MULTILINE)
_TAG_NAME = re.compile(r"[A-Za-z_][\w.-]*")


@dataclass(frozen=True)
class ParsedCandidates:
    """Candidates of one completion, in the order in which they stand there.

    The spans are half-open ranges of characters, ordered, disjoint and inside the text. For every parser but
    `JsonArray`, whose strings are decoded, `completion[start:stop] == text`.

    Attributes:
        texts: Text of each candidate; none is empty or only whitespace.
        spans: Characters [start, stop) of each candidate in the completion.
        open_span: Characters of the item that the end of the completion interrupted; it starts at or after the stop
            of the last candidate, stops at the end of the completion, may have no character yet, and is no candidate.
            None: no item is known to be interrupted.
    """

    texts: tuple[str, ...]
    spans: tuple[Span, ...]
    open_span: Span | None

    @property
    def n_candidates(self) -> int:
        """Number of candidates."""
        return len(self.texts)


@dataclass(frozen=True)
class Numbered:
    """Items of a numbered list: `1. x`, `2) x`, `(3) x`, `4: x`, each number at the start of a line.

    A number starts an item if it is the successor of the one before, whatever the first was, and is not indented
    deeper than the first; any other number ("2024. ", a nested list) is text of the item. An item extends over lines
    to the next item or to the end of the text, so prose below the list belongs to the last item.
    """

    def find(self, text: str, *, cut_off: bool) -> ParsedCandidates:
        """Return the items of `text`; under `cut_off` the last one is open."""
        markers: list[Span] = []
        expected: int | None = None
        margin = 0
        for marker in _NUMBER.finditer(text):
            number, indentation = int(marker[2] or marker[3]), len(marker[1])
            if expected is None:
                margin = indentation
            elif number != expected or indentation > margin:
                continue
            expected = number + 1
            markers.append(marker.span())
        return _between(text, markers, cut_off=cut_off)


@dataclass(frozen=True)
class Bullets:
    """Items of a bulleted list: `-`, `*`, `•` or `+` at the start of a line, indented exactly as the first.

    Other bullets are text of the item. An item extends over lines to the next item or to the end of the text, so
    prose below the list belongs to the last item.
    """

    def find(self, text: str, *, cut_off: bool) -> ParsedCandidates:
        """Return the items of `text`; under `cut_off` the last one is open."""
        bullets = list(_BULLET.finditer(text))
        markers = [bullet.span() for bullet in bullets if bullet[1] == bullets[0][1]]
        return _between(text, markers, cut_off=cut_off)


@dataclass(frozen=True)
class JsonArray:
    """Elements of the last JSON array (RFC 8259) in the text, with or without a fence around it.

    A `[` is tried from left to right, and one that starts an array hides those inside it. A string gives its decoded
    text and the characters between its quotes; any other element gives its raw JSON text. An array interrupted by the
    end of the text counts under `cut_off`, or if no array before it is complete; its complete elements are candidates.
    """

    def find(self, text: str, *, cut_off: bool) -> ParsedCandidates:
        """Return the elements of the last array of `text`; an element that has no end is open."""
        scan = _last_array(text, cut_off=cut_off)
        texts: list[str] = []
        spans: list[Span] = []
        for start, stop in scan.elements:
            quoted = text[start] == '"'
            element = json.loads(text[start:stop]) if quoted else text[start:stop]
            if element.strip():
                texts.append(element)
                spans.append((start + quoted, stop - quoted))
        open_span = None
        if scan.element_start is not None:
            open_span = (scan.element_start + (text[scan.element_start] == '"'), len(text))
        return ParsedCandidates(tuple(texts), tuple(spans), open_span)


@dataclass(frozen=True)
class Tags:
    """Contents of `<name>…</name>`, surrounding whitespace removed; attributes without angle brackets are allowed.

    A candidate stands between an opening tag and the closing tag. An opening tag before that closing tag replaces the
    earlier one. The last opening tag is open if no closing tag follows.

    Attributes:
        name: Name of the tag, case-sensitive.
    """

    name: str = "candidate"

    def __post_init__(self) -> None:
        """Refuse a name that is not one of a tag."""
        if not _TAG_NAME.fullmatch(self.name):
            raise ValueError(f"tag name: got {self.name!r}, expected a letter, then letters, digits, '_', '.' or '-'")

    def find(self, text: str, *, cut_off: bool) -> ParsedCandidates:  # noqa: ARG002 - syntax shows what is open
        """Return the contents of the tags of `text`; a tag that is never closed is open, whatever `cut_off`."""
        name = re.escape(self.name)
        contents: list[Span] = []
        start: int | None = None
        for tag in re.finditer(rf"<{name}(?:\s[^<>]*)?(?<!/)>|(?P<closing></{name}\s*>)", text):
            if tag["closing"] is None:
                start = tag.end()
            elif start is not None:
                contents.append(_stripped(text, start, tag.start()))
                start = None
        open_span = None if start is None else (_stripped(text, start, len(text))[0], len(text))
        return _pieces(text, contents, open_span)


@dataclass(frozen=True)
class Regex:
    """Matches of a regular expression of Python's `re`: the group `candidate`, else group 1, else the whole match.

    Nothing is stripped. A candidate that overlaps the one before it (possible with groups in look-around) is passed
    over. The time is that of the pattern: one that backtracks without bound is the caller's risk.

    Attributes:
        pattern: The expression; flags are written inline, as in `(?m)^idea: (.+)$`.
    """

    pattern: str

    def __post_init__(self) -> None:
        """Refuse a pattern that does not compile."""
        try:
            re.compile(self.pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"pattern: got {self.pattern!r}, expected a regular expression: {error}") from error

    def find(self, text: str, *, cut_off: bool) -> ParsedCandidates:
        """Return the matches in `text`; under `cut_off` one that touches the end is open."""
        compiled = re.compile(self.pattern)
        group: str | int = "candidate" if "candidate" in compiled.groupindex else min(compiled.groups, 1)
        spans: list[Span] = []
        reached = 0
        for match in compiled.finditer(text):
            start, stop = match.span(group)
            if start < reached or not text[start:stop].strip():
                continue
            if cut_off and len(text) in {stop, match.end()}:
                return _pieces(text, spans, (start, len(text)))
            reached = stop
            spans.append((start, stop))
        return _pieces(text, spans, None)


CandidateParser: TypeAlias = Numbered | Bullets | JsonArray | Tags | Regex

PARSERS: Mapping[str, type[CandidateParser]] = MappingProxyType(
    {"numbered": Numbered, "bullets": Bullets, "json_array": JsonArray, "tags": Tags, "regex": Regex}
)


def parse_candidates(
    completion: str, parser: CandidateParser, *, after_thinking: bool = True, cut_off: bool = False
) -> ParsedCandidates:
    """Candidates that a policy wrote inside one completion.

    Items without a character other than whitespace are not candidates. No text raises.

    Args:
        completion: Text of the completion, without the prompt.
        parser: How the candidates are written.
        after_thinking: True: only the text after the last `</think>` is parsed, and none if a `<think>` stands after
            the last `</think>`. Where the prompt's template opens the thinking, a completion cut off inside it shows
            neither; the caller has to know.
        cut_off: True: the completion ended by the length limit. An item that touches its end (the last of a list, a
            match of `Regex`) is then reported as open and is not a candidate. A JSON element and a tag without an end
            are open in either case.

    Returns:
        Texts and character spans; these index the full `completion` and are ordered, disjoint and inside it.

    Cost:
        O(len(completion)) for every parser but `Regex`, which costs what its pattern does. No recursion.

    Reference:
        ShapE-GRPO, arXiv:2603.29871v1.

    Differs from the paper:
        How the paper parses is not known to us.
    """
    begin = 0
    if after_thinking:
        closed = completion.rfind("</think>")
        if completion.rfind("<think>") > closed:
            return ParsedCandidates((), (), None)
        begin = closed + len("</think>") if closed >= 0 else 0
    # A slice, not a start position: "^" in a pattern does not match at a start position.
    found = parser.find(completion[begin:], cut_off=cut_off)
    spans = tuple((start + begin, stop + begin) for start, stop in found.spans)
    open_span = found.open_span and (found.open_span[0] + begin, found.open_span[1] + begin)
    return ParsedCandidates(found.texts, spans, open_span)


def parser_of(spec: Mapping[str, object]) -> CandidateParser:
    """Parser that a specification names, such as `{"type": "tags", "name": "idea"}`.

    Args:
        spec: `type`, a key of `PARSERS`, and the fields of that parser, all strings.

    Returns:
        The parser; equal specifications give equal parsers.

    Raises:
        ValueError: The type or a field is unknown, missing, or has a value that the parser refuses.

    Cost:
        O(1), or that of compiling the pattern.
    """
    name = spec.get("type")
    if not isinstance(name, str) or name not in PARSERS:
        raise ValueError(f"parser type: got {name!r}, expected one of {', '.join(PARSERS)}")
    parser = PARSERS[name]
    values = {key: value for key, value in spec.items() if key != "type"}
    required = {f.name: f.default is MISSING for f in fields(parser)}
    if not values.keys() <= required.keys() or any(required[key] for key in required.keys() - values.keys()):
        raise ValueError(f"fields of parser {name}: got {list(values)}, expected {list(required)}")
    strings = {key: value for key, value in values.items() if isinstance(value, str)}
    if len(strings) < len(values):
        raise ValueError(f"fields of parser {name}: got {values}, expected strings")
    return parser(**strings)


def _stripped(text: str, start: int, stop: int) -> Span:
    """Return the range without its surrounding whitespace."""
    item = text[start:stop].lstrip()
    begin = stop - len(item)
    return begin, begin + len(item.rstrip())


def _pieces(text: str, spans: Iterable[Span], open_span: Span | None) -> ParsedCandidates:
    """Return the candidates whose text is that of their span, without the empty ones."""
    kept = tuple((start, stop) for start, stop in spans if start < stop)
    return ParsedCandidates(tuple(text[start:stop] for start, stop in kept), kept, open_span)


def _between(text: str, markers: list[Span], *, cut_off: bool) -> ParsedCandidates:
    """Return the items that start behind each marker and end before the next."""
    ends = [start for start, _ in markers[1:]] + [len(text)]
    items = [_stripped(text, stop, end) for (_, stop), end in zip(markers, ends, strict=False)]
    if cut_off and items:
        start, _ = items.pop()
        return _pieces(text, items, (start, len(text)))
    return _pieces(text, items, None)


_BODY = r'[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*)*'
_TOKEN = re.compile(
    rf'[ \t\n\r]*(?:(?P<mark>[\[\]{{}}:,])|(?P<string>"{_BODY}")|(?P<word>[-+.0-9A-Za-z]+)'
    rf'|(?P<cut_string>"{_BODY}(?:\\(?:u[0-9a-fA-F]{{0,3}})?)?\Z)|(?P<end>\Z))'
)
_SCALAR = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null")
_LITERALS = ("true", "false", "null")

# A state is the set of token kinds that may come next: a mark itself, '"' for a string, "w" for a number or literal.
_VALUE = '[{"w'
_ITEM_OR_END = _VALUE + "]"
_KEY = '"'
_KEY_OR_END = '"}'
_AFTER_VALUE = {"[": ",]", "{": ",}"}
_AFTER_COMMA = {"[": _VALUE, "{": _KEY}


@dataclass
class _ArrayScan:
    """State of reading a JSON array, as a machine with its own stack: depth costs no recursion.

    `arrays` maps the position of every `[` that the reading met as structure to the stop of its array, or to None if
    that array did not end. Reading from that `[` alone would pass through the same states, so it need not be tried.
    """

    elements: list[Span] = field(default_factory=list)
    element_start: int | None = None
    arrays: dict[int, int | None] = field(default_factory=dict)
    cut: bool = False
    expected: str = "["
    enclosing: list[tuple[str, int]] = field(default_factory=list)

    def read(self, text: str, position: int) -> None:
        """Read from the `[` at `position` until its array ends, the text is no JSON, or the text ends."""
        while token := _TOKEN.match(text, position):
            group = token.lastgroup or "end"
            begin, position = token.span(group)
            kind = token[group] if group == "mark" else {"word": "w", "end": "end"}.get(group, '"')
            # A number at the end of the text may lack digits; a word there may lack letters.
            self.cut = position == len(text) and group not in {"mark", "string"}
            if kind != "end" and kind not in self.expected:
                break
            if kind == "w" and not _is_scalar(token[group], prefix=self.cut):
                break
            if len(self.enclosing) == 1 and kind in _VALUE:
                self.element_start = begin
            if self.cut:
                return
            self.step(kind, begin, position)
            if not self.enclosing:
                return
        self.cut = False
        self.element_start = None

    def step(self, kind: str, begin: int, stop: int) -> None:
        """Pass over the token of that kind on [begin, stop)."""
        if kind in "[{":
            self.enclosing.append((kind, begin))
            self.expected = _ITEM_OR_END if kind == "[" else _KEY_OR_END
            if kind == "[":
                self.arrays[begin] = None
        elif kind == ",":
            self.expected = _AFTER_COMMA[self.enclosing[-1][0]]
        elif kind == ":":
            self.expected = _VALUE
        elif kind == '"' and self.expected in {_KEY, _KEY_OR_END}:
            self.expected = ":"
        else:
            self.end_value(kind, stop)

    def end_value(self, kind: str, stop: int) -> None:
        """End a value at `stop`: a string, a number, a literal, or what a bracket closes."""
        if kind in "]}":
            _, opened = self.enclosing.pop()
            if kind == "]":
                self.arrays[opened] = stop
        if self.enclosing:
            self.expected = _AFTER_VALUE[self.enclosing[-1][0]]
        if len(self.enclosing) == 1 and self.element_start is not None:
            self.elements.append((self.element_start, stop))
            self.element_start = None


def _is_scalar(word: str, *, prefix: bool) -> bool:
    """Whether the word is a JSON number or literal, or, with `prefix`, the beginning of one."""
    begun = prefix and (bool(_SCALAR.fullmatch(word + "0")) or any(w.startswith(word) for w in _LITERALS))
    return begun or _SCALAR.fullmatch(word) is not None


def _last_array(text: str, *, cut_off: bool) -> _ArrayScan:
    """Return the reading of the last top-level array, in linear time.

    Two readings that are alive at one character and neither of which is part of the other are one inside and one
    outside a string there: a `[` outside a string is known from the reading that met it. So no third is ever alive,
    and every character is read at most twice, once more for the array returned.
    """
    known: dict[int, int | None] = {}
    last: int | None = None
    position = text.find("[")
    while position >= 0:
        if position not in known:
            scan = _ArrayScan()
            scan.read(text, position)
            if scan.cut and (scan.elements or scan.element_start is not None):
                if cut_off or last is None:
                    return scan
                break
            known.update(scan.arrays)
        stop = known[position]
        if stop is not None:
            last = position
        position = text.find("[", stop or position + 1)
    scan = _ArrayScan()
    if last is not None:
        scan.read(text, last)
    return scan
