"""Which tokens of a completion write its candidates."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditd.adapters.completions import Found, Reading, find_candidates, token_offsets
from creditd.credit.candidate_parsers import Numbered

LIST = Reading(Numbered())


def spread(found):
    """Texts and ranges."""
    return found.texts, found.spans


WORDS = ["<eos>", "1.", "2.", "tea", "coffee", "milk\n"]


def of_words(ids):
    """Words with spaces between them; 0 is special and leaves nothing."""
    return " ".join(WORDS[number] for number in ids if number)


def of_bytes(ids):
    """Bytes as UTF-8, as byte-level tokenizers decode."""
    return bytes(ids).decode("utf-8", errors="replace")


@given(st.text(max_size=40))
def test_bytes_of_any_text_have_offsets_without_gaps(text):
    """Every character belongs to the token that completes it; tokens that only begin one have empty ranges."""
    ids = list(text.encode())
    decoded, offsets = token_offsets(ids, of_bytes)
    assert decoded == text
    assert [start for start, _ in offsets] == [0, *[stop for _, stop in offsets[:-1]]][: len(offsets)]
    assert "".join(text[start:stop] for start, stop in offsets) == text


@given(st.text("aé语🎉 ", max_size=20), st.lists(st.integers(1, 5), min_size=1, max_size=8))
def test_a_token_that_completes_one_character_and_begins_the_next_has_the_first(text, widths):
    """Tokens of any number of bytes have the characters that end in them, as they would be read one by one."""
    encoded, parts, at = text.encode(), [], 0
    for width in itertools.cycle(widths):
        if at >= len(encoded):
            break
        parts.append(encoded[at : at + width])
        at += width
    decoded, offsets = token_offsets(range(len(parts)), lambda ids: of_bytes(b"".join(parts[place] for place in ids)))
    ends = [len(b"".join(parts[: place + 1]).decode(errors="ignore")) for place in range(len(parts))]
    assert decoded == text
    assert offsets == list(zip([0, *ends], ends, strict=False))


def test_words_carry_the_space_before_them():
    """A decoder that joins words gives each token its own word and the space that came with it."""
    text, offsets = token_offsets([1, 3, 2, 4, 0], of_words)
    assert [text[start:stop] for start, stop in offsets] == ["1.", " tea", " 2.", " coffee", ""]


def with_byte_fallback(ids):
    """As SentencePiece decodes: a run of bytes that is no UTF-8 becomes one replacement character for each byte."""
    out, run = "", bytearray()
    for number in [*ids, None]:
        if number is not None and number < 256:
            run.append(number)
            continue
        try:
            out += run.decode()
        except UnicodeDecodeError:
            out += "\N{REPLACEMENT CHARACTER}" * len(run)
        run.clear()
        out += "" if number is None else {256: "1. ", 257: "\n2. ", 258: "coffee", 259: "\n3. ", 260: "milk"}[number]
    return out


@pytest.mark.parametrize("tail", [[], [0x92]], ids=["sound", "with an invalid byte"])
def test_bytes_that_change_in_company_do_not_shift_what_follows(tail):
    """One bad byte turns all characters of its run into replacements; later candidates keep their own tokens."""
    ids = [256, *"咖啡咖啡".encode(), *tail, 257, 258, 259, 260]
    texts, spans = spread(find_candidates(ids, with_byte_fallback, LIST, cut_off=False))
    assert texts[1:] == ("coffee", "milk")
    assert [ids[slice(*span)] for span in spans[1:]] == [[258], [260]]
    assert spans[0] == (1, 1 + len("咖啡咖啡".encode()) + len(tail))


@given(st.lists(st.integers(0, 260), max_size=30))
def test_any_tokens_have_offsets(ids):
    """Whatever a policy samples has offsets that cover its text without a gap: no sample ends a run."""
    text, offsets = token_offsets(ids, with_byte_fallback)
    assert text == with_byte_fallback(ids)
    assert "".join(text[start:stop] for start, stop in offsets) == (text if ids else "")
    assert all(start <= stop for start, stop in offsets)


def test_candidates_have_the_tokens_that_write_them():
    """Texts and token ranges agree; a candidate that the length limit cut off is none."""
    ids = list("1. thé\n2. coffee".encode())
    found = find_candidates(ids, of_bytes, LIST, cut_off=False)
    assert found == Found(("thé", "coffee"), ((3, 7), (11, 17)))
    assert find_candidates(ids, of_bytes, LIST, cut_off=True) == Found(("thé",), ((3, 7),))
    assert find_candidates(list(b"nothing"), of_bytes, LIST, cut_off=False) == Found()
    assert find_candidates([], of_bytes, LIST, cut_off=False) == Found()


STRETCH = st.tuples(st.booleans(), st.sampled_from(["1. tea\n", "2. milk\n", "3. thé", "so:\n", "\n", "4"]))


@given(st.lists(STRETCH, max_size=8), st.booleans(), st.sampled_from(["last", "all"]))
def test_only_what_the_policy_wrote_is_read(stretches, cut_off, turns):
    """Stretches of the policy's tokens are read as if each were a completion; what stands between is never seen."""
    ids = [byte for _, text in stretches for byte in text.encode()]
    written = [own for own, text in stretches for _ in text.encode()]
    reading = Reading(Numbered(), turns)
    found = find_candidates(ids, of_bytes, reading, cut_off=cut_off, written=written)
    alone = []
    start = 0
    for own, run in itertools.groupby(stretches, key=lambda stretch: stretch[0]):
        tokens = [byte for _, text in run for byte in text.encode()]
        if own:
            open_end = cut_off and start + len(tokens) == len(ids)
            texts, spans = spread(find_candidates(tokens, of_bytes, reading, cut_off=open_end))
            alone.append((texts, tuple((start + begin, start + end) for begin, end in spans)))
        start += len(tokens)
    some = [one for one in alone if one[0]]
    kept = some[-1:] if turns == "last" else some
    assert found.texts == tuple(text for texts, _ in kept for text in texts)
    assert found.spans == tuple(span for _, spans in kept for span in spans)
    assert all(all(written[slice(*span)]) for span in found.spans)


@pytest.mark.parametrize(
    ("prompt", "thinking", "expected"),
    [
        ("think: <think>\n", "detect", ()),
        ("think: <think>\n", "ignored", ("tea",)),
        ("write <think> before you answer.", "detect", ("tea",)),
        ("<think>\n\n</think>\n\n", "detect", ("tea",)),
        ("", "detect", ("tea",)),
        ("", "opened", ()),
    ],
)
def test_a_completion_may_begin_inside_the_thinking(prompt, thinking, expected):
    """The end of the prompt shows it, or the caller says so; a closed thought is no longer open."""
    reading = Reading(Numbered(), thinking=thinking)
    ask = {"cut_off": False, "prompt": list(prompt.encode())}
    assert find_candidates(list(b"1. tea"), of_bytes, reading, **ask).texts == expected
    closed = find_candidates(list(b"1. no\n</think>1. tea"), of_bytes, reading, **ask).texts
    assert closed == (("tea",) if thinking != "ignored" else ("no\n</think>1. tea",))


@pytest.mark.parametrize("wrong", [{"turns": "first"}, {"thinking": "open"}, {"thinking": None}])
def test_ways_of_reading_are_named(wrong):
    """A misspelt option is refused in words."""
    with pytest.raises(ValueError, match="expected one of"):
        Reading(Numbered(), **wrong)
