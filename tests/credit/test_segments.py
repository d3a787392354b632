import time
import tracemalloc
from itertools import accumulate, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditd.credit.candidate_parsers import Bullets, JsonArray, Numbered, parse_candidates
from creditd.credit.segments import first_overlap, token_spans

Pairs = list[tuple[int, int]]


@st.composite
def ordered_spans(draw: st.DrawFn) -> Pairs:
    """Draw ordered, disjoint spans, some of them empty or adjacent."""
    steps = draw(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), max_size=8))
    spans, position = [], 0
    for gap, width in steps:
        spans.append((position + gap, position + gap + width))
        position += gap + width
    return spans


@st.composite
def tokenizations(draw: st.DrawFn) -> Pairs:
    """Draw token offsets: adjacent tokens, gaps, zero widths, and characters split over equal offsets."""
    steps = draw(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 9), st.integers(1, 3)), max_size=20))
    offsets, position = [], 0
    for gap, width, copies in steps:
        start, stop = position + gap, position + gap + width
        offsets += [(start, stop)] * (copies if width <= 1 else 1)
        position = stop
    return offsets


def owner_of(token: tuple[int, int], spans: Pairs) -> int | None:
    """Return the span of one token by the definition."""
    start, stop = token
    if start == stop:
        return next((i for i, (p, q) in enumerate(spans) if p <= start < q), None)
    shared = [max(0, min(stop, q) - max(start, p)) for p, q in spans]
    return shared.index(max(shared)) if any(shared) else None


@given(spans=ordered_spans(), offsets=tokenizations())
def test_a_token_belongs_to_the_span_that_holds_most_of_it(spans: Pairs, offsets: Pairs):
    """The ranges hold exactly the tokens that the definition, token by token, gives to each span."""
    ranges = token_spans(spans, offsets)
    owners = [owner_of(token, spans) for token in offsets]
    assert ranges.shape == (len(spans), 2)
    assert ranges.dtype == np.int64
    for i, (start, stop) in enumerate(ranges.tolist()):
        assert list(range(start, stop)) == [t for t, owner in enumerate(owners) if owner == i]


@st.composite
def overlapping_tokens(draw: st.DrawFn) -> Pairs:
    """Draw token offsets that share characters, whose starts and stops do not decrease, or that have none."""
    steps = draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30), st.booleans()), max_size=20))
    starts = list(accumulate(step for step, _, _ in steps))
    stops = list(accumulate((start + width for start, (_, width, _) in zip(starts, steps, strict=True)), max))
    empty = [is_empty for _, _, is_empty in steps]
    return [(start, start if is_empty else stop) for start, stop, is_empty in zip(starts, stops, empty, strict=True)]


@given(spans=ordered_spans(), offsets=overlapping_tokens())
def test_tokens_that_share_characters_belong_to_the_span_that_holds_most_of_them(spans: Pairs, offsets: Pairs):
    """The same where tokens overlap: one without characters stands for the rest of those before it."""
    reached = accumulate((max(stop, start + 1) for start, stop in offsets), max)
    owners = [owner_of((start, stop), spans) for (start, _), stop in zip(offsets, reached, strict=True)]
    for i, (start, stop) in enumerate(token_spans(spans, offsets).tolist()):
        assert list(range(start, stop)) == [t for t, owner in enumerate(owners) if owner == i]


@given(lengths=st.lists(st.integers(0, 3), min_size=1, max_size=70), data=st.data())
def test_of_many_spans_inside_a_token_the_first_of_the_longest_has_it(lengths: list[int], data: st.DataObject):
    """However many spans a token holds wholly, and wherever it begins and ends among them."""
    spans = list(pairwise(accumulate(lengths, initial=0)))
    start = data.draw(st.integers(0, sum(lengths)))
    token = (start, data.draw(st.integers(start, sum(lengths))))
    owned = [i for i, (first, last) in enumerate(token_spans(spans, [token]).tolist()) if first < last]
    assert owned == [i for i in [owner_of(token, spans)] if i is not None]


def test_memory_does_not_grow_with_spans_times_tokens():
    """Twenty thousand tokens that each lie on all of twenty thousand spans: 400 million pairs, and none is made."""
    n = 20_000
    edges = np.arange(0, 2 * n + 1, 2)
    spans = np.stack([edges[:-1], edges[1:]], axis=1)
    tracemalloc.start()
    try:
        ranges = token_spans(spans, np.tile([[0, 2 * n]], (n, 1)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20
    assert ranges[0].tolist() == [0, n]
    assert (ranges[1:] == n).all()


@given(spans=ordered_spans(), offsets=tokenizations())
def test_ranges_are_ordered_and_no_token_is_in_two(spans: Pairs, offsets: Pairs):
    """Ranges stay in [0, T], in the order of the spans, the empty ones included."""
    ranges = token_spans(spans, offsets)
    assert first_overlap(ranges) is None
    flat = ranges.ravel()
    assert (np.diff(flat) >= 0).all()
    assert ((flat >= 0) & (flat <= len(offsets))).all()


@given(spans=ordered_spans(), offsets=tokenizations())
def test_every_token_inside_the_spans_is_covered(spans: Pairs, offsets: Pairs):
    """A token with a character in some span is in some range, and one with none is in no range."""
    covered = {t for start, stop in token_spans(spans, offsets).tolist() for t in range(start, stop)}
    for t, (start, stop) in enumerate(offsets):
        touches = any(min(max(stop, start + 1), q) > max(start, p) for p, q in spans)
        assert (t in covered) == touches


@given(words=st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=8), width=st.integers(1, 4))
def test_items_of_a_list_get_the_tokens_of_their_words(words: list[str], width: int):
    """With tokens that carry their leading space, each item of a parsed list holds its characters and few others."""
    text = "\n".join(f"- {word} {word}" for word in words)
    cuts = sorted({0, len(text), *(i for i, c in enumerate(text) if c in " \n"), *range(0, len(text), 3 * width)})
    offsets = list(pairwise(cuts))
    parsed = parse_candidates(text, Bullets())
    for (start, stop), (first, last) in zip(parsed.spans, token_spans(parsed.spans, offsets).tolist(), strict=True):
        assert first < last
        assert abs(offsets[first][0] - start) <= 1
        assert offsets[last - 1][1] == stop


def test_a_tie_goes_to_the_earlier_span():
    """A token with equally many characters of two spans is the earlier one's; with one more it is the later one's."""
    spans = [(0, 3), (4, 9)]
    assert token_spans(spans, [(0, 2), (2, 5), (5, 9)]).tolist() == [[0, 2], [2, 3]]
    assert token_spans(spans, [(0, 2), (2, 6), (6, 9)]).tolist() == [[0, 1], [1, 3]]


def test_a_token_over_many_spans_belongs_to_the_widest():
    """A token over three items counts for the one in the middle if that one is the longest."""
    assert token_spans([(0, 1), (2, 5), (6, 7)], [(0, 8)]).tolist() == [[0, 0], [0, 1], [1, 1]]


def test_a_span_without_a_token_stands_where_it_would():
    """Empty ranges stand before the first token behind them, or at the end; without tokens all are [0, 0)."""
    offsets = [(0, 2), (4, 6)]
    assert token_spans([(2, 4), (6, 7), (9, 9)], offsets).tolist() == [[1, 1], [2, 2], [2, 2]]
    assert token_spans([(0, 1), (1, 5)], []).tolist() == [[0, 0], [0, 0]]
    assert token_spans([], offsets).shape == (0, 2)


def test_split_characters_go_with_the_span_of_their_position():
    """Bytes of 🎉 and 語 belong to the item of their character, by equal offsets or by zero widths on either side."""
    # 0 '1', 1 '.', 2 ' ', 3 '🎉', 4 '語', 5 newline, 6 '2', 7 '.', 8 ' ', 9 'é', 10 '🎉'
    text = "1. 🎉語\n2. é🎉"
    spans = parse_candidates(text, Numbered()).spans
    assert spans == ((3, 5), (9, 11))
    equal = [
        (0, 1),
        (1, 2),
        (2, 4),
        (3, 4),
        (3, 4),
        (4, 5),
        (4, 5),
        (5, 6),
        (6, 7),
        (7, 8),
        (8, 10),
        (10, 11),
        (10, 11),
    ]
    assert token_spans(spans, equal).tolist() == [[2, 7], [10, 13]]
    before = [(0, 1), (1, 2), (2, 3), (3, 3), (3, 4), (4, 4), (4, 4), (4, 5), (5, 6), (6, 8), (8, 9), (9, 9), (9, 11)]
    assert token_spans(spans, before).tolist() == [[3, 8], [11, 13]]
    after = [(0, 3), (3, 4), (3, 3), (3, 3), (4, 5), (4, 4), (5, 9), (9, 10), (10, 11), (10, 10)]
    assert token_spans(spans, after).tolist() == [[1, 6], [7, 10]]


def test_byte_level_tokens_of_json_strings_hold_the_whole_string():
    """One token per byte, with the offsets of its character, gives each string exactly the bytes between its quotes."""
    text = '["語🎉", "naïve"]'
    offsets = [(i, i + 1) for i, character in enumerate(text) for _ in character.encode()]
    spans = parse_candidates(text, JsonArray()).spans
    # Two bytes '["', then 3 + 4 bytes, then four bytes '", "', then 6 bytes.
    assert token_spans(spans, offsets).tolist() == [[2, 9], [13, 19]]


def test_many_tokens_cost_linear_time():
    """Half a million tokens and ten thousand spans are mapped at once."""
    edges = np.arange(500_001)
    spans = np.stack([edges[:-50:50], edges[:-50:50] + 30], axis=1)
    started = time.process_time()
    ranges = token_spans(spans, np.stack([edges[:-1], edges[1:]], axis=1))
    assert time.process_time() - started < 2.0
    assert (ranges == spans).all()


@pytest.mark.parametrize(
    ("spans", "overlap"),
    [([], None), ([(0, 2), (2, 2), (2, 4)], None), ([(0, 2), (1, 3), (2, 4)], 1), ([(0, 1), (5, 4)], 1), ([(3, 1)], 0)],
)
def test_the_first_overlap_is_the_first_offender(spans: Pairs, overlap: int | None):
    """Touching spans do not overlap; a span that ends before it starts is an offender."""
    assert first_overlap(spans) == overlap


@pytest.mark.parametrize(
    ("spans", "offsets", "message"),
    [
        ([(0, 5), (4, 9)], [], r"character span 1: got \[4, 9\) after \[0, 5\), expected a start of at least 5"),
        ([(6, 9), (0, 5)], [], r"character span 1: got \[0, 5\) after \[6, 9\)"),
        ([(6, 4)], [], r"character span 0: got \[6, 4\), expected a stop of at least 6"),
        ([], [(0, 2), (1, 3), (0, 4)], r"token 2: got \[0, 4\), expected a start of at least 1"),
        ([], [(0, 5), (1, 3)], r"token 1: got \[1, 3\), .* a stop of at least 5"),
        ([], [(3, 2)], r"token 0: got \[3, 2\)"),
        ([(0.0, 1.0)], [], r"character_spans: got shape \(1, 2\) of float64, expected"),
        ([], [1, 2], r"token_offsets: got shape \(2,\) of int64, expected"),
    ],
)
def test_wrong_ranges_are_refused_by_name(spans: Pairs, offsets: Pairs, message: str):
    """Overlapping spans, offsets that go backwards and other shapes are errors that name the offender."""
    with pytest.raises(ValueError, match=message):
        token_spans(spans, offsets)
