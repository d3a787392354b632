import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = pytest.mark.models

from creditd.credit.segments import token_spans  # noqa: E402
from creditd.engines.completion_text import completion_text  # noqa: E402
from engines.saved import tokenizer  # noqa: E402

TEXTS = ["the quick fox", "é and ß", "a 😀, two 👩‍👩‍👧", "  blanks \n\n lines ", "1 2 3", "漢字仮名", ""]


@pytest.mark.parametrize("text", TEXTS)
def test_the_text_is_whole_and_every_token_has_its_characters(text):
    """What the tokenizer decodes at once; tokens of one character have it together, others follow one another."""
    made = tokenizer()
    ids = made(text)["input_ids"]
    found, offsets = completion_text(made, ids)
    assert found == text == made.decode(ids)
    assert len(offsets) == len(ids)
    end = 0
    for number, (start, stop) in enumerate(offsets):
        assert (start, stop) == offsets[number - 1] or start == end
        end = stop
    assert end == len(text)
    assert token_spans([(0, len(text))], offsets).tolist() == [[0, len(ids)]]


def test_special_tokens_have_no_characters():
    """They stand where they are, and split nothing."""
    made = tokenizer()
    the, fox = made("the")["input_ids"], made(" fox")["input_ids"]
    ids = [made.bos_token_id, *the, made.pad_token_id, *fox, made.eos_token_id]
    text, offsets = completion_text(made, ids)
    assert text == "the fox"
    assert offsets[0] == (0, 0)
    assert offsets[1 + len(the)] == (3, 3)
    assert offsets[-1] == (7, 7)


def test_bytes_that_are_no_character_are_text_as_they_are():
    """At the end, before other text, and before a special token; the tokens have what stands for them."""
    made = tokenizer()
    half = made("😀")["input_ids"][:2]
    the = made("the")["input_ids"]
    for ids in (half, [*half, *the], [*the, *half, made.eos_token_id, *the]):
        text, offsets = completion_text(made, ids)
        assert text == made.decode(ids, skip_special_tokens=True)
        assert "\ufffd" in text
        assert max(stop for _, stop in offsets) == len(text)


def test_bytes_that_never_end_do_not_take_forever():
    """A thousand of them are decoded a few at a time."""
    made = tokenizer()
    (byte,) = made.convert_tokens_to_ids(["ð"])
    text, offsets = completion_text(made, [byte] * 1000)
    assert set(text) == {"\ufffd"}
    assert len(offsets) == 1000
