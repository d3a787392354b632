import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from creditd.cache.keys import (
    CHECK_BYTES,
    NAMESPACE,
    GameKey,
    KeyMaker,
    UtilitySource,
    model_prefix,
    prompt_bytes,
    purge_key,
    tenant_secret,
)
from creditd.credit.candidate_sets import CandidateSets, MalformedPolicy
from creditd.credit.credit_rules import PrefixGain, Shapley
from creditd.credit.evaluation_needs import EstimatorOptions
from creditd.scoring.coalition_utilities import CoalitionText, CoalitionUtilities
from creditd.scoring.recollection import Recollection

MODEL = UtilitySource(
    tenant=tenant_secret(b"service", b"caller"),
    source="model",
    name="rm",
    identity="weights 1",
    weight_version="3",
    rendering="delete",
    generation="token",
    numerics="cpu",
)
CALLER = UtilitySource(tenant=tenant_secret(b"", b""), source="caller", name="", identity="tests passed")
MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "weather?"}]
CHANGED = {
    "tenant": tenant_secret(b"service", b"other"),
    "source": "caller",
    "name": "other",
    "identity": "weights 2",
    "weight_version": "4",
    "rendering": "blank",
    "generation": "later",
    "numerics": "cuda",
}


def key_of(prompt="weather?", units=("sun", "rain"), asked=b"", source=MODEL):
    """The key of a game."""
    return KeyMaker(source).game(prompt_bytes(prompt), units, asked)


def digest_of(key):
    """The part of a key that nobody can read."""
    return key.text.rpartition(":")[2]


@pytest.mark.parametrize(
    ("prompt", "units", "asked", "source", "expected"),
    [
        ("weather?", ("sun", "rain"), b"", MODEL, "creditd:1:model:rm:37b3ae271142a732a046ccac822f3baa"),
        (
            [{"role": "user", "content": "weather?"}],
            ("sun",),
            b"",
            MODEL,
            "creditd:1:model:rm:a93261403ed88a48c71d65b9be9deeb7",
        ),
        ("weather?", ("sun",), b"\x01", MODEL, "creditd:1:model:rm:3e887983f99ebca634b7626d84a45631"),
        ("", (), b"", CALLER, "creditd:1:caller:069b447a1895aad8f32ab1421ed33fdd"),
        ("\ud83d", ("\ud83d\ude00", "ä"), b"", MODEL, "creditd:1:model:rm:1ff6dd84c5450a2d59287cbd125accde"),
    ],
)
def test_keys_are_derived_as_ever(prompt, units, asked, source, expected):
    """Keys that were written once are found again; a change of their derivation changes these, and so KEY_FORMAT."""
    assert key_of(prompt, units, asked, source).text == expected


def test_the_secret_of_a_tenant_is_derived_as_ever():
    """Replicas that start later make the same secret; a change of its derivation raises KEY_FORMAT."""
    expected = "a9257fcddf8e49616ff9559f20b2bb0753d44e76562bfb8b128677168ddc2398"
    assert tenant_secret(b"service", b"caller").hex() == expected


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(UtilitySource)])
def test_whatever_changes_all_utilities_changes_all_keys(name):
    """Each field of a source is an ingredient of the digest; a new one has to say here how it changes."""
    other = dataclasses.replace(MODEL, **{name: CHANGED[name]})
    assert getattr(other, name) != getattr(MODEL, name)
    assert digest_of(key_of(source=other)) != digest_of(key_of())


@pytest.mark.parametrize(
    "pair", list(itertools.combinations(("identity", "weight_version", "rendering", "generation", "numerics"), 2))
)
def test_what_one_field_says_another_does_not(pair):
    """A value that moves from one field of a source to another makes another key."""
    blank = dict.fromkeys(("identity", "weight_version", "rendering", "generation", "numerics"), "")
    first, second = (dataclasses.replace(MODEL, **{**blank, name: "same"}) for name in pair)
    assert key_of(source=first) != key_of(source=second)


OTHER_PROMPTS = [
    "weather!",
    "weather?\n",
    "",
    [],
    [{"role": "user", "content": "weather?"}],
    MESSAGES[::-1],
    [*MESSAGES, MESSAGES[0]],
    [{"role": "assistant", "content": "be brief"}, MESSAGES[1]],
    [{"role": "system", "content": "be briefer"}, MESSAGES[1]],
    [{"role": "be brief", "content": "system"}, MESSAGES[1]],
    [{"role": "system"}, {"content": "be brief"}, MESSAGES[1]],
    [{**MESSAGES[0], "name": "x"}, MESSAGES[1]],
    [{"role": "system", "content": "be briefuser"}, {"role": "", "content": "weather?"}],
]


def test_each_prompt_has_its_keys():
    """A text, messages, their order, number, roles, contents and further fields each make another key."""
    prompts = ["weather?", MESSAGES, prompt_bytes(MESSAGES).decode("utf-8"), *OTHER_PROMPTS]
    keys = [key_of(prompt) for prompt in prompts]
    assert len(set(keys)) == len({key.check for key in keys}) == len(prompts)


def test_messages_are_their_fields_in_any_order():
    """An object of JSON has no order: neither have the fields of a message."""
    assert key_of(MESSAGES) == key_of([dict(reversed(one.items())) for one in MESSAGES])


def test_each_list_of_units_has_its_keys():
    """Units, their number, boundaries, copies and order make another key, as does an empty one."""
    lists = [
        (), ("",), ("", ""), ("a",), ("a", "a"), ("a", "a", "a"), ("a", "b"), ("b", "a"), ("a", "b", ""),
        ("", "a", "b"), ("ab",), ("ab", "c"), ("a", "bc"), ("abc",), ("a", "b", "c"), ("A",), ("a\0",), ("a ",),
    ]  # fmt: skip
    assert len({key_of(units=units) for units in lists}) == len(lists)


def test_neither_prompt_nor_list_of_coalitions_is_a_unit():
    """Bytes that move between the prompt, what was asked and the units make another key."""
    maker = KeyMaker(MODEL)
    moved = [
        maker.game(b"a", ("b",), b""), maker.game(b"a", (), b"b"), maker.game(b"", ("a", "b"), b""),
        maker.game(b"b", ("a",), b""), maker.game(b"b", (), b"a"), maker.game(b"ab", (), b""),
        maker.game(b"", (), b"ab"),
        maker.game(b"", ("a",), b"b"), maker.game(b"", ("b",), b"a"), maker.game(b"a", ("", "b"), b""),
    ]  # fmt: skip
    assert len(set(moved)) == len(moved)


def test_a_value_of_one_list_of_coalitions_has_a_key_of_its_own():
    """What was asked changes the key, with nothing asked as one more case."""
    assert len({key_of(asked=asked) for asked in (b"", b"\0", b"\0\0", b"\x01", b"\x01\0")}) == 5


def test_what_was_asked_before_changes_no_key():
    """One maker gives the keys that makers of their own would give, whatever prompts come one after another."""
    maker = KeyMaker(MODEL)
    games = [
        (prompt, units) for prompt in (b"", b"a", b"a", b"b", b"", b"ab") for units in (("x",), ("\ud83d", "x"), ())
    ]
    assert [maker.game(*game) for game in games] == [KeyMaker(MODEL).game(*game) for game in games]


def test_halves_of_surrogate_pairs_have_keys():
    """A lone half, two halves, and the character that they would make are four different texts."""
    texts = ["\ud83d", "\ude00", "\ud83d\ude00", "😀"]
    assert len({key_of(units=(text,)) for text in texts}) == 4
    assert len({key_of(text) for text in texts}) == 4
    assert len({key_of([{"role": "user", "content": text}]) for text in texts}) == 4


names = st.text(st.characters(exclude_categories=()), max_size=3)
lists = st.tuples(
    st.lists(names, max_size=4),
    st.one_of(names, st.lists(st.dictionaries(st.sampled_from(["role", "content"]), names, max_size=2), max_size=3)),
    st.binary(max_size=3),
    st.tuples(*[names] * 5),
)


@given(lists, lists)
def test_different_lists_of_fields_never_have_the_same_key(first, second):
    """Whatever of units, prompt, what was asked and source differs, the key does; equal ones have equal keys."""

    def made(units, prompt, asked, words):
        identity, weight_version, rendering, generation, numerics = words
        source = dataclasses.replace(
            MODEL,
            identity=identity,
            weight_version=weight_version,
            rendering=rendering,
            generation=generation,
            numerics=numerics,
        )
        return key_of(prompt, units, asked, source)

    assert made(*first) == made(*first)
    assume(first != second)
    assert made(*first) != made(*second)


def asked_of(texts, rule, known_empty=None):
    """The games that a set of candidates asks a model about."""
    size = len(texts)
    sets = CandidateSets(
        rewards=np.zeros(size), row_splits=np.array([0, size]), groups=np.zeros(1, dtype=np.int64), n_groups=1
    )
    questions = CoalitionUtilities(
        sets,
        (),
        MalformedPolicy(),
        ["weather?"],
        texts,
        rendering=CoalitionText(empty=known_empty),
        rule=rule,
        estimator=EstimatorOptions(),
        most_players=16,
        most_evaluations=1 << 16,
        most_characters=1 << 20,
    )
    return Recollection(questions.ask(), KeyMaker(MODEL), by=questions.remembered_by).missing


@pytest.mark.parametrize("rule", [Shapley(), PrefixGain()])
@pytest.mark.parametrize("texts", [("sun", "rain", "fog", ""), ("b", "a", "b", "\ud83d"), ("ä", "z", "é", "Z")])
def test_no_permutation_of_candidates_changes_a_key(rule, texts):
    """A set has one key in whatever order its candidates come, and whatever the rule says of their order."""
    expected = asked_of(texts, Shapley())
    assert len(expected) == 1
    for order in itertools.permutations(texts):
        assert asked_of(order, rule) == expected


def test_candidates_with_another_multiplicity_are_another_set():
    """A copy more, a candidate less, and a given v(∅) leave nothing to confuse: the last alone shares the key."""
    keys = [*asked_of(("a", "b"), Shapley()), *asked_of(("a", "b", "b"), Shapley()), *asked_of(("a",), Shapley())]
    assert len(set(keys)) == 3
    assert [*asked_of(("a", "b"), Shapley(), known_empty=0.0)] == keys[:1]


@pytest.mark.parametrize(
    "key", [key_of(), key_of(source=CALLER), key_of(source=dataclasses.replace(MODEL, name="a/b"))]
)
def test_a_key_is_found_in_its_text(key):
    """The text of a key has all of it."""
    assert GameKey.of(key.text) == key
    assert len(key.check) == CHECK_BYTES
    assert bytes.fromhex(digest_of(key)).startswith(key.check)


DIGEST = "37b3ae271142a732a046ccac822f3baa"


@pytest.mark.parametrize(
    "text",
    [
        "",
        DIGEST,
        f"{NAMESPACE}:{DIGEST}",
        f"{NAMESPACE}::{DIGEST}",
        f"{NAMESPACE}:model:{DIGEST}",
        f"{NAMESPACE}:model::{DIGEST}",
        f"{NAMESPACE}:caller:rm:{DIGEST}",
        f"{NAMESPACE}:callers:{DIGEST}",
        f"creditd:0:model:rm:{DIGEST}",
        f"creditd:10:model:rm:{DIGEST}",
        f"other:{NAMESPACE}:model:rm:{DIGEST}",
        f"{NAMESPACE}:model:rm:{DIGEST[:-1]}",
        f"{NAMESPACE}:model:rm:{DIGEST}0",
        f"{NAMESPACE}:model:rm:{DIGEST[:-1]}g",
        f"{NAMESPACE}:model:rm:{DIGEST[:-2]}  ",
        f"{NAMESPACE}:model:rm:{DIGEST.upper()}",
        f"{NAMESPACE}:model:rm:{DIGEST}\n",
        purge_key("rm"),
        purge_key(DIGEST),
    ],
)
def test_what_is_no_key_of_a_game_is_refused(text):
    """Another namespace, another kind, another length and what is no digest are errors, without a word of the text."""
    with pytest.raises(ValueError, match="got no key of a game") as raised:
        GameKey.of(text)
    assert DIGEST not in str(raised.value)


def test_keys_say_where_they_belong():
    """Keys of a model, of callers and of purges begin alike and then apart, and no text or secret is in them."""
    assert key_of().text.startswith(model_prefix("rm"))
    assert model_prefix("rm") == f"{NAMESPACE}:model:rm:"
    assert purge_key("rm") == f"{NAMESPACE}:purged:rm"
    assert key_of(source=CALLER).text.startswith(f"{NAMESPACE}:caller:")
    assert (MODEL.owner, CALLER.owner) == ("rm", "(callers)")
    assert len({model_prefix("rm"), model_prefix("rm2"), purge_key("rm"), CALLER.prefix}) == 4
    assert not model_prefix("rm2").startswith(model_prefix("rm"))


def test_tenants_and_services_have_secrets_of_their_own():
    """Another API key, another secret of the service, and the two exchanged or joined otherwise are other secrets."""
    pairs = [
        (b"", b""),
        (b"", b"a"),
        (b"a", b""),
        (b"a", b"b"),
        (b"b", b"a"),
        (b"ab", b""),
        (b"", b"ab"),
        (b"a", b"bc"),
    ]
    assert len({tenant_secret(*pair) for pair in pairs}) == len(pairs)
    assert all(len(tenant_secret(*pair)) == 32 for pair in pairs)
    assert tenant_secret(b"a" * 100, b"b" * 100) != tenant_secret(b"a" * 100, b"b" * 101)


def test_tenants_share_no_key():
    """The same game under the secrets of two tenants has two keys."""
    keys = {
        key_of(source=dataclasses.replace(MODEL, tenant=tenant_secret(*pair)))
        for pair in [(b"s", b"a"), (b"s", b"b"), (b"t", b"a")]
    }
    assert len(keys) == 3
