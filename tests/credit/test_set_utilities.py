import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from credit import oracles, utility_oracles
from credit.batches import EXACT
from credit.known_sets import RULES, UTILITIES, columns_of, eighths, known_sets
from credit.utility_oracles import KnownSet, credit_of, empty_of, game_of
from creditd.credit import (
    Coverage,
    FacilityLocation,
    LogSumExp,
    MalformedPolicy,
    Max,
    Normalization,
    Plurality,
    SetCreditOptions,
    Shapley,
    SumOfUtilities,
    Table,
    set_credit,
)
from creditd.credit.candidate_features import (
    CandidateFeatures,
    players_labels,
    players_scores,
    players_similarities,
    players_topics,
)
from creditd.credit.candidate_sets import RewardPart
from creditd.credit.flags import Flag
from creditd.credit.set_utilities import NEEDS, empty_utility, max_players_of, method_of, needs, terms_of

FEW = max(1, settings().max_examples // 5)
"""Every utility runs, with every rule: a profile with fewer examples has fewer here too."""
AGREEMENT = 1e-9
"""Advantages are credits divided by spreads of at least 1e-2."""
PLAIN = Normalization(type="none")
BY_KERNEL = [name for name in UTILITIES if "log-det" not in name and "kernel" not in name]
"""Utilities whose formulas promise equal bits for permuted candidates; determinants do not."""

every_utility = pytest.mark.parametrize("name", UTILITIES)


def solve(sets, utility, rule=None, *, normalization=PLAIN, malformed=None, batch=None, **more):
    """The answer to a batch."""
    options = SetCreditOptions(
        utility=utility,
        rule=Shapley() if rule is None else rule,
        normalization=normalization,
        malformed=MalformedPolicy() if malformed is None else malformed,
    )
    return set_credit(columns_of(sets, **more) if batch is None else batch, options)


def row_of(answer, row, column="credits"):
    """The numbers of one set."""
    return getattr(answer, column)[answer.row_splits[row] : answer.row_splits[row + 1]]


def bits(answer, row):
    """Everything that an answer says of the credit of one set, to the last bit."""
    columns = (answer.utility_empty, answer.utility_grand, answer.credit_sums, answer.gaps)
    return [row_of(answer, row).tobytes(), *(column[row].tobytes() for column in columns)]


def assert_close(found, expected, scale):
    """Equal to a share of the largest utility."""
    np.testing.assert_allclose(found, expected, rtol=0.0, atol=EXACT * max(scale, 1e-3))


@every_utility
@settings(max_examples=FEW)
@given(data=st.data())
def test_every_utility_is_its_definition(name, data):
    """Shapley credits of sets of several sizes in one batch are means over all orders, and close the utility."""
    utility, choice = UTILITIES[name]
    sets = data.draw(st.lists(known_sets(), min_size=1, max_size=4))
    answer = solve(sets, utility)
    assert answer.errors == ()
    assert answer.method == method_of(utility)
    for row, one in enumerate(sets):
        values = game_of(one, choice)
        scale = oracles.scale_of(values)
        assert_close(row_of(answer, row), credit_of(values, ("shapley",), one.unions), scale)
        assert_close(answer.utility_empty[row], values[0], scale)
        assert_close(answer.utility_grand[row], values[-1], scale)
        assert_close(answer.gaps[row], 0.0, scale)


@every_utility
@settings(max_examples=max(5, FEW // 4))
@given(data=st.data())
def test_every_rule_is_its_definition_under_every_utility(name, data):
    """Semivalues, prefix gains, Owen values and blends of two rules, by formula or through all 2^K utilities."""
    utility, choice = UTILITIES[name]
    size = data.draw(st.integers(1, 5))
    sets = data.draw(st.lists(known_sets(size, size), min_size=1, max_size=2))
    for of_size in RULES.values():
        rule, definition = of_size(size)
        answer = solve(sets, utility, rule)
        assert answer.errors == ()
        for row, one in enumerate(sets):
            values = game_of(one, choice)
            expected = credit_of(values, definition, one.unions)
            assert_close(row_of(answer, row), expected, oracles.scale_of(values))


@every_utility
@settings(max_examples=max(5, FEW // 4))
@given(data=st.data())
def test_copies_are_null_players_under_every_utility(name, data):
    """Collapsed duplicates have credit 0, and the others what they have in the game in which copies change nothing."""
    utility, choice = UTILITIES[name]
    one = data.draw(known_sets(1, 4))
    places = [*range(one.size), *data.draw(st.lists(st.integers(0, one.size - 1), max_size=2))]
    doubled = one.only(places)
    copies = list(range(one.size, len(places)))
    values = game_of(doubled, choice)
    batch = columns_of([doubled], text_codes=np.array(places, dtype=np.int64))
    for rule_name, of_size in RULES.items():
        if rule_name.startswith("owen") or "blend" in rule_name:
            continue  # unions are about candidates that play
        rule, definition = of_size(len(places))
        answer = solve(None, utility, rule, malformed=MalformedPolicy(duplicates="collapse"), batch=batch)
        expected = credit_of(values, definition, doubled.unions, copies)
        assert_close(row_of(answer, 0), expected, oracles.scale_of(values))
        assert row_of(answer, 0)[copies].tolist() == [0.0] * len(copies)
        assert bool(answer.flags[0] & Flag.DUPLICATES_COLLAPSED) == bool(copies)


@pytest.mark.parametrize("utility", [LogSumExp(temperature=0.5, empty=0.25), Plurality(empty=0.25)])
@pytest.mark.parametrize("n_copies", range(1, 12))
def test_copies_do_not_cost_a_formula(utility, n_copies):
    """Sets too large to enumerate keep their formula with any number of copies, and credits as without the copies."""
    size = 29
    one = KnownSet(
        rewards=tuple(place % 5 / 4 for place in range(size)),
        labels=tuple(place % 5 for place in range(size)),
        topics=(frozenset(),) * size,
        scores=((0.0,),) * size,
        vectors=((0.0,),) * size,
        unions=(0,) * size,
    )
    copied = one.only([*range(size), *range(n_copies)])
    codes = np.array([*range(size), *range(n_copies)])
    batch = columns_of([copied], text_codes=codes, label_numbers=range(5))
    answer = solve(None, utility, malformed=MalformedPolicy(duplicates="collapse"), batch=batch)
    alone = solve([one], utility, label_numbers=range(5))
    assert answer.errors == ()
    assert_close(row_of(answer, 0), [*row_of(alone, 0), *[0.0] * n_copies], 1.0)


@every_utility
@settings(max_examples=max(5, FEW // 2))
@given(data=st.data())
def test_neighbours_change_no_bit(name, data):
    """A set has the same bits alone and among others, whatever their sizes and the numbers of topics and labels."""
    utility, _ = UTILITIES[name]
    one, others = data.draw(known_sets()), data.draw(st.lists(known_sets(max_size=6), min_size=1, max_size=4))
    place = data.draw(st.integers(0, len(others)))
    order = data.draw(st.permutations(range(4)))
    offset = data.draw(st.integers(0, 5))
    for of_size in (RULES["shapley"], RULES["prefix_gain"], RULES["owen"], RULES["max_at_k"]):
        rule, _ = of_size(one.size)
        alone = solve([one], utility, rule)
        batch = [*others[:place], one, *others[place:]]
        # Topics keep their order when a batch has more of them; labels are numbered as they come.
        among = solve(batch, utility, rule, topic_numbers=[2 * t + offset for t in range(6)], label_numbers=order)
        assert bits(among, place) == bits(alone, 0)


@pytest.mark.parametrize("name", UTILITIES)
@settings(max_examples=max(5, FEW // 2))
@given(data=st.data())
def test_permuted_candidates_have_permuted_credits(name, data):
    """To the last bit where a kernel has a formula, within rounding where determinants are taken."""
    utility, choice = UTILITIES[name]
    one = data.draw(known_sets(max_size=6))
    places = data.draw(st.permutations(range(one.size)))
    credits_ = row_of(solve([one], utility), 0)
    permuted = row_of(solve([one.only(places)], utility), 0)
    if name in BY_KERNEL:
        assert permuted.tobytes() == credits_[places].tobytes()
    assert_close(permuted, credits_[places], oracles.scale_of(game_of(one, choice)))


@pytest.mark.parametrize("name", BY_KERNEL)
@settings(max_examples=max(5, FEW // 2))
@given(data=st.data())
def test_equal_candidates_have_equal_bits(name, data):
    """Candidates that are equal in everything share to the last bit."""
    utility, _ = UTILITIES[name]
    one = data.draw(known_sets(max_size=3))
    twice = one.only([*range(one.size), *range(one.size)])
    for rule in ("shapley", "leave_one_out", "own_reward"):
        credits_ = row_of(solve([twice], utility, RULES[rule](twice.size)[0]), 0)
        assert credits_[: one.size].tobytes() == credits_[one.size :].tobytes()


@every_utility
@settings(max_examples=max(5, FEW // 2))
@given(data=st.data())
def test_candidates_without_a_reward_do_not_play(name, data):
    """A null takes a candidate out of the game; a set of nulls is worth v(∅), in the bits of any other set."""
    utility, choice = UTILITIES[name]
    sets = data.draw(st.lists(known_sets(unscored=True), min_size=1, max_size=3))
    sets.append(KnownSet((None,), (0,), (frozenset(),), ((0.0,) * 3,), ((0.0, 0.0),), (0,)))
    answer = solve(sets, utility)
    assert answer.errors == ()
    assert len(set(answer.utility_empty.tolist())) == 1
    for row, one in enumerate(sets):
        scored = [place for place, reward in enumerate(one.rewards) if reward is not None]
        values = game_of(one.only(scored), choice)
        found = row_of(answer, row)
        assert np.isnan(np.delete(found, scored)).all()
        expected = credit_of(values, ("shapley",), [0] * len(scored))
        assert_close(found[scored], expected, oracles.scale_of(values))
        assert_close(answer.utility_grand[row], values[-1], oracles.scale_of(values))
    assert empty_utility(utility) == answer.utility_empty[-1]
    assert_close(empty_utility(utility), empty_of(choice), 1.0)


# Named rewards


@pytest.mark.parametrize("kind", ["pooled", "centered", "response_preserving", "none"])
@pytest.mark.parametrize("name", ["max", "mean", "log-sum-exp", "redundancy", "a sum of all kinds"])
@settings(max_examples=max(5, FEW // 2))
@given(data=st.data())
def test_parts_are_normalised_one_by_one(name, kind, data):
    """With parts, credits and utilities are weighted sums over the parts, and so are advantages, each on its own."""
    utility, choice = UTILITIES[name]
    sets = data.draw(st.lists(known_sets(2, 4), min_size=2, max_size=3))
    weights = data.draw(st.lists(eighths.filter(bool), min_size=1, max_size=3))
    columns = [[data.draw(st.lists(eighths, min_size=o.size, max_size=o.size)) for o in sets] for _ in weights]
    flat = [np.array(list(itertools.chain.from_iterable(rows))) for rows in columns]
    parts = tuple(RewardPart(weight, values) for weight, values in zip(weights, flat, strict=True))
    total = sum(weight * values for weight, values in zip(weights, flat, strict=True))
    batch = dataclasses.replace(columns_of(sets, groups=[0] * len(sets)), rewards=total, parts=parts)
    answer = solve(None, utility, normalization=Normalization(type=kind, epsilon=1e-2), batch=batch)
    expected = [[0.0] * one.size for one in sets]
    advantages = [[0.0] * one.size for one in sets]
    whole, grand = [0.0] * len(sets), [0.0] * len(sets)
    for weight, rows in zip(weights, columns, strict=True):
        games = [
            game_of(dataclasses.replace(one, rewards=tuple(row)), choice) for one, row in zip(sets, rows, strict=True)
        ]
        credits_ = [credit_of(game, ("shapley",), one.unions) for game, one in zip(games, sets, strict=True)]
        group = [
            oracles.Response([len(row) * c for c in row], game[-1], game[0])
            for row, game in zip(credits_, games, strict=True)
        ]
        found = oracles.normalize_group(group, kind, epsilon=1e-2)
        for row in range(len(sets)):
            expected[row] = [a + weight * c for a, c in zip(expected[row], credits_[row], strict=True)]
            advantages[row] = [a + weight * c for a, c in zip(advantages[row], found.candidates[row], strict=True)]
            whole[row] += weight * found.responses[row]
            grand[row] += weight * games[row][-1]
    for row in range(len(sets)):
        assert_close(row_of(answer, row), expected[row], 10.0)
        np.testing.assert_allclose(row_of(answer, row, "advantages"), advantages[row], rtol=0.0, atol=1e3 * EXACT)
        np.testing.assert_allclose(answer.set_advantages[row], whole[row], rtol=0.0, atol=1e3 * EXACT)
        assert_close(answer.utility_grand[row], grand[row], 10.0)


def parts_of(*columns):
    """A batch of one set with these rewards as parts of equal weight, and their sum."""
    size = len(columns[0])
    one = KnownSet((0.0,) * size, (0,) * size, (frozenset(),) * size, ((0.0,),) * size, ((0.0,),) * size, (0,) * size)
    flat = [np.array(column) for column in columns]
    return dataclasses.replace(
        columns_of([one, one]),
        rewards=np.tile(sum(flat), 2),
        parts=tuple(RewardPart(1.0, np.tile(column, 2)) for column in flat),
    )


def test_candidates_of_one_answer_agree_in_every_part():
    """Rewards of one answer that differ, but for their sum, are no rewards of an answer."""
    answer = solve(None, Plurality(), batch=parts_of([1.0, 2.0], [2.0, 1.0]))
    assert {(e.code, e.field, e.position) for e in answer.errors} == {("invalid_request", "reward", 1)}


def test_copies_of_one_text_agree_in_every_part():
    """Rewards of one text that differ, but for their sum, are no rewards of a text."""
    batch = dataclasses.replace(parts_of([1.0, 2.0], [2.0, 1.0]), text_codes=np.zeros(4, dtype=np.int64))
    answer = solve(None, Max(), malformed=MalformedPolicy(duplicates="collapse"), batch=batch)
    assert {(e.code, e.field, e.position) for e in answer.errors} == {("invalid_request", "reward", 1)}


def test_a_part_that_is_no_number_fails_its_set():
    """One NaN in one of the parts costs one set, at its candidate."""
    batch = parts_of([1.0, 2.0], [2.0, 1.0])
    batch.parts[1].rewards[3] = np.nan
    answer = solve(None, Max(), batch=batch)
    assert [(e.row, e.code, e.field, e.position) for e in answer.errors] == [(1, "non_finite_value", "reward", 1)]


# What a utility is


@every_utility
def test_a_utility_says_what_it_needs(name):
    """A batch of nothing but what the utility needs is answered as one with everything."""
    utility, _ = UTILITIES[name]
    one = KnownSet(
        rewards=(0.5, 0.25, 0.5),
        labels=(0, 1, 0),
        topics=(frozenset({1}), frozenset(), frozenset({0, 1})),
        scores=((0.5, 0.25, 0.0), (0.0, 1.0, 0.5), (0.25, 0.25, 0.25)),
        vectors=((1.0, 0.0), (0.5, 0.5), (0.0, 0.25)),
        unions=(0, 0, 1),
    )
    full, wanted = columns_of([one]), needs(utility)
    columns = {
        "label": ("labels",),
        "topics": ("topics", "topic_splits", "topic_weights"),
        "scores": ("scores", "score_splits"),
        "similarities": ("similarities", "similarity_splits"),
    }
    kept = {column for need in wanted if need in columns for column in columns[need]}
    dropped = {field.name: None for field in dataclasses.fields(full.features) if field.name not in kept}
    bare = dataclasses.replace(full, features=dataclasses.replace(full.features, **dropped))
    if "reward" not in wanted:
        bare = dataclasses.replace(bare, rewards=np.zeros(3))
    assert bits(solve(None, utility, batch=bare), 0) == bits(solve([one], utility), 0)
    for need in sorted(wanted & set(columns)):
        lacking = dataclasses.replace(full, features=dataclasses.replace(full.features, **{columns[need][0]: None}))
        with pytest.raises(ValueError, match="need"):
            solve(None, utility, batch=lacking)


def test_a_column_that_is_absent_is_named():
    """Without any features, what is needed is said."""
    batch = dataclasses.replace(columns_of([]), features=None)
    for utility in (Plurality(), Coverage(), FacilityLocation(), UTILITIES["redundancy"][0]):
        with pytest.raises(ValueError, match=r"this .* needs"):
            solve(None, utility, batch=batch)


def test_a_sum_is_of_utilities_with_formulas():
    """One to sixteen terms, finite weights, no tables and no sums."""
    with pytest.raises(ValueError, match="1 to 16 terms: got 0"):
        SumOfUtilities(())
    with pytest.raises(ValueError, match="1 to 16 terms: got 17"):
        SumOfUtilities(((1.0, Max()),) * 17)
    with pytest.raises(ValueError, match="a weight is nan"):
        SumOfUtilities(((float("nan"), Max()),))
    with pytest.raises(ValueError, match="a term is a table"):
        SumOfUtilities(((1.0, Table()),))
    with pytest.raises(ValueError, match="a term is a sum"):
        SumOfUtilities(((1.0, SumOfUtilities(((1.0, Max()),))),))


def test_what_a_sum_needs_is_what_its_terms_need():
    """Needs are joined; the fewest players of its terms are its own."""
    utility = SumOfUtilities(((1.0, Max()), (2.0, Coverage()), (1.0, UTILITIES["log-det"][0])))
    assert needs(utility) == {"reward", "topics", "similarities"}
    assert terms_of(utility) == tuple(term for _, term in utility.terms)
    assert max_players_of(utility) == 16
    assert max_players_of(Max()) is None
    assert set(NEEDS) >= {term.type for term in terms_of(utility)}


def test_the_empty_set_of_a_table_is_its_own():
    """A table alone knows what nothing is worth; a facility needs weights to know it."""
    with pytest.raises(ValueError, match="first entry"):
        empty_utility(Table())
    with pytest.raises(ValueError, match="facility_location needs weights"):
        empty_utility(FacilityLocation(unserved=1.0))
    assert empty_utility(FacilityLocation(weights=(0.5, 2.0), unserved=3.0)) == 7.5


def test_every_definition_has_a_utility():
    """The definitions and the utilities under test are the same, and all there are but tables."""
    names = {choice[0] for _, choice in UTILITIES.values() if isinstance(choice, tuple)}
    assert names == set(utility_oracles._GAMES) == set(NEEDS) - {"table"}


@pytest.mark.parametrize(
    ("gather", "sentence"),
    [
        (lambda features: players_labels(features, np.zeros((1, 1), dtype=np.int64)), "labels"),
        (lambda features: players_scores(features, np.zeros((1, 1), dtype=np.int64)), "scores"),
        (lambda features: players_topics(features, np.zeros((1, 1), dtype=np.int64)), "topics"),
        (
            lambda features: players_similarities(features, np.zeros(1, dtype=np.int64), np.zeros((1, 1), np.int64), 1),
            "similarities",
        ),
    ],
)
def test_features_that_are_absent_are_named(gather, sentence):
    """Gathering what is not there says what it is."""
    with pytest.raises(ValueError, match=f"this utility needs {sentence}"):
        gather(CandidateFeatures())
