from itertools import groupby, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditd.credit.absent_units import RenderedUnits
from creditd.credit.text_segments import segment_ends
from creditd.credit.text_units import units_of_ranges, units_of_segments

Pairs = list[tuple[int, int]]
LIMITS = st.none() | st.integers(1, 6)


@st.composite
def tokenizations(draw: st.DrawFn) -> tuple[int, Pairs, list[bool]]:
    """Draw a number of characters, the offsets of tokens, and which tokens are trainable.

    Tokens have gaps between them, zero widths, characters that they share, and masked stretches.
    """
    steps = draw(
        st.lists(st.tuples(st.integers(0, 1), st.sampled_from([0, 0, 1, 2, 3, 5]), st.integers(1, 3)), max_size=14)
    )
    offsets, position = [], 0
    for gap, width, copies in steps:
        start, stop = position + gap, position + gap + width
        offsets += [(start, stop)] * (copies if width <= 2 else 1)
        position = stop
    n_characters = position + draw(st.integers(0, 1)) if offsets else 0
    stretches = draw(st.lists(st.tuples(st.booleans(), st.integers(1, 3)), max_size=9))
    mask = [kept for kept, length in stretches for _ in range(length)][: len(offsets)]
    return n_characters, offsets, mask + [True] * (len(offsets) - len(mask))


@st.composite
def cut_texts(draw: st.DrawFn) -> tuple[int, list[int], Pairs, list[bool]]:
    """Draw a tokenization and the ends of segments of its text."""
    n_characters, offsets, mask = draw(tokenizations())
    places = draw(st.sets(st.integers(1, max(n_characters, 1)))) if n_characters else set()
    return n_characters, sorted(places | {n_characters} - {0}), offsets, mask


def segment_of(token: int, ends: list[int], offsets: Pairs) -> int:
    """The segment of a token by the definition; the last one at the end of the text."""
    start, stop = offsets[token]
    if start == stop:
        stop = max([start + 1, *(end for _, end in offsets[:token])])
    shared = [min(stop, end) - max(start, begin) for begin, end in pairwise([0, *ends])]
    return shared.index(max(shared)) if shared and max(shared) > 0 else len(ends) - 1


def edges_of(n_characters: int, offsets: Pairs) -> list[int]:
    """Where the characters of each token begin, and where the last one's end."""
    return [0, *(start for start, _ in offsets[1:]), n_characters] if offsets else [n_characters]


def by_definition(ends: list[int], offsets: Pairs, mask: list[bool], edges: list[int]) -> list[list[int]]:
    """Tokens of each unit, before any is merged for their number."""
    owners = [segment_of(token, ends, offsets) if ends else 0 for token in range(len(offsets))]
    units = []
    for kept, run in groupby(range(len(offsets)), key=lambda token: mask[token]):
        if not kept:
            continue
        here: list[list[int]] = []
        for _, tokens in groupby(run, key=lambda token: owners[token]):
            unit = list(tokens)
            silent = edges[unit[0]] == edges[unit[-1] + 1]
            first_silent = bool(here) and edges[here[0][0]] == edges[unit[0]]
            if here and (silent or first_silent):
                here[-1] += unit
            else:
                here.append(unit)
        units += here
    writes = any(edges[token] < edges[token + 1] for unit in units for token in unit)
    return units if writes else []


def merged(units: list[list[int]], most: int | None) -> list[list[int]]:
    """Units merged one at a time: the shortest, leftmost first, into its shorter neighbour, left first."""
    units = [list(unit) for unit in units]
    while most is not None and len(units) > most:
        near = {
            j: [k for k in (j - 1, j + 1) if 0 <= k < len(units) and units[min(j, k)][-1] + 1 == units[max(j, k)][0]]
            for j in range(len(units))
        }
        chosen = min((j for j in near if near[j]), key=lambda j: (len(units[j]), j), default=None)
        if chosen is None:
            break
        other = min(near[chosen], key=lambda k: (len(units[k]), k))
        left, right = sorted((chosen, other))
        units[left : right + 1] = [units[left] + units[right]]
    return units


@given(case=cut_texts(), most=LIMITS)
def test_units_are_those_of_the_definition(case, most):
    """Token by token, run by run, and merged one at a time, the units are the same."""
    n_characters, ends, offsets, mask = case
    units = units_of_segments(n_characters, ends, offsets, mask, max_units=most)
    edges = edges_of(n_characters, offsets)
    whole = by_definition(ends, offsets, mask, edges)
    expected = merged(whole, most)
    assert units.tokens.tolist() == [[unit[0], unit[-1] + 1] for unit in expected]
    assert units.characters.tolist() == [[edges[unit[0]], edges[unit[-1] + 1]] for unit in expected]
    assert units.merged == (len(expected) < len(whole))
    assert units.n_units == len(expected)
    assert units.lengths.tolist() == [len(unit) for unit in expected]


@given(case=cut_texts(), most=LIMITS)
def test_every_token_is_in_one_unit_or_masked(case, most):
    """Each trainable token is in exactly one unit, unless none writes anything; no masked token is in any."""
    n_characters, ends, offsets, mask = case
    units = units_of_segments(n_characters, ends, offsets, mask, max_units=most)
    times = np.zeros(len(offsets), dtype=int)
    for start, stop in units.tokens.tolist():
        times[start:stop] += 1
    edges = edges_of(n_characters, offsets)
    writes = [edges[token] < edges[token + 1] for token in range(len(offsets))]
    if any(kept and some for kept, some in zip(mask, writes, strict=True)):
        assert times.tolist() == [int(kept) for kept in mask]
    else:
        assert units.n_units == 0
    assert units.has_frozen_text == any(some and not kept for kept, some in zip(mask, writes, strict=True))
    assert units.trainable.tolist() == mask
    assert units.n_tokens == len(offsets)


@given(case=cut_texts(), most=LIMITS, filler=st.sampled_from(["", " ", "<m>"]))
def test_the_text_round_trips(case, most, filler):
    """Pieces of all units and of frozen text are the completion; a unit has exactly what its tokens write."""
    n_characters, ends, offsets, mask = case
    text = "".join(chr(0x4E00 + place) for place in range(n_characters))
    units = units_of_segments(n_characters, ends, offsets, mask, max_units=most)
    rendered = RenderedUnits(text, units.characters, filler)
    assert rendered.text(np.ones(units.n_units, dtype=bool)) == text
    edges = edges_of(n_characters, offsets)
    for (first, last), (start, stop) in zip(units.tokens.tolist(), units.characters.tolist(), strict=True):
        assert text[start:stop] == "".join(text[edges[token] : edges[token + 1]] for token in range(first, last))


@given(case=cut_texts(), most=st.integers(1, 6))
def test_merging_reaches_the_limit_within_each_run(case, most):
    """There are at most so many units, or one for each run of trainable tokens; merging only joins neighbours."""
    n_characters, ends, offsets, mask = case
    before = units_of_segments(n_characters, ends, offsets, mask).tokens
    after = units_of_segments(n_characters, ends, offsets, mask, max_units=most).tokens
    runs = sum(kept for kept, _ in groupby(mask))
    assert len(after) <= max(most, runs)
    assert len(after) == len(before) or len(after) >= most
    assert set(after[:, 0].tolist()) <= set(before[:, 0].tolist())
    assert set(after[:, 1].tolist()) <= set(before[:, 1].tolist())


@given(case=tokenizations(), most=LIMITS)
def test_tokens_are_segments_where_they_share_no_character(case, most):
    """Under `token` each token with characters is a unit, with those before it there that have none."""
    n_characters, offsets, mask = case
    units = units_of_segments(n_characters, None, offsets, mask, max_units=most)
    edges = edges_of(n_characters, offsets)
    reached, ends = 0, set()
    for start, stop in offsets:
        if reached <= start < n_characters and start:
            ends.add(start)
        reached = max(reached, stop)
    ends |= {n_characters} - {0}
    expected = merged(by_definition(sorted(ends), offsets, mask, edges), most)
    assert units.tokens.tolist() == [[unit[0], unit[-1] + 1] for unit in expected]


def test_a_split_character_is_one_unit():
    """The bytes of 🎉 are one player under `token`, whether its tokens share offsets or all but the last have none."""
    for offsets in (
        [(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)],
        [(0, 1), (1, 1), (1, 1), (1, 2), (2, 3)],
    ):
        assert units_of_segments(3, None, offsets).tokens.tolist() == [[0, 1], [1, 4], [4, 5]]


def test_special_tokens_at_the_end_of_a_turn_stay_in_it():
    """An end-of-turn token has no text: it belongs to the unit before it, not to the text of the tool behind it."""
    text = "Look. [7] Done."
    offsets = [(0, 5), (5, 5), (5, 9), (9, 15), (15, 15)]
    mask = [True, True, False, True, True]
    for ends in (segment_ends(text, "span"), None):
        units = units_of_segments(len(text), ends, offsets, mask)
        assert units.tokens.tolist() == [[0, 2], [3, 5]]
        assert units.characters.tolist() == [[0, 5], [9, 15]]
        assert units.has_frozen_text


def test_a_token_that_only_begins_a_character_goes_with_what_is_behind_it_in_its_run():
    """At the beginning of a run there is nothing before it, even where its place is the end of another segment."""
    units = units_of_segments(8, [5, 8], [(0, 4), (4, 4), (4, 8)], [False, True, True])
    assert units.tokens.tolist() == [[1, 3]]
    assert units.characters.tolist() == [[4, 8]]


def test_masked_tokens_without_text_freeze_nothing():
    """A special token that is masked ends a run, and is no text that stands in every coalition."""
    units = units_of_segments(4, [4], [(0, 2), (2, 2), (2, 4)], [True, False, True])
    assert units.tokens.tolist() == [[0, 1], [2, 3]]
    assert not units.has_frozen_text


def test_a_run_without_text_is_a_unit_of_its_own_beside_others():
    """A lone end-of-turn token between tools joins nothing across them: it is a unit without characters."""
    units = units_of_segments(4, [4], [(0, 2), (2, 3), (3, 3), (3, 4)], [True, False, True, False])
    assert units.tokens.tolist() == [[0, 1], [2, 3]]
    assert units.characters.tolist() == [[0, 2], [3, 3]]


@pytest.mark.parametrize(
    ("n_characters", "ends", "offsets", "mask"),
    [
        (0, [], [], None),
        (0, [], [(0, 0)], None),
        (0, None, [(0, 0), (0, 0)], None),
        (5, [2, 5], [(0, 5), (5, 5)], [False, True]),
        (5, [2, 5], [(0, 2), (2, 5)], [False, False]),
        (0, [], None, None),
    ],
)
def test_without_trainable_text_there_is_no_unit(n_characters, ends, offsets, mask):
    """No token, only tokens without text, and only masked text: nothing can be credited."""
    units = units_of_segments(n_characters, ends, offsets, mask, max_units=1)
    assert units.n_units == 0
    assert units.characters.shape == (0, 2)
    assert not units.merged


def test_without_offsets_each_segment_is_a_token():
    """Quick tries need no tokenizer; masked segments are frozen text."""
    text = "One, two, three."
    units = units_of_segments(len(text), segment_ends(text, "span"))
    assert (units.n_tokens, units.tokens.tolist()) == (3, [[0, 1], [1, 2], [2, 3]])
    assert [text[start:stop] for start, stop in units.characters.tolist()] == ["One,", " two,", " three."]
    masked = units_of_segments(len(text), segment_ends(text, "span"), None, [True, False, True])
    assert masked.tokens.tolist() == [[0, 1], [2, 3]]
    assert masked.has_frozen_text


def test_a_token_over_two_segments_goes_where_most_of_it_is():
    """A delimiter in the middle of a token cuts before or behind that token, never through it."""
    text = "a,b. cd"
    units = units_of_segments(len(text), segment_ends(text, "span"), [(0, 2), (2, 5), (5, 7)])
    assert [text[start:stop] for start, stop in units.characters.tolist()] == ["a,", "b. ", "cd"]


def test_the_shortest_units_are_merged_first():
    """Four units of 3, 1, 1 and 4 tokens: the first 1 joins the other, then those 2 the 3."""
    ends, offsets = [3, 4, 5, 9], [(place, place + 1) for place in range(9)]
    by_limit = {most: units_of_segments(9, ends, offsets, max_units=most).tokens.tolist() for most in (4, 3, 2, 1)}
    assert by_limit == {
        4: [[0, 3], [3, 4], [4, 5], [5, 9]],
        3: [[0, 3], [3, 5], [5, 9]],
        2: [[0, 5], [5, 9]],
        1: [[0, 9]],
    }


def test_units_are_not_merged_across_a_masked_token():
    """Three runs stay three units, whatever the limit."""
    mask = [True, True, False, True, False, True, True]
    units = units_of_segments(7, list(range(1, 8)), [(at, at + 1) for at in range(7)], mask, max_units=1)
    assert units.tokens.tolist() == [[0, 2], [3, 4], [5, 7]]
    assert units.merged


def test_many_units_are_merged_to_few():
    """A hundred thousand tokens, each a unit, become 24 units of nearly equal length."""
    places = np.arange(100_000)
    offsets = np.stack([places, places + 1], axis=1)
    units = units_of_segments(100_000, None, offsets, max_units=24)
    assert units.n_units == 24
    assert units.lengths.max() <= 2 * units.lengths.min() + 1


@given(case=cut_texts(), most=LIMITS)
def test_ranges_of_a_caller_are_units_as_they_are(case, most):
    """Units that were answered can be sent back: the same units, characters and merging, with and without the text."""
    n_characters, ends, offsets, mask = case
    whole = units_of_segments(n_characters, ends, offsets, mask)
    once = units_of_segments(n_characters, ends, offsets, mask, max_units=most)
    if whole.n_units == 0:
        return
    again = units_of_ranges(
        len(offsets), whole.tokens, mask, token_offsets=offsets, n_characters=n_characters, max_units=most
    )
    assert again.tokens.tolist() == once.tokens.tolist()
    assert again.characters.tolist() == once.characters.tolist()
    assert (again.merged, again.has_frozen_text) == (once.merged, once.has_frozen_text)
    unread = units_of_ranges(len(offsets), whole.tokens, mask, max_units=most)
    assert unread.tokens.tolist() == once.tokens.tolist()
    assert unread.characters is None
    assert unread.has_frozen_text == (not all(mask))


def test_ranges_over_tokens_without_text_are_no_units():
    """Given the text, units of which nothing is written are none; without it they are taken at their word."""
    assert units_of_ranges(2, [(0, 2)], token_offsets=[(0, 0), (0, 0)], n_characters=0).n_units == 0
    assert units_of_ranges(2, [(0, 2)]).n_units == 1
    assert units_of_ranges(0, []).n_units == 0
    assert units_of_ranges(2, [], [False, False]).n_units == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, None), r"got no token_offsets, expected them where each token is a segment"),
        ((3, [2]), r"ends: got \[2\], expected ascending ones, the last one 3"),
        ((3, [2, 2, 3]), r"expected ascending ones"),
        ((3, [0, 3]), r"expected ascending ones"),
        ((3, [[3]]), r"ends: got shape \(1, 1\) of int64"),
        ((3, [3.0]), r"ends: got shape \(1,\) of float64"),
        ((3, [3], []), r"got no token, expected those that write 3 characters"),
        ((3, [3], [(0, 4)]), r"offsets of token 0: got \[0, 4\), expected characters of a text of 3"),
        ((3, [3], [(-1, 3)]), r"offsets of token 0: got \[-1, 3\)"),
        ((3, [3], [(0, 3), (0, 0), (4, 4)]), r"offsets of token 2: got \[4, 4\), expected characters"),
        ((3, [3], [(0, 3), (3, 3), (0, 0)]), r"offsets of token 2: got \[0, 0\), expected a start of at least 3"),
        ((3, [3], [0, 3]), r"token_offsets: got shape \(2,\)"),
        ((3, [3], [(0, 3)], [True, False]), r"completion_mask: got shape \(2,\) of bool, expected \(1,\) of bool"),
        ((3, [3], [(0, 3)], [1]), r"completion_mask: got shape \(1,\) of int64, expected \(1,\) of bool"),
    ],
)
def test_texts_and_tokens_that_do_not_fit_are_refused_in_words(arguments, message):
    """Ends, offsets and masks that are none are named."""
    with pytest.raises(ValueError, match=message):
        units_of_segments(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, [(0, 2)]), r"units: got none with the trainable token 2, expected one for each"),
        ((3, [(0, 2), (1, 3)]), r"unit 1: got \[1, 3\), expected a start behind the unit before it"),
        ((3, [(0, 3), (3, 3)]), r"unit 1: got \[3, 3\), expected a range of at least one of 3 tokens"),
        ((3, [(0, 4)]), r"unit 0: got \[0, 4\)"),
        ((3, [(-1, 3)]), r"unit 0: got \[-1, 3\)"),
        ((3, [(0, 3)], [True, False, True]), r"unit 0: got \[0, 3\) with the masked token 1"),
        ((3, [0, 3]), r"spans: got shape \(2,\)"),
        ((-1, []), r"n_tokens: got -1"),
    ],
)
def test_ranges_that_hold_other_tokens_are_refused_in_words(arguments, message):
    """Missing, doubled and masked tokens are named."""
    with pytest.raises(ValueError, match=message):
        units_of_ranges(*arguments)


def test_text_and_offsets_belong_together():
    """Offsets say nothing without the length of the text, and the other way round; and they are of all tokens."""
    with pytest.raises(ValueError, match="expected both or neither"):
        units_of_ranges(1, [(0, 1)], n_characters=3)
    with pytest.raises(ValueError, match="token_offsets: got 1 tokens, expected 2"):
        units_of_ranges(2, [(0, 2)], token_offsets=[(0, 3)], n_characters=3)


def test_a_limit_is_at_least_one():
    """No units at all are not what merging can reach."""
    with pytest.raises(ValueError, match="max_units: got 0, expected at least 1"):
        units_of_segments(3, [3], max_units=0)
