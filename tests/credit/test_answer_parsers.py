import re
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditd.credit import ANSWER_PARSERS, ParserOptions, find_reasoning
from creditd.credit.answer_parsers import reasoning_characters

TAGS, HASHES, BOXED, LAST_LINE = (ParserOptions(name) for name in ("tags", "hashes", "boxed", "last_line"))
LONG = 400_000
SECONDS = 20.0
"""A parser that looks at every part of a long text again would take hours."""

texts = st.lists(
    st.sampled_from(
        [
            *("<think>", "</think>", "<answer>", "</answer>", "####", "\\boxed{", "\\boxed {", "{", "}", "\\}", "\\\\"),
            *("7", "12", " ", "\n", "so ", "é", "  ", "a=b"),
        ]
    ),
    max_size=14,
).map("".join)
parsers = st.sampled_from([TAGS, HASHES, BOXED, LAST_LINE])


def parts(text, parser):
    """The reasoning and the answer as text."""
    found = reasoning_characters(text, parser)
    return None if found is None else tuple(text[start:stop] for start, stop in found)


def by_character(text):
    """Offsets of a tokenizer of single characters."""
    return [(i, i + 1) for i in range(len(text))]


@st.composite
def tokenized(draw):
    """A text cut into tokens anywhere."""
    text = draw(texts)
    cuts = draw(st.lists(st.integers(0, len(text)), max_size=len(text) + 2))
    ends = sorted({0, len(text), *cuts})
    return text, list(pairwise(ends))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a</think> so <answer> 7 </answer>", ("a", "7")),
        ("<answer>1</answer><think>b</think><answer>2</answer>", ("b", "2")),
        ("<think>a</think><think>b</think><answer>7</answer>", ("b", "7")),
        ("<answer>1</answer> or <answer>", ("", "1")),
        ("work <answer>7</answer>", ("work ", "7")),
        ("a</think> so <answer>7</answer>", ("a", "7")),
        ("<think>a <answer>7</answer>", ("<think>a ", "7")),
        ("<think>a</think><answer>1 <answer>2</answer>", ("a", "2")),
        ("<answer>7</answer><think>late</think>", ("", "7")),
        ("<think>a<answer>7</answer></think>", ("<think>a", "7")),
        ("<think>a</think><answer> \n </answer>", None),
        ("<think>a</think> 7", None),
        ("<Answer>7</Answer>", None),
        ("", None),
    ],
)
def test_tags(text, expected):
    """The last complete pair of answer tags, and the last one of reasoning tags before it, or all before it."""
    assert parts(text, TAGS) == expected


def test_tags_have_the_names_that_are_given():
    """Other names, with whatever a name may have in it, are no pattern."""
    parser = ParserOptions("tags", reasoning_tag="a.b", answer_tag="final-answer")
    assert parts("<a.b>x</a.b><axb>y</axb><final-answer>7</final-answer>", parser) == ("x", "7")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2+2 is 4.\n#### 4", ("2+2 is 4.\n", "4")),
        ("#### 3 no\nwait\n####4\nbye", ("#### 3 no\nwait\n", "4")),
        ("a #### 1,234 apples  \r\n", ("a ", "1,234 apples")),
        ("#### 7", ("", "7")),
        ("a ####  \n5", None),
        ("a ### 5", None),
        ("a ##### 5", ("a #", "5")),
        ("a\n#### 5\n####", ("a\n", "5")),
        ("a\n#### 5\n#### \nbye", ("a\n", "5")),
        ("a #### 1,000 ####", ("a ", "1,000")),
        ("a #### 5 ###### ####\n", ("a ", "5")),
        ("#### 4\n#### 5 ####\n####\n", ("#### 4\n", "5")),
        ("#### \n 7 #####", None),
        ("########", None),
    ],
)
def test_hashes(text, expected):
    """The rest of the line behind the last mark that has something behind it."""
    assert parts(text, HASHES) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{7}.", ("so ", "7")),
        (r"$\boxed {\frac{1}{2}}$", ("$", r"\frac{1}{2}")),
        (r"\boxed{1} or \boxed{2}", (r"\boxed{1} or ", "2")),
        (r"\boxed{1} or \boxed{2", (r"", "1")),
        (r"\boxed{\boxed{3}}", (r"\boxed{", "3")),
        (r"\boxed{\{1, 2\}}", ("", r"\{1, 2\}")),
        (r"{ \boxed{5}", ("{ ", "5")),
        (r"} \boxed{5}", ("} ", "5")),
        (r"\boxed{ {5}", None),
        (r"\boxed{ }", None),
        (r"\boxed 5", None),
        (r"boxed{5}", None),
        (r"\\boxed{5}", None),
    ],
)
def test_boxed(text, expected):
    """The last box whose braces are balanced; escaped braces are letters; an escaped backslash is no command."""
    assert parts(text, BOXED) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\nb\n7", ("a\nb\n", "7")),
        ("a\n  7 apples \n\n \n", ("a\n", "7 apples")),
        ("7", ("", "7")),
        ("a\r\n7\r\n", ("a\r\n", "7")),
        (" \n ", None),
        ("", None),
    ],
)
def test_last_line(text, expected):
    """The last line that is not blank."""
    assert parts(text, LAST_LINE) == expected


@given(text=texts, parser=parsers)
def test_ranges_are_in_order(text, parser):
    """The reasoning stops where the answer starts, or before; the answer is not empty, nor blank at an end."""
    found = reasoning_characters(text, parser)
    if found is None:
        return
    (start, stop), (answer, end) = found
    assert 0 <= start <= stop <= answer < end <= len(text)
    assert text[answer:end] == text[answer:end].strip() != ""


@given(text=texts, parser=parsers)
def test_tokens_of_single_characters_are_the_characters(text, parser):
    """Where each token is one character, the ranges of tokens are those of characters."""
    expected = reasoning_characters(text, parser)
    assert find_reasoning(text, by_character(text), parser) == (expected or (None, None))


@given(case=tokenized(), parser=parsers)
def test_a_token_belongs_where_most_of_it_is(case, parser):
    """Characters that are not white space decide, with a tie for the answer; a blank token belongs where it stands."""
    text, offsets = case
    characters = reasoning_characters(text, parser)
    reasoning, answer = find_reasoning(text, offsets, parser)
    if characters is None:
        assert (reasoning, answer) == (None, None)
        return
    (start, stop), (begin, end) = characters
    bounds = [(0, start), (start, stop), (stop, begin), (begin, end), (end, len(text))]
    answered, reasoned = [], []
    for t, (a, b) in enumerate(offsets):
        filled = [i for i in range(a, b) if not text[i].isspace()] or [a, b - 1]
        counted = range(filled[0], filled[-1] + 1)
        shares = [sum(low <= i < high for i in counted) for low, high in bounds]
        if shares[3] == max(shares):
            answered.append(t)
        elif shares.index(max(shares)) == 1:
            reasoned.append(t)
    if not answered:
        assert (reasoning, answer) == (None, None)
        return
    assert list(range(*answer)) == answered
    assert list(range(*reasoning)) == reasoned
    assert reasoning[1] <= answer[0]


def test_a_leading_space_belongs_to_its_token():
    """Tokens of most vocabularies begin with the space before their word: the answer 7 is the token " 7"."""
    text = "so it is\n#### 7\n"
    offsets = [(0, 2), (2, 5), (5, 8), (8, 9), (9, 13), (13, 15), (15, 16)]
    assert find_reasoning(text, offsets, HASHES) == ((0, 4), (5, 6))
    assert find_reasoning(text, [(0, 9), (9, 14), (14, 16)], HASHES) == ((0, 1), (2, 3))
    wide = "so ####   7   \n"
    assert find_reasoning(wide, [(0, 3), (3, 7), (7, 15)], HASHES) == ((0, 1), (2, 3))


def test_an_answer_without_a_token_is_none():
    """A token that has more of the mark than of the answer is not the answer's: then there is none to watch."""
    assert find_reasoning("x #### 7", [(0, 2), (2, 8)], HASHES) == (None, None)
    assert find_reasoning("x #### 7", [], HASHES) == (None, None)


def test_tokens_that_share_a_character():
    """Bytes of one character carry its offsets or none: all of them are where the character is."""
    text = "a\n#### é"
    shared = [(0, 2), (2, 6), (6, 7), (7, 8), (7, 8)]
    assert find_reasoning(text, shared, HASHES) == ((0, 1), (3, 5))
    without_width = [(0, 2), (2, 6), (6, 7), (7, 7), (7, 8)]
    assert find_reasoning(text, without_width, HASHES) == ((0, 1), (3, 5))
    in_white_space = [(0, 2), (2, 7), (7, 7), (7, 8)]
    assert find_reasoning(text, in_white_space, HASHES) == ((0, 1), (2, 4))


@pytest.mark.parametrize(
    ("offsets", "said"),
    [
        ([(0, 2), (1, 9)], r"offsets of token 1: got \[1, 9\)"),
        ([(-1, 2)], r"offsets of token 0: got \[-1, 2\)"),
        ([(2, 3), (0, 1)], "offsets of token 1"),
        ([(3, 1)], "offsets of token 0"),
        ([0, 1], "token_offsets: got shape"),
        ([(0.0, 1.0)], "token_offsets: got shape"),
    ],
)
def test_offsets_that_fit_no_text_are_refused(offsets, said):
    """Offsets outside the text, backwards, or of another form say what they got, whether there is an answer or not."""
    for text in ("#### 7xx", "nothing!"):
        with pytest.raises(ValueError, match=said):
            find_reasoning(text, offsets, HASHES)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"type": "json"}, "parser: got 'json', expected one of tags"),
        ({"type": "tags", "answer_tag": "a b"}, "answer_tag: got 'a b'"),
        ({"type": "tags", "reasoning_tag": ""}, "reasoning_tag: got ''"),
        ({"type": "tags", "reasoning_tag": "answer"}, "for both tags"),
    ],
)
def test_parsers_that_do_not_exist_are_refused(wrong, said):
    """A name that is none says what it got."""
    with pytest.raises(ValueError, match=re.escape(said)):
        ParserOptions(**wrong)


@pytest.mark.parametrize("parser", ANSWER_PARSERS)
@pytest.mark.parametrize(
    "piece", ["\\boxed{", "<think>", "<answer>", "####", "{", "\n", " ", "<answer> ", "\\boxed   "]
)
def test_long_texts_take_linear_time(parser, piece):
    """However often something that begins an answer is repeated, the text is read a fixed number of times."""
    text = piece * (LONG // len(piece))
    offsets = np.stack([np.arange(len(text)), np.arange(1, len(text) + 1)], axis=1)
    start = time.process_time()
    find_reasoning(text, offsets, ParserOptions(parser))
    assert time.process_time() - start < SECONDS
