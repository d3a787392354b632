import itertools
import zlib

import numpy as np
import pytest

from creditd.credit.flags import Flag
from creditd.credit.span_credit import SpanBatch
from creditd.credit.span_items import SpanCredits, SpanItem, SpanOptions
from creditd.credit.text_segments import segment_ends
from creditd.credit.text_units import TextUnits, units_of_segments
from creditd.engines.protocol import AttendedTexts, ScoredTexts, TextFailure
from creditd.scoring import span_utilities
from creditd.scoring.model_questions import CostExceededError
from creditd.scoring.span_utilities import CompletionText, SpanUtilities

OPTIONS = SpanOptions()
PROMPT = "How was it?"
TEXTS = ["Good. Very good, in fact. But long.", "Bad. Short.", "So so."]


def score_of(prompt, text):
    """A number that every text has to itself."""
    return zlib.crc32(f"{prompt}|{text}".encode()) / 2.0**32


def completions_of(texts):
    """All variants, one after another."""
    return [
        (one.prompt, "".join(itertools.compress(one.units, row))) for one in texts for row in one.coalitions.tolist()
    ]


def scored(texts, failures_of=lambda _: None):
    """What a model says."""
    pairs = completions_of(texts)
    failures = {place: why for place, (_, text) in enumerate(pairs) if (why := failures_of(text)) is not None}
    rewards = [np.nan if place in failures else score_of(*pair) for place, pair in enumerate(pairs)]
    return ScoredTexts(np.array(rewards), failures)


def units_of(text, mask=None):
    """Units of a text whose tokens are characters."""
    offsets = [[place, place + 1] for place in range(len(text))]
    return units_of_segments(len(text), segment_ends(text, "span"), np.array(offsets).reshape(-1, 2), mask)


def questions_of(texts, *, options=OPTIONS, filler="", prompts=None, most=1 << 20, masks=None):
    """The use case over some completions."""
    found: list[TextUnits] = [units_of(text, None if masks is None else masks[row]) for row, text in enumerate(texts)]
    numbers = np.arange(len(texts)) * 0 if prompts is None else np.array(prompts)
    batch = SpanBatch([SpanItem(one) for one in found], numbers, np.arange(len(texts)), options)
    rendered = [CompletionText(text, one.characters, filler) for text, one in zip(texts, found, strict=True)]
    return SpanUtilities(batch, [PROMPT, "Another?"], rendered, filler=filler, most_characters=most)


def run(questions, failures_of=lambda _: None) -> tuple[SpanCredits, list[tuple[str, str]]]:
    """Answer every question; what was read beside."""
    read = []
    while texts := questions.ask():
        read += completions_of(texts)
        questions.tell(scored(texts, failures_of))
    return questions.answer(), read


def test_every_coalition_is_read_once_and_v_of_nothing_once_for_each_prompt():
    found, read = run(questions_of(TEXTS, prompts=[0, 0, 1]))
    assert [one.method for one in found.items] == ["table"] * 3
    assert read.count((PROMPT, "")) == read.count(("Another?", "")) == 1
    assert len(read) == 2 + (2**4 - 1) + (2**2 - 1) + 1
    for text, one, prompt in zip(TEXTS, found.items, [PROMPT, PROMPT, "Another?"], strict=True):
        assert one.grand == score_of(prompt, text)
        assert one.empty == score_of(prompt, "")
        assert one.values.sum() == pytest.approx(one.grand - one.empty, abs=1e-12)


@pytest.mark.parametrize(("filler", "texts"), [("", {"Bad.", " Short."}), (" ", {"Bad. ", "  Short."})])
def test_absent_units_leave_their_filler(filler, texts):
    _, read = run(questions_of(["Bad. Short."], filler=filler))
    assert {text for _, text in read} == texts | {filler, "Bad. Short."}


def test_frozen_text_is_in_every_coalition_but_not_in_v_of_nothing():
    text = "One. TOOL Two."
    mask = [True] * 4 + [False] * 5 + [True] * 5
    found, read = run(questions_of([text], masks=[mask]))
    assert {one for _, one in read} == {"", " TOOL", "One. TOOL", " TOOL Two.", text}
    assert found.items[0].units.has_frozen_text
    assert found.items[0].token_rewards[4:9].tolist() == [0.0] * 5


def test_a_text_that_does_not_fit_costs_the_unit_values_and_not_the_return():
    refused = TextFailure("context_exceeded", "too long")
    questions = questions_of(TEXTS[:2], options=SpanOptions(alpha=0.5))
    found, _ = run(questions, lambda text: refused if text == " Short." else None)
    assert found.items[0].values is not None
    one = found.items[1]
    assert one.values is None
    assert one.flags & Flag.FALLBACK_RETURN
    assert one.token_rewards.sum() == pytest.approx(score_of(PROMPT, "Bad. Short.") - 0.5 * score_of(PROMPT, ""))


def test_a_whole_completion_that_does_not_fit_is_an_error():
    refused = TextFailure("context_exceeded", "got 99 tokens")
    found, _ = run(questions_of(TEXTS[:2]), lambda text: refused if text == TEXTS[1] else None)
    assert [(error.row, error.code, error.detail) for error in found.errors] == [
        (1, "context_exceeded", "got 99 tokens")
    ]


def test_without_v_of_nothing_alpha_is_0():
    refused = TextFailure("invalid_request", "no token")
    found, _ = run(questions_of(TEXTS), lambda text: refused if text == "" else None)
    assert [one.ledger.alpha for one in found.items] == [0.0] * 3
    assert [one.token_rewards[-1] for one in found.items] == [score_of(PROMPT, text) for text in TEXTS]


def test_a_round_holds_a_bounded_number_of_characters(monkeypatch):
    whole, all_read = run(questions_of(TEXTS))
    monkeypatch.setattr(span_utilities, "ROUND_CHARACTERS", 60)
    questions = questions_of(TEXTS)
    priced = [completions_of(texts) for texts in questions.rounds()]
    assert len(priced) == 3
    found, read = run(questions)
    assert sorted(read) == sorted(all_read) == sorted(itertools.chain(*priced))
    assert all(np.array_equal(one.values, other.values) for one, other in zip(found.items, whole.items, strict=True))


def test_equal_completions_of_a_prompt_are_read_once():
    found, read = run(questions_of([TEXTS[0], TEXTS[1], TEXTS[0], TEXTS[0]], prompts=[0, 0, 0, 1]))
    assert len(read) == 2 + 2 * (2**4 - 1) + (2**2 - 1)
    assert found.items[0].values.tolist() == found.items[2].values.tolist()
    assert found.items[0].values.tolist() != found.items[3].values.tolist()


def test_one_text_cut_in_two_ways_is_two_games():
    text = "One, two, three."
    ways = [np.array([[0, 4], [4, 16]]), np.array([[0, 9], [9, 16]])]
    found = [TextUnits(16, way, way, np.ones(16, dtype=np.bool_), merged=False, has_frozen_text=False) for way in ways]
    batch = SpanBatch([SpanItem(one) for one in found], np.zeros(2, int), np.arange(2), OPTIONS)
    texts = [CompletionText(text, way, "") for way in ways]
    answer, read = run(SpanUtilities(batch, [PROMPT], texts, filler="", most_characters=1 << 20))
    assert {one for _, one in read} == {"", text, "One,", " two, three.", "One, two,", " three."}
    for one, way in zip(answer.items, ways, strict=True):
        first, last = (score_of(PROMPT, text[start:stop]) for start, stop in way.tolist())
        assert one.values[0] == pytest.approx((first - one.empty + one.grand - last) / 2, abs=1e-12)


def test_copies_share_what_is_refused():
    refused = TextFailure("context_exceeded", "too long")
    found, _ = run(questions_of([TEXTS[1]] * 2), lambda text: refused if text == " Short." else None)
    assert [one.values for one in found.items] == [None, None]
    found, _ = run(questions_of([TEXTS[1]] * 2), lambda text: refused if text == TEXTS[1] else None)
    assert [error.row for error in found.errors] == [0, 1]


def test_too_much_to_read_is_refused_before_any_text_is_made():
    with pytest.raises(CostExceededError, match="expected at most 100"):
        questions_of(TEXTS, most=100)


def test_too_many_pieces_are_refused(monkeypatch):
    monkeypatch.setattr(span_utilities, "MAX_CELLS", 10)
    with pytest.raises(CostExceededError, match="pieces of text"):
        questions_of(TEXTS)


def test_attention_is_asked_of_whole_completions_and_shared_among_units():
    text = "One. TOOL Two."
    mask = [True] * 4 + [False] * 5 + [True] * 5
    questions = questions_of([text, "Alone."], options=SpanOptions("attention"), masks=[mask, None])
    while texts := questions.ask():
        questions.tell(scored(texts))
    asked = questions.ask_attention()
    assert [one.units for one in asked] == [("One.", " TOOL", " Two."), ("Alone.",)]
    assert all(one.coalitions.all() and len(one.coalitions) == 1 for one in asked)
    questions.tell_attention(AttendedTexts((np.array([0.1, 0.5, 0.3]), np.array([0.2]))))
    assert not questions.ask_attention()
    one = questions.answer().items[0]
    frozen = score_of(PROMPT, " TOOL")
    assert one.values == pytest.approx((one.grand - frozen) * np.array([0.25, 0.75]))


def test_attention_that_is_not_known_costs_the_unit_values():
    questions = questions_of(["One. Two."], options=SpanOptions("attention"))
    questions.tell(scored(questions.ask()))
    failure = TextFailure("context_exceeded", "too long")
    questions.tell_attention(AttendedTexts((np.full(2, np.nan),), {0: failure}))
    one = questions.answer().items[0]
    assert one.values is None
    assert one.flags & Flag.FALLBACK_RETURN


def test_a_completion_without_units_is_read_as_a_whole():
    found, read = run(questions_of(["TOOL"], masks=[[False] * 4]))
    assert [text for _, text in read] == ["", "TOOL"]
    assert found.items[0].token_rewards.tolist() == [0.0] * 4
