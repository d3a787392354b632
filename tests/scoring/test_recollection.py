import itertools
import zlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditd.cache.games import joined, known_game
from creditd.cache.keys import KeyMaker, UtilitySource
from creditd.engines.protocol import EngineUsage, ScoredTexts, TextFailure, VariantTexts
from creditd.scoring.recollection import Recollection

MODEL = UtilitySource(tenant=b"t" * 32, source="model", name="rm", identity="weights")
PROMPTS = ["weather?", "", [{"role": "user", "content": "weather?"}]]
UNITS = ["sun", "rain", "", "curse", "long"]
WAYS = [("set", False), ("set", True), ("candidate", False), ("candidate", True)]


def failure_of(completion):
    """Why a completion has no score, if it has none: it is cursed, or too long."""
    if "long" in completion:
        return TextFailure("context_exceeded", "too long")
    return TextFailure("non_finite_utility", "no number") if "curse" in completion else None


def score_of(prompt, completion):
    """A number that every text has to itself; NaN for a text without a score."""
    if failure_of(completion) is not None:
        return np.nan
    return zlib.crc32(repr((prompt, completion)).encode()) / 7.0


def completions_of(texts):
    """All variants, one after another."""
    return [
        (one.prompt, "".join(unit for unit, present in zip(one.units, row, strict=True) if present))
        for one in texts
        for row in one.coalitions.tolist()
    ]


def scored(texts):
    """What a model says of texts: without a memory, what is right."""
    pairs = completions_of(texts)
    failures = {place: failure_of(text) for place, (_, text) in enumerate(pairs) if failure_of(text) is not None}
    usage = EngineUsage(evaluations=len({repr(pair) for pair in pairs}), tokens_naive=len(pairs))
    return ScoredTexts(np.array([score_of(*pair) for pair in pairs]), failures, usage)


def of(units, rows, prompt="weather?"):
    """A prompt with completions; a row is the units that are present."""
    coalitions = np.array([[place in row for place in range(len(units))] for row in rows], dtype=np.bool_)
    return VariantTexts(prompt, tuple(units), coalitions.reshape(len(rows), len(units)))


def recollection_of(texts, by="set", *, whole=False):
    """A round of which nothing is remembered yet."""
    return Recollection(texts, KeyMaker(MODEL), by=by, whole=whole)


def the_game(text, by="set", *, whole=False):
    """The key of a text that is one game, and the game as far as the model has scores."""
    one = recollection_of([text], by, whole=whole)
    found = one.tell(scored(one.ask(tuple(one.missing))))
    return found[0]


def learned(one, *games):
    """What a round takes of games."""
    return one.learn({key.text: game for key, game in games})


@st.composite
def rounds(draw):
    """Texts of a round, and how they are remembered."""
    by, whole = draw(st.sampled_from(WAYS))
    texts = []
    for _ in range(draw(st.integers(0, 5))):
        units = tuple(draw(st.lists(st.sampled_from(UNITS), max_size=4)))
        if by == "candidate":
            rows = [{place} for place in draw(st.permutations(range(len(units))))]
        else:
            rows = draw(st.lists(st.sets(st.sampled_from(range(len(units)))) if units else st.just(set()), max_size=6))
        texts.append(of(units, rows, draw(st.sampled_from(PROMPTS))))
    copies = draw(st.lists(st.sampled_from(range(len(texts))), max_size=2)) if texts else []
    return [*texts, *(texts[place] for place in copies)], by, whole


def same(answer, expected):
    """Whether two answers have the same bits and the same failures at the same places."""
    return (
        answer.rewards.tobytes() == expected.rewards.tobytes()
        and answer.rewards.shape == expected.rewards.shape
        and list(answer.failures.items()) == list(expected.failures.items())
    )


def games_in(texts, by, *, whole):
    """What could be known of the games of a round: all of them, as far as the model has scores."""
    one, found = recollection_of(texts, by, whole=whole), {}
    for key, game in one.tell(scored(one.ask(tuple(one.missing)))):
        found[key.text] = joined(found.get(key.text), game)[0]
    return found


def parts_of(draw, games):
    """Some of some games."""
    found = {}
    for text, game in games.items():
        kept = draw(st.lists(st.booleans(), min_size=game.n_known, max_size=game.n_known))
        if any(kept):
            found[text] = known_game(game.coalitions()[kept], game.utilities[kept])
    return found


@given(rounds(), st.data())
def test_answers_are_the_same_whatever_is_remembered(made, data):
    """Any part of the games may be known beforehand, learned in between, or asked about in portions in any order."""
    texts, by, whole = made
    expected, games = scored(texts), games_in(texts, by, whole=whole)
    one = recollection_of(texts, by, whole=whole)
    asked, n_steps, from_cache = Counter(), 0, 0
    while missing := one.missing:
        before = {key: known_of(one, key) for key in missing}
        if data.draw(st.booleans()) or n_steps > 5:
            keys = data.draw(st.lists(st.sampled_from(list(missing)), unique=True, min_size=1))
            n_to_ask = sum(to_ask(one, key, whole=whole) for key in keys)
            wanted = one.ask(keys)
            asked.update(repr((text.prompt, text.units, row)) for text in wanted for row in text.coalitions.tolist())
            assert sum(text.n_variants for text in wanted) == n_to_ask
            one.tell(scored(wanted))
            assert not set(keys) & set(one.missing)
        else:
            n_games, n_utilities = one.learn(parts_of(data.draw, games))
            from_cache += n_utilities
            assert n_games <= n_utilities
            assert (n_games == 0) == ({key: known_of(one, key) for key in missing} == before)
        n_steps += 1
    answer = one.answer()
    assert same(answer, expected)
    every = Counter(repr((text.prompt, text.units, row)) for text in texts for row in text.coalitions.tolist())
    assert asked <= every
    assert answer.usage.from_cache == from_cache
    assert answer.usage.tokens_naive == asked.total()


def to_ask(one, key, *, whole):
    """How many variants of a game are to be asked about: of copies that are taken as a whole, one."""
    left = [wanted.left for wanted in one._wanted[key]]
    return left[0] if whole else sum(left)


def known_of(one, key):
    """How many variants of a game are not answered."""
    return sum(wanted.left for wanted in one._wanted[key])


@given(rounds())
def test_what_is_told_is_all_that_is_needed_the_next_time(made):
    """Who learns what another round was told misses the failures alone, and with `whole` the texts that have one."""
    texts, by, whole = made
    games, one = games_in(texts, by, whole=whole), recollection_of(texts, by, whole=whole)
    one.learn(games)
    assert all(np.isfinite(game.utilities).all() for game in games.values())
    left = completions_of(one.ask(tuple(one.missing)))
    if whole:
        failing = [text for text in texts if any(failure_of(found) for _, found in completions_of([text]))]
        different = {repr((text.prompt, text.units, text.coalitions.tolist())): text for text in failing}
        assert Counter(map(repr, left)) == Counter(map(repr, completions_of(list(different.values()))))
    else:
        failing = [pair for pair in completions_of(texts) if failure_of(pair[1]) is not None]
        assert Counter(map(repr, left)) == Counter(map(repr, failing))


def test_exactly_what_is_unknown_is_asked():
    """Of a game that is known in part the rest is asked, in its order, with copies of a row as often as they stand."""
    text = of(("a", "b", "c"), [{0}, {0, 1}, {2}, {0, 1}, set()])
    one = recollection_of([text])
    key, game = the_game(of(("a", "b", "c"), [{0}, {2}, {1, 2}]))
    assert learned(one, (key, game)) == (1, 2)
    assert learned(one, (key, game)) == (0, 0)
    (asked,) = one.ask([key])
    assert (asked.prompt, asked.units) == (text.prompt, text.units)
    assert asked.coalitions.tolist() == [[True, True, False], [True, True, False], [False] * 3]
    ((again, told),) = one.tell(scored([asked]))
    assert again == key
    assert told.n_known == 4
    assert np.isnan(told.utilities_of(np.array([[False, True, True]]))).all()
    assert (one.missing, one.ask([key])) == ({}, [])
    assert one.answer().usage.from_cache == 2
    assert same(one.answer(), scored([text]))


def test_texts_that_are_known_are_not_asked_about():
    """Texts without a row that is unknown are left out, and the others stand in their order."""
    texts = [of((name,), [{0}]) for name in "abc"] + [of(("d",), [])]
    one = recollection_of(texts)
    learned(one, the_game(texts[1]))
    assert [text.units for text in one.ask(list(reversed(one.missing)))] == [("a",), ("c",)]


def test_failures_stand_where_they_belong():
    """Failures of what was asked are those of its places among all variants, also behind what was known."""
    texts = [of(("sun", "long"), [{0}, {1}, set(), {0, 1}]), of(("curse", "rain"), [{1}, {0}])]
    one = recollection_of(texts)
    learned(one, the_game(of(("sun", "long"), [{0}, set()])), the_game(of(("curse", "rain"), [{1}])))
    one.tell(scored(one.ask(tuple(one.missing))))
    assert {place: failure.code for place, failure in one.answer().failures.items()} == {
        1: "context_exceeded",
        3: "context_exceeded",
        5: "non_finite_utility",
    }
    assert np.flatnonzero(np.isnan(one.answer().rewards)).tolist() == [1, 3, 5]


@pytest.mark.parametrize("by", ["set", "candidate"])
def test_failures_are_not_remembered(by):
    """What failed is told to nobody; what has a score beside it is."""
    text = of(("sun", "curse", "long"), [{0}, {1}, {2}])
    one = recollection_of([text], by)
    told = one.tell(scored(one.ask(tuple(one.missing))))
    assert [game.utilities.tolist() for _, game in told] == [[score_of("weather?", "sun")]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_no_number_is_not_remembered(bad):
    """Whether or not the engine calls it a failure, what is not finite is told to nobody."""
    one = recollection_of([of(("a", "b"), [{0}, {1}])])
    one.ask(tuple(one.missing))
    ((_, game),) = one.tell(ScoredTexts(np.array([bad, 1.0])))
    assert (game.n_known, game.utilities.tolist()) == (1, [1.0])
    assert one.missing == {}


def test_as_a_whole_all_is_taken_or_nothing():
    """What is known in part, or has a failure, is neither used nor told: last bits belong to all of it."""
    text = of(("a", "b"), [{0}, {1}, set()])
    key, game = the_game(text, whole=True)
    for kept in ([True, True, False], [False, False, True]):
        one = recollection_of([text], whole=True)
        assert learned(one, (key, known_game(game.coalitions()[kept], game.utilities[kept]))) == (0, 0)
        assert [asked.n_variants for asked in one.ask([key])] == [3]
    one = recollection_of([text], whole=True)
    assert learned(one, (key, game)) == (1, 3)
    assert one.missing == {}
    failing = recollection_of([of(("a", "curse"), [{0}, {1}])], whole=True)
    assert failing.tell(scored(failing.ask(tuple(failing.missing)))) == []
    assert failing.missing == {}


@pytest.mark.parametrize("by", ["set", "candidate"])
@pytest.mark.parametrize(
    "other",
    [
        of(("a", "b"), [{0}, {1}, {0}]),
        of(("a", "b"), [{1}, {0}]),
        of(("a", "b"), [{0}]),
        of(("b", "a"), [{0}, {1}]),
        of(("a", "b", ""), [{0}, {1}]),
        of(("a", "b"), [{0}, {1}], prompt="other"),
    ],
)
def test_as_a_whole_other_coalitions_are_another_game(other, by):
    """Another list of coalitions, in number, order or content, shares nothing."""
    text = of(("a", "b"), [{0}, {1}])
    assert the_game(other, by, whole=True)[0] != the_game(text, by, whole=True)[0]
    assert the_game(text, by, whole=True)[0] == the_game(text, "set", whole=True)[0]
    assert the_game(text, by, whole=True)[0] != the_game(text)[0]


def test_a_list_of_coalitions_is_not_one_with_nobody_behind_it():
    """The number of coalitions is part of what was asked: nobody adds no bit to it."""
    keys = {the_game(of(("a",), [{0}, *[set()] * n]), whole=True)[0] for n in range(9)}
    assert len(keys) == 9


def test_sets_share_whatever_coalitions_they_ask_for():
    """One game has one key for all lists of coalitions."""
    assert the_game(of(("a", "b"), [{0}]))[0] == the_game(of(("a", "b"), [{1}, {0, 1}]))[0]


def test_candidates_share_with_all_sets_of_their_prompt():
    """A candidate is a game of one player, in whatever set and place it stands; under another prompt it is another."""
    first = recollection_of([of(("a", "b"), [{0}, {1}])], "candidate")
    second = recollection_of([of(("c", "b", "a"), [{0}, {1}, {2}]), of(("a",), [{0}], prompt="other")], "candidate")
    assert list(first.missing.values()) == [1, 1]
    games = first.tell(scored(first.ask(tuple(first.missing))))
    assert learned(second, *games) == (2, 2)
    assert [(text.prompt, text.units, text.coalitions.tolist()) for text in second.ask(tuple(second.missing))] == [
        ("weather?", ("c", "b", "a"), [[True, False, False]]),
        ("other", ("a",), [[True]]),
    ]


def test_candidates_that_are_asked_together_are_not_games():
    """By candidate each variant has one unit; another number is a defect of whoever asks."""
    for rows in ([{0, 1}], [set()], [{0}, set()]):
        with pytest.raises(ValueError, match="one unit in each variant"):
            recollection_of([of(("a", "b"), rows)], "candidate")


@pytest.mark.parametrize("whole", [False, True])
def test_copies_of_a_text_save_what_one_of_them_would_have_cost(whole):
    """A model scores equal texts once, so a game that stands twice in a round is counted once, and answered twice."""
    text = of(("a", "b"), [{0}, {1}])
    one = recollection_of([text, of(("c",), [{0}]), text], whole=whole)
    assert len(one.missing) == 2
    assert learned(one, the_game(text, whole=whole)) == (1, 2)
    one.tell(scored(one.ask(tuple(one.missing))))
    assert one.answer().usage.from_cache == 2
    assert same(one.answer(), scored([text, of(("c",), [{0}]), text]))


@pytest.mark.parametrize("whole", [False, True])
def test_copies_of_a_text_that_is_run_by_itself_are_asked_about_once(whole):
    """With `whole` each text is a pass of its own: one of its copies is asked about, and its failures are theirs."""
    text, other = of(("sun", "curse"), [{0}, {1}, set()]), of(("c",), [{0}])
    texts = [text, other, text, text]
    one = recollection_of(texts, whole=whole)
    asked = one.ask(tuple(one.missing))
    assert [found.units for found in asked] == [found.units for found in (texts[:2] if whole else texts)]
    one.tell(scored(asked))
    assert one.missing == {}
    assert same(one.answer(), scored(texts))
    assert list(one.answer().failures) == [1, 5, 8]


def test_copies_of_a_game_with_other_coalitions_are_one_game():
    """Two texts of one game that ask for different coalitions are both answered, and both are told."""
    texts = [of(("a", "b"), [{0}, {1}]), of(("a", "b"), [{0, 1}, {1}])]
    one = recollection_of(texts)
    (key,) = one.missing
    told = one.tell(scored(one.ask([key])))
    assert {found for found, _ in told} == {key}
    assert joined(told[0][1], told[1][1])[0].n_known == 3
    assert joined(told[0][1], told[1][1])[1] == 0
    assert same(one.answer(), scored(texts))


def test_usage_is_of_all_that_was_asked():
    """The costs of several questions are added up, and what was remembered stands beside them."""
    texts = [of((name,), [{0}]) for name in "abc"]
    one = recollection_of(texts)
    learned(one, the_game(texts[2]))
    for key in tuple(one.missing):
        one.ask([key])
        one.tell(ScoredTexts(np.array([1.0]), {}, EngineUsage(evaluations=1, engine_s=0.5, queue_s=0.25)))
    assert one.answer().usage == EngineUsage(evaluations=2, from_cache=1, engine_s=1.0, queue_s=0.5)


def test_a_round_without_texts_is_answered():
    """Nothing asked is nothing missing."""
    for texts, by in itertools.product(([], [of(("a",), [])], [of((), [])]), ("set", "candidate")):
        one = recollection_of(texts, by)
        assert (one.missing, one.ask(()), one.learn({})) == ({}, [], (0, 0))
        assert same(one.answer(), ScoredTexts(np.zeros(0)))


def test_a_text_without_units_is_a_game():
    """What the model says of nothing is remembered by its prompt."""
    text = of((), [set()])
    one = recollection_of([text, of((), [set()], prompt="other")])
    assert list(one.missing.values()) == [0, 0]
    assert learned(one, the_game(text)) == (1, 1)
    assert [asked.prompt for asked in one.ask(tuple(one.missing))] == ["other"]


def test_prompts_that_stand_apart_are_told_apart():
    """The bytes of a prompt are those of its own text, also where prompts alternate or are equal but not the same."""
    messages = [[{"role": "user", "content": "weather?"}] for _ in range(2)]
    texts = [of(("a",), [{0}], prompt=prompt) for prompt in ("x", "x", messages[0], "x", messages[1], "y")]
    assert len(recollection_of(texts).missing) == 3


@pytest.mark.parametrize("by", ["set", "candidate"])
def test_texts_with_special_tokens_written_out_have_no_key(by):
    """No key says so, and an equal text to which special tokens are added has another score."""
    with pytest.raises(ValueError, match="not remembered"):
        recollection_of([replace(of(UNITS, [[0]]), adds_special_tokens=False)], by)
