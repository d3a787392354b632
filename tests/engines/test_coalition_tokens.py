import itertools

import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="the lane `models` installs tokenizers")
pytestmark = pytest.mark.models

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers  # noqa: E402

from creditd.engines.coalition_tokens import coalition_tokens  # noqa: E402

UNKNOWN = "[UNK]"
CORPUS = [
    "the quick brown fox jumps over the lazy dog and the dog does not mind",
    "x = 12345; print(x + 1)  # two  spaces and\nnew\n\nlines",
    "naïve café 你好，世界 مرحبا بالعالم 🙂🙃 👩‍👩‍👧",
]


def byte_level():
    """Byte-level BPE, as GPT-2 and Llama 3 have it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS * 4, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    )
    return made


def sentence_piece():
    """Unigram over text whose spaces are marks, the first one added."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.train_from_iterator(
        CORPUS * 4,
        trainers.UnigramTrainer(vocab_size=150, unk_token=UNKNOWN, special_tokens=[UNKNOWN], show_progress=False),
    )
    return made


def word_piece():
    """WordPiece over words and punctuation."""
    made = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.train_from_iterator(
        CORPUS * 4, trainers.WordPieceTrainer(vocab_size=200, special_tokens=[UNKNOWN], show_progress=False)
    )
    return made


def three_digits():
    """Byte-level BPE that takes numbers three digits at a time, as Llama 3 does."""
    made = Tokenizer(models.BPE())
    pattern = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pattern, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    numbers = [" ".join(str(number) for number in range(start, 1000, 7)) for start in range(7)]
    made.train_from_iterator(
        [*CORPUS * 4, *numbers * 2], trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    )
    return made


TOKENIZERS = {make.__name__: make() for make in (byte_level, sentence_piece, word_piece, three_digits)}
pieces = st.text(st.sampled_from(list("ab 1.\n你🙂é")) | st.characters(codec="utf-8"), max_size=5) | st.sampled_from(
    [
        "55",
        "5a ",
        "3452",
        "1",
        " the quick",
        " brown fox",
        "jumps over",
        " 你好",
        "，世界",
        " 12",
        "345",
        "\n\n",
        "  ",
        "🙂",
        "🙃 ",
    ]
)


def all_coalitions(n):
    """Every coalition of n units."""
    return np.array(list(itertools.product([False, True], repeat=n)), dtype=np.bool_).reshape(1 << n, n)


def texts_of(prefix, units, suffix, coalitions):
    """The text of each variant."""
    return [prefix + "".join(itertools.compress(units, row)) + suffix for row in coalitions.tolist()]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=150)
@given(prefix=pieces, units=st.lists(pieces, max_size=4), suffix=pieces)
def test_variants_have_the_tokens_of_their_whole_text(name, prefix, units, suffix):
    """Whatever the units and the tokeniser are, spliced or not: a variant has the tokens that its text has."""
    made = TOKENIZERS[name]

    def tokenize(text):
        return made.encode(text, add_special_tokens=False).ids

    coalitions = all_coalitions(len(units))

    def whole(text):
        return [7, *tokenize(prefix + text + suffix), 8]

    found = coalition_tokens(tokenize, prefix, units, suffix, coalitions, whole=whole, head=[7], tail=[8])
    expected = [[7, *tokenize(text), 8] for text in texts_of(prefix, units, suffix, coalitions)]
    assert [sequence.tolist() for sequence in found.sequences] == expected


def test_sentences_are_tokenised_once_each():
    """Units that begin with a space are spliced in every variant, and few texts are tokenised."""
    made, asked = TOKENIZERS["byte_level"], []

    def tokenize(text):
        asked.append(text)
        return made.encode(text, add_special_tokens=False).ids

    units = [" the quick", " brown fox", " jumps over", " the lazy", " dog", " and", " the dog", " does"]
    coalitions = all_coalitions(8)
    found = coalition_tokens(
        tokenize, "x = 1;", units, "\n", coalitions, whole=lambda text: tokenize(f"x = 1;{text}\n")
    )
    assert found.spliced.tolist() == [False] + [True] * 255
    assert len(asked) <= 3 * 10 + 9 * 10 // 2 + 5


def test_units_that_meet_without_a_space_are_tokenised_together():
    """Halves of a word are one run where they meet, and two texts where something stands between."""
    made, asked = TOKENIZERS["byte_level"], []

    def tokenize(text):
        asked.append(text)
        return made.encode(text, add_special_tokens=False).ids

    units, coalitions = [" do", "g", " the"], all_coalitions(3)
    assert tokenize(" dog") != [*tokenize(" do"), *tokenize("g")]
    found = coalition_tokens(tokenize, "", units, "", coalitions, whole=tokenize)
    assert found.spliced.tolist() == [False, False, False, True, False, True, False, True]
    assert [sequence.tolist() for sequence in found.sequences] == [
        tokenize(text) for text in texts_of("", units, "", coalitions)
    ]


def test_numbers_that_are_split_by_their_length_are_tokenised_together():
    """A tokenizer that takes three digits at a time sees more than two units; pairs of them would hold, and mislead."""
    made = TOKENIZERS["three_digits"]

    def tokenize(text):
        return made.encode(text, add_special_tokens=False).ids

    units = ["55", "5a ", "2b5", "3452", " ab", "1", "345"]
    coalitions = all_coalitions(7)
    found = coalition_tokens(tokenize, "q ", units, "", coalitions, whole=lambda text: tokenize(f"q {text}"))
    assert [sequence.tolist() for sequence in found.sequences] == [
        tokenize(text) for text in texts_of("q ", units, "", coalitions)
    ]
    assert found.spliced.any()


def test_what_no_run_shows_is_found_in_a_probe():
    """A tokenizer that looks at the length of the whole text undoes every splice."""

    def tokenize(text):
        return [ord(letter) for letter in text] if len(text) < 5 else [len(text)]

    units = [" a", " b", " c", " d"]
    found = coalition_tokens(tokenize, "", units, "", all_coalitions(4), whole=tokenize)
    assert found.spliced.sum() == 0
    assert [sequence.tolist() for sequence in found.sequences] == [
        tokenize(text) for text in texts_of("", units, "", all_coalitions(4))
    ]


def test_what_is_not_framed_is_not_spliced():
    """A variant whose text is not read as it is is tokenised as a whole, and so is an empty one."""
    made = TOKENIZERS["byte_level"]

    def tokenize(text):
        return made.encode(text, add_special_tokens=False).ids

    def whole(text):
        return tokenize(f"< {text.strip()} >" if text else "nothing")

    coalitions = all_coalitions(2)
    found = coalition_tokens(
        tokenize, "< ", ["x =", " 1 "], " >", coalitions, whole=whole, framed=lambda text: text == text.strip()
    )
    assert not found.spliced[[0, 1, 3]].any()
    assert [row.tolist() for row in found.sequences] == [whole(text) for text in ("", " 1 ", "x =", "x = 1 ")]


def test_who_has_gone_is_not_worked_for():
    """What the checkpoint raises ends the work."""

    def gone():
        raise TimeoutError

    with pytest.raises(TimeoutError):
        coalition_tokens(list, "", ["a"], "", all_coalitions(1), whole=list, checkpoint=gone)


def test_coalitions_are_about_the_units():
    """Rows of another length are refused."""
    with pytest.raises(ValueError, match=r"shape \(V, 2\): got \(1, 3\)"):
        coalition_tokens(lambda _: [], "", ["a", "b"], "", np.ones((1, 3), dtype=np.bool_), whole=lambda _: [])
