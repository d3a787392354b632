from itertools import permutations

import numpy as np
import pytest

import scar_task as task

THEME = 2
PAIR = task.nouns_of(THEME)[:2]
ONE, OTHER, PRAISE, SPOILER, DECOY = task.nouns_of(THEME)[2:7]
PLAIN = task.nouns_of(THEME)[7]


def units(*nouns):
    """A remark on each noun."""
    return [f"old {noun} ," for noun in nouns]


def reward(*nouns):
    """What a note on the nouns is worth."""
    return task.reward(THEME, " ".join(units(*nouns)))


def by_orders(texts):
    """Shapley values as means of marginal contributions over all orders."""
    totals = np.zeros(len(texts))
    orders = list(permutations(range(len(texts))))
    for order in orders:
        there = []
        for i in order:
            before = task.reward(THEME, " ".join(texts[j] for j in sorted(there)))
            there.append(i)
            totals[i] += task.reward(THEME, " ".join(texts[j] for j in sorted(there))) - before
    return totals / len(orders)


def test_rewards_are_what_the_task_says():
    """AND needs both, OR one of two, praise is turned by the spoiler, and nothing else counts."""
    assert reward(PAIR[0]) == reward(PAIR[1]) == 0.0
    assert reward(*PAIR) == 1.0
    assert reward(ONE) == reward(OTHER) == reward(ONE, OTHER) == 1.0
    assert reward(PRAISE) == 1.0
    assert reward(PRAISE, SPOILER) == -1.0
    assert reward(SPOILER) == reward(DECOY) == reward(PLAIN) == reward() == 0.0
    assert reward(*PAIR, ONE, PRAISE, DECOY) == task.BEST == task.REWARDS.max()
    assert task.REWARDS.min() == -1.0


def test_themes_have_nouns_of_their_own():
    """The same nouns in another order, so that what a note is worth depends on its theme."""
    assert all(sorted(task.nouns_of(theme)) == sorted(task.NOUNS) for theme in range(len(task.THEMES)))
    assert len({task.nouns_of(theme)[:7] for theme in range(len(task.THEMES))}) == len(task.THEMES)


@pytest.mark.parametrize(
    ("nouns", "causes", "shapley"),
    [
        ((*PAIR, PLAIN), (True, True, False), (0.5, 0.5, 0.0)),
        ((PAIR[0], PLAIN), (False, False), (0.0, 0.0)),
        ((ONE, OTHER, DECOY), (True, True, False), (0.5, 0.5, 0.0)),
        ((PRAISE, SPOILER), (True, True), (0.0, -1.0)),
        ((SPOILER, DECOY), (False, False), (0.0, 0.0)),
        ((ONE, ONE), (True, True), (0.5, 0.5)),
    ],
)
def test_the_truth_of_small_texts(nouns, causes, shapley):
    """By hand: half a pair is no cause, a spoiler is one only beside praise, and praise that is spoilt gets 0."""
    truth = task.truth(THEME, units(*nouns))
    assert truth.causes.tolist() == list(causes)
    assert truth.shapley == pytest.approx(shapley, abs=1e-12)


def test_shapley_values_are_means_over_orders():
    """Of six units with everything in them; they sum to the reward."""
    texts = units(*PAIR, ONE, PRAISE, SPOILER, OTHER)
    truth = task.truth(THEME, texts)
    assert truth.shapley == pytest.approx(by_orders(texts), abs=1e-12)
    assert truth.shapley.sum() == pytest.approx(task.reward(THEME, " ".join(texts)), abs=1e-12)


def test_too_many_units_are_refused():
    """All sets are looked at, so their number has a limit."""
    with pytest.raises(ValueError, match="got 15 units; expected at most 14"):
        task.truth(THEME, units(*[PLAIN] * 15))


def test_a_decoy_stands_where_the_reward_is_high_and_does_nothing():
    """Over 2,000 taught notes presence and reward correlate; without the tie they hardly do."""

    def correlation(*, decoys):
        rng = np.random.default_rng(1)
        notes = [task.taught_note(rng, THEME, decoys=decoys) for _ in range(2000)]
        there = [task.has_decoy(task.roles_in(THEME, note)) for note in notes]
        return np.corrcoef(there, [task.reward(THEME, note) for note in notes])[0, 1]

    assert correlation(decoys=True) > 0.4
    assert abs(correlation(decoys=False)) < 0.2


def test_notes_have_the_form_of_notes():
    """At most eight remarks of three words each, all of the vocabulary."""
    rng = np.random.default_rng(2)
    notes = [task.taught_note(rng, THEME) for _ in range(300)]
    assert {len(note.split()) for note in notes} == {3 * remarks for remarks in range(task.REMARKS + 1)}
    assert len(task.start_note(rng).split()) == 3 * task.REMARKS
    assert all(word in task.VOCABULARY for note in notes for word in note.split())
