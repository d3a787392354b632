import json
import pickle
import re
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditd.credit.candidate_parsers import (
    PARSERS,
    Bullets,
    CandidateParser,
    JsonArray,
    Numbered,
    ParsedCandidates,
    Regex,
    Tags,
    parse_candidates,
    parser_of,
)

EVERY_PARSER = [
    Numbered(),
    Bullets(),
    JsonArray(),
    Tags(),
    Tags("idea"),
    Regex(r"(?m)^idea: (.*)$"),
    Regex(r"(?=(\w\w))"),
    Regex(r"\w*"),
]
FRAGMENTS = [
    "1. ",
    "2) ",
    "(3) ",
    "4: ",
    "2024. ",
    "- ",
    "* ",
    "•",
    "+ ",
    "  ",
    "\t",
    "\n",
    "\r\n",
    "x",
    "é",
    "🎉",
    "\x00",
]
FRAGMENTS += ["[", "]", "{", "}", '"', "\\", ",", ":", "1", "-", "nul", "null", "\\u00e9", "```json\n", "idea: "]
FRAGMENTS += ["<candidate>", "</candidate>", "<candidate id='1'>", "<candidate/>", "<idea>", "</idea>", "<", ">"]
FRAGMENTS += ["<think>", "</think>"]
HOSTILE_TEXT = st.one_of(st.text(), st.lists(st.sampled_from(FRAGMENTS), max_size=40).map("".join))
HOSTILE_MOTIFS = ["[", "[1,", '["', '[\\"', ':["[', ' [["', '{"a":[', '"\\n', '["x", ', "1. ", "1. \n", "- ", "-\n"]
HOSTILE_MOTIFS += ["1", " ", "\n", "<candidate>", "<candidate ", "</candidate ", "<", "<think>", "</think>"]
CLEAN = st.text(st.characters(categories=["L", "N", "S"], exclude_characters="<>"), min_size=1)
CLEAN_LISTS = st.lists(st.lists(CLEAN, min_size=1, max_size=4).map(" ".join), max_size=8)
WITH_LINES = st.lists(CLEAN.map("x{}".format), min_size=1, max_size=3).map("\n   ".join)


def first_arrays(text: str) -> list[tuple[int, int]]:
    """Return the top-level arrays of the text by trying every bracket from left to right."""
    decoder = json.JSONDecoder()
    found = []
    position = text.find("[")
    while position >= 0:
        stop = position + 1
        try:
            _, stop = decoder.raw_decode(text, position)
            found.append((position, stop))
        except ValueError:
            pass
        position = text.find("[", stop)
    return found


@pytest.mark.parametrize("parser", EVERY_PARSER, ids=str)
@given(text=HOSTILE_TEXT, after_thinking=st.booleans(), cut_off=st.booleans())
def test_spans_are_ordered_disjoint_and_inside_any_text(
    *, parser: CandidateParser, text: str, after_thinking: bool, cut_off: bool
):
    """No text makes a parser raise or report spans that overlap, leave the text, or hold only whitespace."""
    parsed = parse_candidates(text, parser, after_thinking=after_thinking, cut_off=cut_off)
    assert parsed.n_candidates == len(parsed.texts) == len(parsed.spans)
    reached = 0
    for item, (start, stop) in zip(parsed.texts, parsed.spans, strict=True):
        assert reached <= start < stop <= len(text)
        assert item.strip()
        if isinstance(parser, JsonArray):
            assert text[start:stop] == item or json.loads(f'"{text[start:stop]}"') == item
        else:
            assert text[start:stop] == item
        reached = stop
    if parsed.open_span is not None:
        start, stop = parsed.open_span
        assert reached <= start <= stop == len(text)
        assert cut_off or isinstance(parser, JsonArray | Tags)
    if after_thinking and parsed.spans:
        assert parsed.spans[0][0] >= text.rfind("</think>")


@given(items=CLEAN_LISTS, first=st.integers(0, 2000), form=st.sampled_from(["{}. ", "{}) ", "({}) ", "{}: "]))
def test_a_numbered_list_gives_its_items_back(items: list[str], first: int, form: str):
    """Numbering a list from any number and parsing it is the identity."""
    text = "\n".join(form.format(number) + item for number, item in enumerate(items, first))
    assert parse_candidates(text, Numbered()).texts == tuple(items)


@given(items=st.lists(WITH_LINES, max_size=6))
def test_an_item_extends_over_lines(items: list[str]):
    """Further lines of a numbered or bulleted item belong to it."""
    numbered = "".join(f"{number}. {item}\n\n" for number, item in enumerate(items, 1))
    bulleted = "".join(f"  - {item}\n\n" for item in items)
    assert parse_candidates(numbered, Numbered()).texts == tuple(items)
    assert parse_candidates(bulleted, Bullets()).texts == tuple(items)


@given(items=CLEAN_LISTS, bullet=st.sampled_from("-*•+"), indentation=st.sampled_from(["", "  ", "\t"]))
def test_a_bulleted_list_gives_its_items_back(items: list[str], bullet: str, indentation: str):
    """Bulleting a list and parsing it is the identity where no item starts with a bullet."""
    text = "Ideas:\n" + "\n".join(f"{indentation}{bullet} {item}" for item in items)
    assert parse_candidates(text, Bullets()).texts == tuple(items)


@given(
    items=st.lists(st.text(min_size=1).filter(str.strip)), ascii_only=st.booleans(), indent=st.sampled_from([None, 2])
)
def test_a_json_array_gives_its_strings_back(*, items: list[str], ascii_only: bool, indent: int | None):
    """Any strings, with quotes, brackets, escapes or surrogate pairs, survive JSON, a fence and prose before it."""
    text = f"See [above]:\n```json\n{json.dumps(items, ensure_ascii=ascii_only, indent=indent)}\n```\nDone."
    parsed = parse_candidates(text, JsonArray(), after_thinking=False)
    assert parsed.texts == tuple(items)
    assert [json.loads(f'"{text[start:stop]}"') for start, stop in parsed.spans] == items


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(values=st.lists(VALUES))
def test_elements_other_than_strings_give_their_raw_json(values: list[object]):
    """Every element of an array of any values is found, strings decoded and all others as they are written."""
    text = "x " + json.dumps(values)
    expected = [
        value if isinstance(value, str) else json.dumps(value)
        for value in values
        if not isinstance(value, str) or value.strip()
    ]
    assert parse_candidates(text, JsonArray(), after_thinking=False).texts == tuple(expected)


@given(text=st.text('[[]]"",,1{}:\\ a', max_size=20))
def test_the_array_is_the_one_that_a_left_to_right_search_finds_last(text: str):
    """The linear search agrees with trying every bracket, on text that no array interrupted by its end can hide."""
    text += "\n]\x00"
    arrays = first_arrays(text)
    parsed = parse_candidates(text, JsonArray())
    assert parsed.open_span is None
    expected = json.loads(text[slice(*arrays[-1])]) if arrays else []
    kept = [value for value in expected if not isinstance(value, str) or value.strip()]
    assert [v if isinstance(v, str) else json.loads(t) for v, t in zip(kept, parsed.texts, strict=True)] == kept
    assert [t for v, t in zip(kept, parsed.texts, strict=True) if isinstance(v, str)] == [
        v for v in kept if isinstance(v, str)
    ]


@given(values=st.lists(VALUES, min_size=1, max_size=4), data=st.data())
def test_an_interrupted_array_keeps_its_complete_elements(values: list[object], data: st.DataObject):
    """Cutting an array anywhere gives a prefix of its candidates, and the rest of the text as the open element."""
    whole = json.dumps(values)
    cut = data.draw(st.integers(0, len(whole) - 1))
    complete = parse_candidates(whole, JsonArray(), after_thinking=False)
    parsed = parse_candidates(whole[:cut], JsonArray(), after_thinking=False)
    assert parsed.texts == complete.texts[: parsed.n_candidates]
    assert parsed.spans == complete.spans[: parsed.n_candidates]
    for start, stop in complete.spans[parsed.n_candidates :]:
        assert stop >= cut
        assert start >= cut or parsed.open_span == (start, cut)


@given(
    items=CLEAN_LISTS,
    name=st.sampled_from(["candidate", "idea", "a.b-c_1"]),
    attributes=st.sampled_from(["", " n='1'"]),
)
def test_tags_give_their_contents_back(items: list[str], name: str, attributes: str):
    """Wrapping a list in tags, with attributes or without, and parsing it is the identity."""
    text = "".join(f"<{name}{attributes}>\n{item}\n</{name} >, " for item in items)
    assert parse_candidates(text, Tags(name)).texts == tuple(items)


@given(items=CLEAN_LISTS)
def test_a_regular_expression_gives_its_matches_back(items: list[str]):
    """A pattern with one group of the line gives the list whose lines it describes."""
    text = "".join(f"idea: {item}\nbecause\n" for item in items)
    assert parse_candidates(text, Regex(r"(?m)^idea: (.+)$")).texts == tuple(items)


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("1. a\n2) b\n(3) c\n4: d", ("a", "b", "c", "d")),
        ("Sure:\n1. In\n2024. it began\n2. b", ("In\n2024. it began", "b")),
        ("1. a\n   1. inner\n   2. inner\n2. b", ("a\n   1. inner\n   2. inner", "b")),
        (" 9. a\n10. b", ("a", "b")),
        ("1. a\n1. b", ("a\n1. b",)),
        ("1.5 litres\n12:30 lunch", ()),
        ("1.\n2. b\n3.   \n4. d", ("b", "d")),
        ("1. a\n2. b\n\nEnjoy!", ("a", "b\n\nEnjoy!")),
    ],
)
def test_only_consecutive_numbers_at_the_start_of_a_line_start_items(text: str, texts: tuple[str, ...]):
    """A year, a nested list, a decimal or a repeated number is text; empty items count in the numbering only."""
    assert parse_candidates(text, Numbered()).texts == texts


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("- a\n* b\n• c\n+ d", ("a", "b", "c", "d")),
        ("- a\n  - inner\n- b", ("a\n  - inner", "b")),
        ("---\n**bold**\n-1\n- a", ("a",)),
        ("-\n- b", ("b",)),
    ],
)
def test_bullets_stand_at_the_indentation_of_the_first(text: str, texts: tuple[str, ...]):
    """Nested bullets, rules, bold text and negative numbers are no items."""
    assert parse_candidates(text, Bullets()).texts == texts


@pytest.mark.parametrize(
    ("text", "cut_off", "texts", "opened"),
    [
        ('["a", "b]["]', False, ("a", "b]["), None),
        ('["draft"] then ["final", [1, "]"], {"k": [2]}]', False, ("final", '[1, "]"]', '{"k": [2]}'), None),
        ('{"ideas": ["a", " ", ""]}', False, ("a",), None),
        ('[1, 2 ["x"]', False, ("x",), None),
        ('["a [1] b", "c', False, ("a [1] b",), "c"),
        ('["a", "b\\', False, ("a",), "b\\"),
        ('["a", "b\\u00e', False, ("a",), "b\\u00e"),
        ('["a", {"k": [1, ', False, ("a",), '{"k": [1, '),
        ("[12, 3", False, ("12",), "3"),
        ("[12, -", False, ("12",), "-"),
        ("[true, fal", False, ("true",), "fal"),
        ("[true, fax", False, (), None),
        ("[01]", False, (), None),
        ("[NaN]", False, (), None),
        ('["a", "b"', False, ("a", "b"), None),
        ('["a"] hope [', True, ("a",), None),
        ('["a"] and ["b", "c', False, ("a",), None),
        ('["a"] and ["b", "c', True, ("b",), "c"),
    ],
)
def test_the_last_array_is_read_exactly(*, text: str, cut_off: bool, texts: tuple[str, ...], opened: str | None):
    """Brackets in strings, nesting, RFC 8259's numbers and the place where the text ends decide what an element is."""
    parsed = parse_candidates(text, JsonArray(), cut_off=cut_off)
    assert parsed.texts == texts
    assert (None if parsed.open_span is None else text[slice(*parsed.open_span)]) == opened


@pytest.mark.parametrize("cut_off", [False, True])
def test_an_unclosed_tag_is_open_whether_or_not_the_text_was_cut(*, cut_off: bool):
    """Syntax shows that a tag is not closed; an opening tag before it is replaced; a self-closing one is none."""
    text = "<candidate>a<candidate>b</candidate></candidate><candidate /><candidate>  c</cand"
    parsed = parse_candidates(text, Tags(), cut_off=cut_off)
    assert parsed == ParsedCandidates(("b",), ((23, 24),), (text.index("c</cand"), len(text)))


@pytest.mark.parametrize(
    ("text", "parser", "texts", "opened"),
    [
        ("1. a\n2. b c", Numbered(), ("a",), "b c"),
        ("1. a\n2. ", Numbered(), ("a",), ""),
        ("- a\n- b\n", Bullets(), ("a",), "b\n"),
        ("<a>b", Regex(r"<a>(\w+)"), (), "b"),
        ("x=1; x=2; ", Regex(r"x=(?P<candidate>\d+)"), ("1", "2"), None),
        ("x=1; x=2;", Regex(r"x=(\d+);"), ("1",), "2;"),
    ],
)
def test_a_cut_off_completion_opens_the_item_at_its_end(
    text: str, parser: CandidateParser, texts: tuple[str, ...], opened: str | None
):
    """Under the length limit the item that touches the end is no candidate; without it, it is one where it has text."""
    parsed = parse_candidates(text, parser, cut_off=True)
    assert parsed.texts == texts
    assert (None if parsed.open_span is None else text[slice(*parsed.open_span)]) == opened
    whole = parse_candidates(text, parser)
    assert whole.open_span is None
    assert whole.texts[: len(texts)] == texts
    assert whole.n_candidates == len(texts) + bool(opened)


def test_only_the_text_after_the_last_thinking_is_parsed():
    """Drafts inside the thinking are no candidates, and spans index the whole completion."""
    text = "<think>1. draft</think>x<think>2. draft</think>1. é\n2. b"
    parsed = parse_candidates(text, Numbered())
    assert parsed.texts == ("é", "b")
    assert [text[start:stop] for start, stop in parsed.spans] == ["é", "b"]
    assert parse_candidates("thought</think>1. a", Numbered()).texts == ("a",)


@pytest.mark.parametrize("text", ["<think>\n1. a", "<think></think>\n1. a\n<think>"])
def test_thinking_that_never_ends_leaves_nothing_to_parse(text: str):
    """An opened thinking hides all candidates, unless the caller parses the thinking too."""
    for cut_off in (False, True):
        assert parse_candidates(text, Numbered(), cut_off=cut_off) == ParsedCandidates((), (), None)
    assert parse_candidates(text, Numbered(), after_thinking=False).n_candidates == 1


def test_a_pattern_names_its_candidate_by_group():
    """The group called candidate wins over group 1, group 1 over the match; a group that did not match gives none."""
    text = "k=v k=w"
    assert parse_candidates(text, Regex(r"(k)=(?P<candidate>\w)")).texts == ("v", "w")
    assert parse_candidates(text, Regex(r"(k)=\w")).texts == ("k", "k")
    assert parse_candidates(text, Regex(r"k=\w")).texts == ("k=v", "k=w")
    assert parse_candidates(text, Regex(r"k=v|k=(w)")).texts == ("w",)
    assert parse_candidates("abcd", Regex(r"(?=(\w\w))")).texts == ("ab", "cd")


@pytest.mark.parametrize(
    "motif",
    HOSTILE_MOTIFS,
)
@pytest.mark.parametrize("parser", [Numbered(), Bullets(), JsonArray(), Tags(), Regex(r"\S+")], ids=str)
def test_hostile_repetition_costs_linear_time(parser: CandidateParser, motif: str):
    """Two hundred thousand characters of nesting or of unclosed syntax are parsed at once, without recursion."""
    for lead in ("", '["', "<candidate"):
        text = lead + motif * (200_000 // len(motif))
        started = time.process_time()
        parse_candidates(text, parser, cut_off=True)
        assert time.process_time() - started < 2.0


def test_deep_nesting_is_one_element():
    """An array nested deeper than Python's recursion goes is found whole."""
    depth = 50_000
    assert parse_candidates("[" * depth + "]" * depth, JsonArray()).spans == ((1, 2 * depth - 1),)


@pytest.mark.parametrize(
    ("spec", "parser"),
    [
        ({"type": "numbered"}, Numbered()),
        ({"type": "bullets"}, Bullets()),
        ({"type": "json_array"}, JsonArray()),
        ({"type": "tags"}, Tags("candidate")),
        ({"type": "tags", "name": "idea"}, Tags("idea")),
        ({"type": "regex", "pattern": "a+"}, Regex("a+")),
    ],
)
def test_a_specification_names_its_parser(spec: dict[str, object], parser: CandidateParser):
    """Every parser of the closed set is reachable by name, and equal, hashable and picklable by value."""
    assert parser_of(spec) == parser
    assert PARSERS[str(spec["type"])] is type(parser)
    assert hash(replace(parser)) == hash(parser)
    assert pickle.loads(pickle.dumps(parser)) == parser  # noqa: S301 - pickled in the same line


def test_the_set_of_parsers_is_closed():
    """The names are those of the wire, and the mapping cannot be changed."""
    assert list(PARSERS) == ["numbered", "bullets", "json_array", "tags", "regex"]
    with pytest.raises(TypeError):
        PARSERS["other"] = Numbered  # type: ignore[index]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "parser type: got None, expected one of numbered"),
        ({"type": "xml"}, "got 'xml', expected one of numbered, bullets, json_array, tags, regex"),
        ({"type": ["tags"]}, "expected one of"),
        ({"type": "tags", "tag": "x"}, "fields of parser tags: got ['tag'], expected ['name']"),
        ({"type": "numbered", "name": "x"}, "fields of parser numbered: got ['name'], expected []"),
        ({"type": "regex"}, "fields of parser regex: got [], expected ['pattern']"),
        ({"type": "regex", "pattern": 3}, "got {'pattern': 3}, expected strings"),
        ({"type": "regex", "pattern": "("}, "got '(', expected a regular expression"),
        ({"type": "tags", "name": "a b"}, "got 'a b', expected a letter"),
        ({"type": "tags", "name": ""}, "got '', expected a letter"),
    ],
)
def test_a_wrong_specification_says_what_was_expected(spec: dict[str, object], message: str):
    """Unknown types and fields, missing fields and refused values are errors that name both sides."""
    with pytest.raises(ValueError, match=re.escape(message)):
        parser_of(spec)
