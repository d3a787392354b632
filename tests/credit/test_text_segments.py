from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditd.credit.text_segments import filled_ends, segment_ends

CUTS = ("span", "sentence", "lines")
TEXTS = st.text(st.sampled_from("ab1 \n\r.,?!;\"')*。，中🎉") | st.characters(), max_size=60)


def pieces(text, ends):
    """The segments of a text."""
    assert ends.dtype == np.int64
    return [text[start:stop] for start, stop in pairwise([0, *ends.tolist()])]


def cut(text, how):
    """The segments of a text that is cut."""
    return pieces(text, segment_ends(text, how))


@pytest.mark.parametrize("how", CUTS)
@given(text=TEXTS)
def test_segments_are_the_text(how: str, text: str):
    """Segments joined are the text, and none is empty, or of white space alone unless the text is."""
    found = cut(text, how)
    assert "".join(found) == text
    assert all(segment.strip() for segment in found) or (not text.strip() and found == [text][: len(text)])


def delimited(text):
    """Span ends by the definition, character by character, where nothing is quoted."""
    ends = []
    for at, character in enumerate(text):
        before, behind = text[at - 1 : at] if at else "", text[at + 1 : at + 2]
        in_number = character in ".," and before.isdigit() and behind.isdigit()
        in_number |= character == "." and not before.strip() and behind.isdigit()
        follows = behind and behind in ".,?!;"
        if character in ".,?!;" and not in_number and not follows:
            ends.append(at + 1)
    return ends


@given(text=st.text("a1 .,?!;", max_size=30))
def test_spans_end_behind_runs_of_delimiters(text: str):
    """A span ends behind every run of delimiters; a point or comma in a number is none."""
    expected = [end for end in delimited(text) if text[:end].strip()]
    while expected and not text[expected[-1] :].strip():
        expected.pop()
    assert segment_ends(text, "span").tolist() == [*expected, len(text)][: len(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, world... Well?! Ok", ["Hello,", " world...", " Well?!", " Ok"]),
        ("It is 3.14, or 1,000.5; .5 at v1.2.", ["It is 3.14,", " or 1,000.5;", " .5 at v1.2."]),
        ("It costs 5. Then 6, then", ["It costs 5.", " Then 6,", " then"]),
        ("٣.١٤, ３．１４。", ["٣.١٤,", " ３．１４。"]),
        ('He said "stop." Then (or so?) left.', ['He said "stop."', " Then (or so?)", " left."]),
        ('She said,"go" and went', ["She said,", '"go" and went']),
        ("“Yes!” «No?», 'so'", ["“Yes!”", " «No?»,", " 'so'"]),
        ("**Note.** *So,* it's a;*b", ["**Note.**", " *So,*", " it's a;", "*b"]),
        (
            "今天很好，走吧。「好！」他说：三、四；五？",
            ["今天很好，", "走吧。", "「好！」", "他说：三、", "四；", "五？"],
        ),
        ("مرحبا، كيف حالك؟ بخير؛ شكرا۔", ["مرحبا،", " كيف حالك؟", " بخير؛", " شكرا۔"]),
        ("שלום, מה נשמע? טוב.", ["שלום,", " מה נשמע?", " טוב."]),
        ("नमस्ते। आप?", ["नमस्ते।", " आप?"]),
        ("Great!🎉 Yes👩‍👩‍👧, so", ["Great!", "🎉 Yes👩‍👩‍👧,", " so"]),
        ("one line\nand another", ["one line\nand another"]),
        ("cut off, in the mid", ["cut off,", " in the mid"]),
        ("  ...", ["  ..."]),
        ("the end.  \n", ["the end.  \n"]),
        ("", []),
        (" \n", [" \n"]),
    ],
)
def test_spans(text: str, expected: list[str]):
    """Delimiters of several scripts, numbers, what closes behind a delimiter, and white space at the ends."""
    assert cut(text, "span") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One, two. Three?! Four... five", ["One, two.", " Three?!", " Four...", " five"]),
        ("See example.com or 3.14. Yes", ["See example.com or 3.14.", " Yes"]),
        ("Ask Dr. No. e.g. now", ["Ask Dr.", " No.", " e.g.", " now"]),
        ('"Stop!" he said. (Really.) So', ['"Stop!"', " he said.", " (Really.)", " So"]),
        ("1. First item. More\n2. Second\n", ["1. First item.", " More\n", "2. Second\n"]),
        ("In 2024. Then", ["In 2024.", " Then"]),
        ("A title\n\n  \nText. \n\nMore.\nEnd", ["A title\n\n  \n", "Text. \n\n", "More.\n", "End"]),
        ("走吧。Go!中文. 他说：「好！」他", ["走吧。", "Go!", "中文.", " 他说：「好！」", "他"]),
        ("كيف حالك؟ بخير.", ["كيف حالك؟", " بخير."]),
        ("\n\nFirst.", ["\n\nFirst."]),
        ("no end", ["no end"]),
    ],
)
def test_sentences(text: str, expected: list[str]):
    """Sentences end where white space or a wide character follows, and at line breaks."""
    assert cut(text, "sentence") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a. b\nc\r\nd\re\u2028f", ["a. b\n", "c\r\n", "d\r", "e\u2028", "f"]),
        ("a\n\n\n  \n\t b\n", ["a\n\n\n  \n", "\t b\n"]),
        ("\n a\n  ", ["\n a\n  "]),
        ("def f():\n    return 1\n\nf()", ["def f():\n", "    return 1\n\n", "f()"]),
    ],
)
def test_lines(text: str, expected: list[str]):
    """A line ends behind its break and the blank lines that follow; the space before a line is its own."""
    assert cut(text, "lines") == expected


@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize("text", ["." * 200_000 + "x", "." + '"' * 200_000 + "x", ".\n" + " " * 200_000 + "x",
                                  "\n" * 200_000 + "x", (".\"'" * 60_000) + "x", " " * 200_000 + "x"])  # fmt: skip
def test_long_runs_take_no_more_time_than_other_text(how: str, text: str):
    """No run of one character is gone through once for each of its characters."""
    assert sum(map(len, cut(text, how))) == len(text)


@given(text=st.text("a \n", max_size=12), places=st.lists(st.integers(0, 12)))
def test_places_are_kept_that_have_text_on_both_sides(text: str, places: list[int]):
    """A place to cut is kept if there is more than white space since the place before it, and behind it."""
    within = sorted(place for place in places if place <= len(text))
    ends = filled_ends(text, within).tolist()
    inner = [
        place
        for before, place in pairwise([0, *dict.fromkeys(within)])
        if text[before:place].strip() and text[place:].strip()
    ]
    assert ends == [*inner, len(text)][: len(text)]


def test_another_cut_is_refused():
    """Tokens are no way to cut a text, nor is a misspelt name."""
    with pytest.raises(ValueError, match=r"cut: got 'token', expected one of span, sentence, lines"):
        segment_ends("a", "token")
