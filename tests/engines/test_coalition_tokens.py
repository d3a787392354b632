import itertools
import json

import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="the lane `models` installs tokenizers")
pytestmark = pytest.mark.models

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers  # noqa: E402

from creditd.credit.absent_units import RenderedUnits  # noqa: E402
from creditd.engines.coalition_tokens import CRUMB, MANY_PIECES, N_SEAMS, coalition_tokens  # noqa: E402

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


def one_word():
    """BPE with bytes for what it does not know, over a text that is one word, as Llama 2 has it."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token=UNKNOWN, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    special = [UNKNOWN, *(f"<0x{value:02X}>" for value in range(256))]
    made.train_from_iterator(
        CORPUS * 4, trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False)
    )
    settings = json.loads(made.to_str())
    settings["pre_tokenizer"] = None
    return Tokenizer.from_str(json.dumps(settings))


def masked(make, **options):
    """A tokenizer that has a mask token, which is read before anything else."""
    made = Tokenizer.from_str(make().to_str())
    made.add_special_tokens([AddedToken("<mask>", **options)])
    return made


def composed():
    """Unigram over text whose accents are made one with their letters, whatever text they come from."""
    made = sentence_piece()
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
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


MASKED = {
    **{make.__name__: masked(make) for make in (byte_level, sentence_piece, word_piece, one_word, composed)},
    "byte_level that strips": masked(byte_level, lstrip=True, rstrip=True),
    "three_digits without a mask": TOKENIZERS["three_digits"],
}
fragments = st.sampled_from(
    [
        "the", " quick", " brown fox", ",", ".", "?!\n", " 12", "345", "\n\n", "  ", "\u00a0", "can't", " x =", "你好",
        "，", "世界", "\U0001f469\u200d\U0001f467", "e\u0301", " \u0301", "n\u0303", "é", "مر", "حبا", "<", "mask",
    ]
)  # fmt: skip


@pytest.mark.parametrize("name", MASKED)
@settings(max_examples=60)
@given(
    parts=st.lists(fragments, max_size=12),
    cuts=st.lists(st.floats(0, 1), max_size=6),
    filler=st.sampled_from(["", " ", "<mask>", " <mask>", "..."]),
    prefix=fragments,
)
def test_spans_cut_anywhere_have_the_tokens_of_their_whole_text(name, parts, cuts, filler, prefix):
    """Units may end within a word, a character of several code points, or a mask; fillers stand between any two."""
    made, text = MASKED[name], "".join(parts)

    def tokenize(text):
        return made.encode(text, add_special_tokens=False).ids

    ends = sorted({round(cut * len(text)) for cut in cuts} | {len(text)})
    rendered = RenderedUnits(text, np.array([[0, *ends[:-1]], ends], dtype=np.int64).T, filler)
    rows = rendered.rows(all_coalitions(len(ends)))
    found = coalition_tokens(tokenize, prefix, rendered.pieces, "", rows, whole=lambda text: tokenize(prefix + text))
    expected = [tokenize(text) for text in texts_of(prefix, rendered.pieces, "", rows)]
    assert [sequence.tolist() for sequence in found.sequences] == expected


def test_a_tokenizer_that_takes_no_words_apart_is_soon_believed():
    """Once enough seams have shown it, no more are looked at: variants are tokenised as wholes, once each."""
    made, asked = one_word(), []

    def tokenize(text):
        asked.append(text)
        return made.encode(text, add_special_tokens=False).ids

    units = [f" word{n} and" for n in range(12)]
    coalitions = np.random.default_rng(0).random((500, 12)) < 0.5
    found = coalition_tokens(tokenize, "x", units, "", coalitions, whole=lambda text: tokenize(f"x{text}"))
    assert not found.spliced.any()
    assert len(asked) <= 500 + 3 * (N_SEAMS + 12)


@pytest.mark.parametrize(
    ("n_units", "length"), [(MANY_PIECES, 2), (2 * MANY_PIECES + 8, 2), (2 * MANY_PIECES + 8, CRUMB)]
)
def test_crumbs_are_not_looked_at_one_by_one(n_units, length):
    """Very many very short units are tokenised with their text; fewer, or longer ones, are looked at once each."""
    made, asked = TOKENIZERS["byte_level"], []

    def tokenize(text):
        asked.append(text)
        return made.encode(text, add_special_tokens=False).ids

    units = [f" {'ab'[n % 2] * (length - 1)}" for n in range(n_units)]
    coalitions = np.random.default_rng(0).random((40, n_units)) < 0.9
    found = coalition_tokens(tokenize, "", units, "", coalitions, whole=tokenize)
    crumbs = n_units > MANY_PIECES and length < CRUMB
    assert found.spliced.tolist() == [not crumbs] * 40
    assert (len(asked) == 40) == crumbs
    assert [row.tolist() for row in found.sequences] == [tokenize(text) for text in texts_of("", units, "", coalitions)]


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
