"""Units of completions that real tokenizers of several families wrote, read by a reward model of another family."""

import codecs
from itertools import pairwise, product

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = pytest.mark.models

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

from creditd.adapters.completions import token_offsets  # noqa: E402
from creditd.credit.absent_units import RenderedUnits  # noqa: E402
from creditd.credit.text_segments import segment_ends  # noqa: E402
from creditd.credit.text_units import units_of_segments  # noqa: E402
from creditd.engines.chat import ChatText  # noqa: E402
from creditd.engines.protocol import VariantTexts  # noqa: E402

CORPUS = [
    "the quick brown fox, jumps over the lazy dog. does the dog mind? no! it costs 3.14; fine...",
    "naïve café: x = 12345; print(x + 1)  # two  spaces and\nnew\n\nlines",
    "你好，世界。今天天气很好！走吧？ مرحبا بالعالم، كيف حالك؟ שלום, מה נשמע? טוב.",
] * 4
TEXTS = [
    "The quick fox, it jumps. Does the lazy dog mind? No!\nIt costs 3.14; fine...",
    "👩‍👩‍👧 party! 🎉🎉, 🇪🇺 flags; naïve café.",
    "今天天气很好，我们去公园吧。「好！」他说。龘靐齉，😀？",
    "مرحبا بالعالم، كيف حالك؟ بخير. שלום, מה נשמע? טוב.",
    "mixed 语言 text, with عربي and 🙂. \U0001f9d1\u200d\U0001f680 done",
    "  leading and trailing  ",
    "\n\n1. One.\n2. Two,\n",
]
SIGNS = list("abc xyz.,;?!\n3你好龘，。！éم؟ש🙂🎉\u200d")
CUTS = ("span", "sentence", "lines", "token")


def byte_level():
    """Byte-level BPE, as GPT-2, Qwen and Llama 3 have it: a character of several bytes is often several tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return made


def with_byte_fallback():
    """Unigram as SentencePiece has it: spaces are marks, the first one is added, unknown characters become bytes."""
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(
        [text.replace("好", "") for text in CORPUS],
        trainers.UnigramTrainer(vocab_size=200, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False),  # noqa: S106 - a name
    )
    ids = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    pieces = [(piece, -float(number + 1)) for piece, number in ids]
    made = Tokenizer(
        models.Unigram([*pieces, *((f"<0x{byte:02X}>", -1e3) for byte in range(256))], unk_id=0, byte_fallback=True)
    )
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made


def word_piece():
    """WordPiece over lower case, as BERT has it: white space is lost, and so are unknown words."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106 - a name
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(cleanup=False)
    made.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"], show_progress=False)
    )
    return made


END = "<end>"
FAMILIES = {make.__name__: make for make in (byte_level, with_byte_fallback, word_piece)}
POLICIES = {
    name: PreTrainedTokenizerFast(tokenizer_object=make(), eos_token=END, pad_token=END)
    for name, make in FAMILIES.items()
}
READERS = {name: ChatText(policy, None) for name, policy in POLICIES.items()}
OTHERS = [(one, other) for one, other in product(FAMILIES, FAMILIES) if one != other]
texts_of_signs = st.text(st.sampled_from(SIGNS), max_size=25)


def decoder_of(name):
    """How an adapter reads the tokens of a policy: without special tokens, and nothing cleaned up."""
    policy = POLICIES[name]
    return lambda ids: policy.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def tokens_of(name, text):
    """The tokens of a text and one that ends it."""
    policy = POLICIES[name]
    return [*policy.encode(text, add_special_tokens=False), policy.eos_token_id]


def checked_units(name, ids, mask, cut, most=None):
    """Units of a completion, once they are a partition of its trainable tokens and of its text."""
    text, offsets = token_offsets(ids, decoder_of(name))
    assert text == decoder_of(name)(ids)
    assert "".join(text[start:stop] for start, stop in offsets) == text
    ends = None if cut == "token" else segment_ends(text, cut)
    units = units_of_segments(len(text), ends, offsets, mask, max_units=most)
    owner = np.full(len(ids), -1)
    for unit, (first, last) in enumerate(units.tokens.tolist()):
        assert (owner[first:last] == -1).all()
        owner[first:last] = unit
        start, stop = units.characters[unit].tolist()
        assert text[start:stop] == "".join(text[slice(*offsets[token])] for token in range(first, last))
    writes = any(kept and start < stop for kept, (start, stop) in zip(mask, offsets, strict=True))
    assert ((owner >= 0) == (np.array(mask, dtype=bool) & writes)).all()
    assert RenderedUnits(text, units.characters, " ").text(np.ones(units.n_units, dtype=bool)) == text
    return text, offsets, units


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("text", TEXTS)
def test_tokens_and_text_are_parted_alike(name, cut, text):
    """Every token is in one unit, and a unit's characters are what its tokens write, for every prefix of a text."""
    ids = tokens_of(name, text)
    for length in range(len(ids) + 1):
        checked_units(name, ids[:length], [True] * length, cut)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=60)
@given(data=st.data())
def test_whatever_a_policy_samples_has_units(name, data):
    """Any tokens in any order, with any of them masked, are parted: bytes that are no text as well."""
    ids = data.draw(st.lists(st.integers(0, len(POLICIES[name]) - 1), max_size=24))
    mask = data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    cut, most = data.draw(st.sampled_from(CUTS)), data.draw(st.none() | st.integers(1, 6))
    checked_units(name, ids, mask, cut, most)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=60)
@given(text=texts_of_signs, cut=st.sampled_from(CUTS))
def test_any_text_has_units(name, text, cut):
    """Scripts and signs in any order are parted."""
    ids = tokens_of(name, text)
    checked_units(name, ids, [True] * len(ids), cut)


def written_bytes(name, ids):
    """The bytes that each token writes, from the vocabulary and not from a decoder."""
    found, begun = [], False
    for piece in POLICIES[name].convert_ids_to_tokens(ids):
        if piece in {END, "[UNK]"}:
            found.append(b"")
            continue
        written = BYTES[name](piece)
        found.append(written if begun else written.removeprefix(b" ") if name != "byte_level" else written)
        begun = True
    return found


def byte_signs():
    """The signs that stand for bytes in byte-level vocabularies, as GPT-2 has them."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {**{byte: chr(byte) for byte in plain}, **{byte: chr(256 + at) for at, byte in enumerate(others)}}


def of_signs(piece):
    """The bytes of a piece of a byte-level vocabulary."""
    signs = {sign: byte for byte, sign in byte_signs().items()}
    return bytes(signs[sign] for sign in piece)


def of_marks(piece):
    """The bytes of a piece of SentencePiece: a byte, or text with marks for spaces."""
    return bytes([int(piece[3:5], 16)]) if piece.startswith("<0x") else piece.replace("▁", " ").encode()


def of_words(piece):
    """The bytes of a piece of WordPiece: the rest of a word, or a word and the space before it."""
    return piece[2:].encode() if piece.startswith("##") else f" {piece}".encode()


BYTES = {"byte_level": of_signs, "with_byte_fallback": of_marks, "word_piece": of_words}


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=60)
@given(text=st.sampled_from(TEXTS) | texts_of_signs)
def test_a_character_belongs_to_the_token_that_completes_it(name, text):
    """Offsets are those of the bytes that the vocabulary says, decoded as they come."""
    ids = tokens_of(name, text)
    decoded, offsets = token_offsets(ids, decoder_of(name))
    reader, reached, expected = codecs.getincrementaldecoder("utf-8")(), 0, []
    for piece in written_bytes(name, ids):
        start, reached = reached, reached + len(reader.decode(piece))
        expected.append((start, reached))
    assert offsets == expected
    assert reached == len(decoded)


@pytest.mark.parametrize("name", ["byte_level", "with_byte_fallback"])
def test_the_families_split_characters(name):
    """The texts are a test of split characters: some tokens write nothing by themselves, and one unit has them all."""
    ids = tokens_of(name, "好🎉, 龘.")
    text, offsets, units = checked_units(name, ids, [True] * len(ids), "token")
    silent = [token for token, (start, stop) in enumerate(offsets[:-1]) if start == stop]
    assert len(silent) >= 5
    for character in ("🎉", "龘"):
        place = text.index(character)
        (unit,) = [at for at, (start, stop) in enumerate(units.characters.tolist()) if start <= place < stop]
        first, last = units.tokens[unit].tolist()
        assert set(range(first, last)) & set(silent)
        assert character.encode() in b"".join(written_bytes(name, ids)[first:last])


@pytest.mark.parametrize("name", ["byte_level", "with_byte_fallback"])
def test_a_completion_that_is_cut_within_a_character_has_units(name):
    """The bytes at the end that are no character are text of the last unit, and no token is lost."""
    ids = tokens_of(name, "Hello, world, 🎉")[:-1]
    whole, _, before = checked_units(name, ids, [True] * len(ids), "span")
    assert whole.endswith("🎉")
    for missing in (1, 2, 3):
        text, _, units = checked_units(name, ids[:-missing], [True] * (len(ids) - missing), "span")
        assert text.rstrip("\N{REPLACEMENT CHARACTER}").rstrip() == "Hello, world,"
        assert units.tokens[:2].tolist() == before.tokens[:2].tolist()
        assert units.tokens[-1, 1] == len(ids) - missing


@pytest.mark.parametrize("name", FAMILIES)
def test_turns_of_a_tool_are_frozen(name):
    """What a tool wrote between two turns is in no unit and in every coalition; no unit reaches over it."""
    turns = [("First, look.", True), (" result: 42. 好，", False), (" Then, done.", True)]
    ids, mask = [], []
    for turn, own in turns:
        tokens = tokens_of(name, turn)
        ids += tokens
        mask += [own] * len(tokens)
    text, offsets, units = checked_units(name, ids, mask, "span")
    start, stop = mask.index(False), len(mask) - mask[::-1].index(False)
    frozen = text[offsets[start][0] : offsets[stop][0]]
    assert "42" in frozen
    assert all(last <= start or first >= stop for first, last in units.tokens.tolist())
    rendered = RenderedUnits(text, units.characters, "")
    assert rendered.text(np.zeros(units.n_units, dtype=bool)) == frozen
    assert units.has_frozen_text


@pytest.mark.parametrize(("policy", "reader"), OTHERS)
@pytest.mark.parametrize("text", TEXTS)
def test_a_reward_model_of_another_family_reads_the_text_of_each_coalition(policy, reader, text):
    """From the policy's tokens to characters to the reward model's tokens: those of the text that would be sent."""
    ids = tokens_of(policy, text)
    for cut, filler in (("span", ""), ("token", " ")):
        text, _, units = checked_units(policy, ids, [True] * len(ids), cut, most=4)
        rendered = RenderedUnits(text, units.characters, filler)
        coalitions = np.array(list(product([False, True], repeat=units.n_units)), dtype=bool)
        rows = rendered.rows(coalitions)
        read = READERS[reader].variants(VariantTexts("Say it: ", rendered.pieces, rows)).sequences
        for row, coalition in zip(read, coalitions, strict=True):
            assert row.tolist() == READERS[reader].tokens("Say it: ", rendered.text(coalition)).tolist()


@pytest.mark.parametrize(("policy", "reader"), [(one, other) for one, other in OTHERS if other != "word_piece"])
@pytest.mark.parametrize("text", TEXTS)
def test_the_text_round_trips_from_policy_to_reward_model(policy, reader, text):
    """A reward model whose tokenizer loses nothing reads back the characters that the policy wrote."""
    ids = tokens_of(policy, text)
    text, _, units = checked_units(policy, ids, [True] * len(ids), "span")
    pieces = RenderedUnits(text, units.characters, "").pieces
    read = READERS[reader].tokens("", "".join(pieces)).tolist()
    assert decoder_of(reader)(read) == text
    assert [
        text[start:stop] for start, stop in pairwise([0, *np.cumsum([len(piece) for piece in pieces]).tolist()])
    ] == list(pieces)
