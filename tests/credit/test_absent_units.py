import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditd.credit.absent_units import RenderedUnits

FILLERS = st.sampled_from(["", " ", "<mask>", "…"])


@st.composite
def completions(draw):
    """Draw a completion as texts, each with whether a unit writes it; some units write nothing."""
    return draw(st.lists(st.tuples(st.text("ab 語🎉", max_size=3), st.booleans()), max_size=8))


def laid_out(parts):
    """The completion, and the characters of its units."""
    ranges, position = [], 0
    for text, is_unit in parts:
        if is_unit:
            ranges.append((position, position + len(text)))
        position += len(text)
    return "".join(text for text, _ in parts), ranges


def text_of(parts, coalition, filler):
    """The text of a coalition by the definition: part by part, with one filler for each run of absent units."""
    out, in_run, present = "", False, iter(coalition)
    for text, is_unit in parts:
        absent = is_unit and not next(present)
        if not text:
            continue
        if not absent:
            out += text
        elif not in_run:
            out += filler
        in_run = absent
    return out


@given(parts=completions(), filler=FILLERS, data=st.data())
def test_the_text_of_a_coalition_is_its_units_and_a_filler_for_each_run_without(parts, filler, data):
    """Units that are there and frozen text stand in order; each run of absent units is one filler."""
    completion, ranges = laid_out(parts)
    rendered = RenderedUnits(completion, ranges, filler)
    one = st.lists(st.booleans(), min_size=len(ranges), max_size=len(ranges))
    coalitions = np.array(data.draw(st.lists(one, min_size=1, max_size=5)), dtype=bool)
    rows = rendered.rows(coalitions)
    assert rows.shape == (len(coalitions), len(rendered.pieces))
    for row, coalition in zip(rows, coalitions, strict=True):
        expected = text_of(parts, coalition, filler)
        assert "".join(piece for piece, there in zip(rendered.pieces, row, strict=True) if there) == expected
        assert rendered.text(coalition) == expected


@given(parts=completions(), filler=FILLERS)
def test_the_grand_coalition_is_the_completion(parts, filler):
    """With all units there the text is the completion, to the character."""
    completion, ranges = laid_out(parts)
    assert RenderedUnits(completion, ranges, filler).text(np.ones(len(ranges), dtype=bool)) == completion


@given(texts=st.lists(st.text("ab 語🎉", min_size=1, max_size=3), min_size=1, max_size=6), filler=FILLERS)
def test_the_empty_coalition_is_one_filler(texts, filler):
    """Without frozen text v(∅) is the utility of the filler, whatever the completion and its units."""
    completion, ranges = laid_out([(text, True) for text in texts])
    assert RenderedUnits(completion, ranges, filler).text(np.zeros(len(ranges), dtype=bool)) == filler


@given(parts=completions(), filler=FILLERS)
def test_no_piece_is_empty(parts, filler):
    """What writes nothing is no piece, so that a scorer is never asked about it."""
    rendered = RenderedUnits(*laid_out(parts), filler)
    assert all(rendered.pieces)
    assert rendered.n_units == sum(is_unit for _, is_unit in parts)


@given(parts=completions(), filler=FILLERS, data=st.data())
def test_a_unit_without_characters_changes_no_text(parts, filler, data):
    """Whether it is there or not, the text is the same: its value is 0 under every utility."""
    parts = [*parts, ("", True), *data.draw(completions())]
    completion, ranges = laid_out(parts)
    coalition = np.array(data.draw(st.lists(st.booleans(), min_size=len(ranges), max_size=len(ranges))), dtype=bool)
    rendered = RenderedUnits(completion, ranges, filler)
    empty = [unit for unit, (start, stop) in enumerate(ranges) if start == stop]
    other = coalition.copy()
    other[empty] = ~other[empty]
    assert rendered.text(coalition) == rendered.text(other)


def test_a_worked_example():
    """Three units with frozen text behind the first two, under the three rules."""
    completion = "The cat sat. [tool: 7] It purred."
    ranges = [(0, 7), (7, 12), (22, 33)]
    for filler, without_last, only_first, nothing in [
        ("", "The cat sat. [tool: 7]", "The cat [tool: 7]", " [tool: 7]"),
        (" ", "The cat sat. [tool: 7] ", "The cat  [tool: 7] ", "  [tool: 7] "),
        ("<m>", "The cat sat. [tool: 7]<m>", "The cat<m> [tool: 7]<m>", "<m> [tool: 7]<m>"),
    ]:
        text = RenderedUnits(completion, ranges, filler).text
        assert text([True, True, False]) == without_last
        assert text([True, False, False]) == only_first
        assert text([False, False, False]) == nothing


def test_a_completion_without_units_is_itself():
    """All of it is frozen, or there is none of it."""
    assert RenderedUnits("only a tool", [], " ").text(np.zeros(0, dtype=bool)) == "only a tool"
    empty = RenderedUnits("", [], " ")
    assert empty.pieces == ()
    assert empty.rows(np.zeros((2, 0), dtype=bool)).shape == (2, 0)


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ([(0, 2), (1, 3)], r"unit 1: got characters \[1, 3\), expected a range of 4 behind the unit before"),
        ([(2, 4), (0, 1)], r"unit 1: got characters \[0, 1\)"),
        ([(3, 5)], r"unit 0: got characters \[3, 5\), expected a range of 4"),
        ([(-1, 2)], r"unit 0: got characters \[-1, 2\)"),
        ([(0.0, 1.0)], r"spans: got shape \(1, 2\) of float64"),
    ],
)
def test_ranges_that_are_none_of_the_text_are_refused(ranges, message):
    """Overlaps, disorder and characters outside the text are named."""
    with pytest.raises(ValueError, match=message):
        RenderedUnits("text", ranges, " ")


@pytest.mark.parametrize("coalitions", [[[True]], [True, False], [[0, 1]], np.zeros((1, 3), dtype=bool)])
def test_coalitions_are_bools_of_all_units(coalitions):
    """Another number of units, numbers, and a single row are refused."""
    with pytest.raises(ValueError, match=r"coalitions: got shape .*, expected \(R, 2\) of bool"):
        RenderedUnits("text", [(0, 2), (2, 4)], "").rows(coalitions)
