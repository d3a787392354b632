import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditd.engines.unit_tokens import places_of_characters, units_of_tokens

letters = st.text(st.sampled_from(list("ab .\n\t你🙂\u0301")), max_size=12)


def units(offsets, lengths, places=None):
    """Units of tokens of a text that is the completion alone."""
    known = np.arange(sum(lengths)) if places is None else np.array(places)
    return units_of_tokens(np.array(offsets, dtype=np.int64).reshape(-1, 2), known, lengths).tolist()


@given(before=letters, completion=letters, after=letters)
def test_a_completion_between_two_texts_is_found_character_by_character(before, completion, after):
    """Whatever the texts are, also where they repeat each other: what stands behind the first is the completion."""
    places = places_of_characters(f"{before}{completion}{after}", before, completion, after)
    n_before, n_after = len(before), len(after)
    assert places.tolist() == [-1] * n_before + list(range(len(completion))) + [-1] * n_after


@given(before=letters, completion=letters, after=letters)
def test_a_completion_that_is_stripped_is_found_by_its_letters(before, completion, after):
    """What a template leaves of a completion stands for its own characters, in their order."""
    text = f"{before}{completion.strip()}{after}"
    places = places_of_characters(text, before, completion, after)
    found = [(text[place], completion[at]) for place, at in enumerate(places.tolist()) if at >= 0]
    assert all(read == own for read, own in found)
    at = [own for own in places.tolist() if own >= 0]
    assert at == sorted(set(at))
    assert {own for own, letter in enumerate(completion) if not letter.isspace()} <= set(at)
    stripped = len(completion) - len(completion.lstrip())
    inside = places[len(before) : len(before) + len(completion.strip())].tolist()
    assert inside == list(range(stripped, stripped + len(completion.strip()))) or not completion.strip()


def test_white_space_that_is_written_otherwise_is_matched_from_its_right_end():
    """A template that breaks lines otherwise still shows every letter, and what both have of the white space."""
    places = places_of_characters(
        "<think>\nso it is\n</think>\n\nyes.</s>", "<think>\n\n</think>\n\n", "<think>so  it is\n</think>yes.", "</s>"
    )
    assert places[: len("<think>")].tolist() == list(range(7))
    assert places[len("<think>")] == -1
    so = len("<think>\nso")
    assert places[so : so + 4].tolist() == [10, 11, 12, 13]
    assert places[-len("</s>") :].tolist() == [-1] * 4


def test_a_completion_that_is_shown_otherwise_is_not_found():
    """Other letters, or other text behind it, are no completion; one without letters is nowhere."""
    assert places_of_characters("q A ", "q ", "a", " ") is None
    assert places_of_characters("q a!", "q ", "a", " ?") is None
    assert places_of_characters("", "q ", "a", "") is None
    assert places_of_characters("q", "q ", "  ", "").tolist() == [-1]


def test_a_token_is_of_the_unit_with_most_of_its_characters():
    """Of two that have as many the first has it; the prompt and the template count as one more."""
    assert units([[0, 2], [2, 5], [5, 6]], (3, 3)) == [0, 1, 1]
    assert units([[0, 4]], (2, 2)) == [0]
    assert units([[0, 5]], (1, 2, 2)) == [1]
    assert units([[0, 3], [3, 6]], (1, 3), [-1, -1, 0, 1, 2, 3]) == [-1, 1]


def test_a_token_without_characters_is_what_stands_before_its_end():
    """Spaces that a tokenizer takes off its offsets, and special tokens, which are nothing."""
    assert units([[0, 0], [0, 1], [2, 2], [3, 3], [3, 4], [0, 0]], (2, 1, 1)) == [-1, 0, 0, 1, 2, -1]


def test_units_without_characters_have_no_token():
    """An empty unit and an absent one are passed over."""
    assert units([[0, 1], [1, 2]], (0, 1, 0, 1)) == [1, 3]
    assert units([], ()) == []
    assert units([[0, 1]], (), [-1]) == [-1]


@pytest.mark.parametrize("lengths", [(3, 4, 5), (12,), (1,) * 12])
def test_every_token_of_a_completion_is_in_one_unit(lengths):
    """Tokens that follow each other are of units that do not go back."""
    offsets = [[at, at + 2] for at in range(0, 12, 2)]
    found = units(offsets, lengths)
    assert found == sorted(found)
    assert min(found) >= 0
