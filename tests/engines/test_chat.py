import numpy as np
import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = pytest.mark.models

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors, trainers  # noqa: E402
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast  # noqa: E402

from creditd.engines.chat import ChatText  # noqa: E402
from creditd.engines.errors import ModelUnsuitableError  # noqa: E402
from creditd.engines.protocol import VariantTexts  # noqa: E402
from creditd.engines.unit_tokens import units_of_tokens  # noqa: E402
from engines.saved import TEMPLATE, TEXT, tokenizer  # noqa: E402

MESSAGES = [{"role": "user", "content": "why?"}]
THINKS = (
    "{% for m in messages %}<{{ m.role }}>{% if '</think>' in m.content %}<think>\n"
    "{{ m.content.split('</think>')[0].split('<think>')[-1].strip('\n') }}\n</think>\n\n"
    "{{ m.content.split('</think>')[-1].lstrip('\n') }}{% else %}<think>\n\n</think>\n\n{{ m.content }}{% endif %}"
    "</{{ m.role }}>{% endfor %}"
)


def word_piece():
    """WordPiece with special tokens around every text, as BERT has it."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106 - a token, and no secret
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(TEXT, trainers.WordPieceTrainer(special_tokens=special, show_progress=False))
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", mask_token="[MASK]")  # noqa: S106 - as above


def with_mask(**options):
    """A byte-level tokenizer with one more token."""
    made = tokenizer()
    made.add_tokens([AddedToken("<mask>", **options)], special_tokens=True)
    return made


def characters(text, prompt, completion):
    """For each token of a text the characters of the completion that it was read from."""
    read = text.read(prompt, completion)
    assert read.tokens.tolist() == text.tokens(prompt, completion).tolist()
    return [
        "".join(completion[at] for at in read.places[start:stop] if at >= 0) for start, stop in read.offsets.tolist()
    ]


def test_every_character_of_a_completion_is_found_once():
    """Of a prompt that is a string, and of messages; the prompt, the template and special tokens are nothing of it."""
    text = ChatText(tokenizer(), TEMPLATE)
    for prompt in ("why?", MESSAGES):
        assert "".join(characters(text, prompt, " the fox\n")) == " the fox\n"
    assert characters(ChatText(word_piece(), None), "the ", "fox jumps") == ["", "", "fox", "jumps", ""]
    assert set(characters(text, MESSAGES, "")) == {""}


def test_a_completion_that_repeats_what_stands_around_it_is_not_mistaken():
    """It is found by its place, and not by its words."""
    text = ChatText(tokenizer(), TEMPLATE)
    completion = "</assistant>why?<assistant>"
    read = text.read(MESSAGES, completion)
    start = int(np.flatnonzero(read.places == 0)[0])
    assert start == len("<user>why?</user><assistant>")
    assert (np.diff(read.places[start : start + len(completion)]) == 1).all()


@settings(max_examples=50)
@given(completion=st.text(st.sampled_from(list("ab \n🙂é")), max_size=12))
def test_a_completion_that_the_template_trims_is_found(completion):
    """What the template leaves of it has its own characters."""
    text = ChatText(tokenizer(), TEMPLATE.replace("message['content']", "message['content'] | trim"))
    found = [at for at in text.read(MESSAGES, completion).places.tolist() if at >= 0]
    assert "".join(completion[at] for at in found) == completion.strip()


@pytest.mark.parametrize("completion", ["<think>so it is</think>yes", "<think>\nso\n</think>\n\n yes ", "yes"])
def test_a_completion_whose_thoughts_the_template_lays_out_is_found(completion):
    """Line breaks may be written otherwise: every letter is found, in its order."""
    found = [at for at in ChatText(tokenizer(), THINKS).read(MESSAGES, completion).places.tolist() if at >= 0]
    assert found == sorted(found)
    assert "".join(completion[at] for at in found).split() == completion.split()


def test_a_template_that_writes_a_message_twice_is_refused():
    """Which of the two is the completion cannot be told."""
    text = ChatText(tokenizer(), TEMPLATE.replace("{{ message['content'] }}", "{{ message['content'] * 2 }}"))
    with pytest.raises(ModelUnsuitableError, match="does not show the completion as it is"):
        text.read(MESSAGES, "a")
    assert "".join(characters(text, "why?", "a")) == "a"


def test_a_tokenizer_that_does_not_tell_characters_is_refused():
    """Tokenizers that are written in Python give tokens alone."""
    text = ChatText(ByT5Tokenizer(), None)
    assert not text.tells_characters
    with pytest.raises(ModelUnsuitableError, match="does not tell the characters of its tokens"):
        text.read("why?", "a")


def test_spaces_that_are_taken_off_a_token_are_still_its_own():
    """Some tokenizers leave spaces out of the characters that they tell, and a space alone then has none."""
    made = tokenizer()
    made.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    read = ChatText(made, None).read("", "a   b the")
    assert [stop - start for start, stop in read.offsets.tolist()] == [1, 0, 0, 0, 1, 3]
    assert units_of_tokens(read.offsets, read.places, (1, 3, 1, 4)).tolist() == [0, 1, 1, 1, 2, 3]


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (word_piece(), "[MASK]"),
        (word_piece(), "[UNK]"),
        (tokenizer(), "<eos>"),
        (with_mask(), "<mask>"),
        (with_mask(lstrip=True), "<mask>"),
        (ByT5Tokenizer(), "<extra_id_7>"),
    ],
    ids=["mask", "unknown", "end", "added", "strips", "python"],
)
def test_a_token_that_was_added_has_the_text_that_it_is_called(made, name):
    """It is read as itself between words, between letters, and beside itself."""
    text, token = ChatText(made, None), made.convert_tokens_to_ids(name)
    assert text.token_text(token) == name
    for around in ("the {} fox", "th{}e", "{}{}"):
        n_masks = around.count("{}")
        assert text.tokens("", around.replace("{}", name)).tolist().count(token) == n_masks


def test_a_token_that_is_read_as_itself_between_spaces_alone_has_no_text():
    """A mask stands where units meet, which may be within a word."""
    made = with_mask(single_word=True)
    with pytest.raises(ModelUnsuitableError, match="has no text that is read as it alone wherever it stands"):
        ChatText(made, None).token_text(made.convert_tokens_to_ids("<mask>"))


@pytest.mark.parametrize("made", [tokenizer(), word_piece(), ByT5Tokenizer()], ids=["bytes", "words", "python"])
def test_a_token_of_the_vocabulary_has_no_text(made):
    """What it writes may be read together with its neighbours; what is not in the tokenizer is named."""
    text, ordinary = ChatText(made, None), made("the", add_special_tokens=False)["input_ids"][0]
    with pytest.raises(ModelUnsuitableError, match=f"token {ordinary} has no text"):
        text.token_text(ordinary)
    for token in (-1, len(made)):
        with pytest.raises(ModelUnsuitableError, match=f"got token {token}; expected one of the tokenizer's 0 to"):
            text.token_text(token)


@pytest.mark.parametrize("made", [tokenizer, word_piece])
@pytest.mark.parametrize("rows", [[[True, True, True]], [[True, False, True], [True, True, True], [False, True, True]]])
def test_special_tokens_that_are_written_out_are_not_added_again(made, rows):
    """A text is then exactly its own tokens, whether it is one variant or spliced of the tokens of its units."""
    read = made()
    text, units = ChatText(read, None), (" the fox", " jumps", " over it")
    texts = VariantTexts("the fox ", units, np.array(rows), adds_special_tokens=False)
    found = text.variants(texts)
    for row, tokens in zip(rows, found.sequences, strict=True):
        whole = "the fox " + "".join(unit for unit, is_there in zip(units, row, strict=True) if is_there)
        assert tokens.tolist() == read(whole, add_special_tokens=False)["input_ids"]


def test_special_tokens_of_messages_are_the_template_s():
    """Whatever is said of a prompt that is a string."""
    text = ChatText(tokenizer(), TEMPLATE)
    rows = np.ones((1, 1), dtype=np.bool_)
    with_them, without = (
        text.variants(VariantTexts(MESSAGES, ("so",), rows, adds_special_tokens=adds)).sequences[0]
        for adds in (True, False)
    )
    assert with_them.tolist() == without.tolist()
