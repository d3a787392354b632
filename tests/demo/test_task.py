import numpy as np
import pytest

import task
from creditd.client import Client
from creditd.credit import parse_candidates, parser_of

GROUP = 8


@pytest.fixture(scope="module")
def tables():
    """What each type likes."""
    return task.Tables()


def gifts(rng, number):
    """Candidates drawn at random."""
    return [f"{rng.choice(task.ADJECTIVES)} {rng.choice(task.NOUNS)}" for _ in range(number)]


def test_the_table_is_the_same_in_every_run(tables):
    """Rewards lie between 0 and 1, probabilities sum to 1, and nothing depends on a run."""
    again = task.Tables()
    assert np.array_equal(tables.rewards, again.rewards)
    assert np.array_equal(tables.types, again.types)
    assert tables.rewards.shape == (len(task.PROMPTS), task.TYPES, len(task.ADJECTIVES), len(task.NOUNS))
    assert (tables.rewards > 0).all()
    assert (tables.rewards < 1).all()
    assert np.allclose(tables.types.sum(axis=1), 1.0)


def test_no_prompt_of_evaluation_is_one_of_training(tables):
    """The prompts are parted in two, and all are there."""
    assert not set(tables.train) & set(tables.held_out)
    assert set(tables.train) | set(tables.held_out) == set(range(len(task.PROMPTS)))
    assert len(tables.held_out) == task.HELD_OUT


def test_hedging_pays(tables):
    """A set for all types is worth more than the best gifts for one type, and than four safe ones."""
    worth = task.references(tables)
    best = worth["the best set of each prompt"]
    assert best > worth["the best gifts for one type"] + 0.2
    assert best > worth["four copies of the safest gift"] + 0.2
    assert best > worth["the same four gifts for every prompt"]


def test_for_no_prompt_is_one_gift_the_best_set(tables):
    """On every prompt some pair of gifts is worth more than the best gift alone."""
    rewards = tables.rewards.reshape(len(task.PROMPTS), task.TYPES, -1)
    mean = np.einsum("pt,ptg->pg", tables.types, rewards)
    safest = mean.argmax(axis=1)
    alone = np.take_along_axis(rewards, safest[:, None, None], axis=2)
    pairs = np.einsum("pt,ptg->pg", tables.types, np.maximum(rewards, alone))
    assert (pairs.max(axis=1) > mean.max(axis=1) + 0.02).all()


def test_weak_candidates_ride_free(tables):
    """Something worthless in the place of a candidate that no type likes best does not change the value of the set."""
    rng = np.random.default_rng(1)
    for row in range(20):
        chosen = gifts(rng, task.K)
        idle = set(range(task.K)) - set(tables.by_type(row, chosen).argmax(axis=1).tolist())
        for place in idle:
            changed = [*chosen[:place], "kite red", *chosen[place + 1 :]]
            assert tables.value(row, changed)[0] == tables.value(row, chosen)[0]


def test_the_value_of_a_set_is_the_expectation_over_types(tables):
    """max@K and the mean reward, written out for one set."""
    row, chosen = 17, ["red kite", "old boat", "red kite", "warm drum"]
    places = [(0, 0), (4, 14), (0, 0), (9, 10)]
    by_hand = [[tables.rewards[row, kind, a, n] for a, n in places] for kind in range(task.TYPES)]
    best = sum(p * max(rewards) for p, rewards in zip(tables.types[row], by_hand, strict=True))
    mean = sum(p * sum(rewards) / 4 for p, rewards in zip(tables.types[row], by_hand, strict=True))
    assert tables.value(row, chosen) == pytest.approx((best, mean), rel=1e-12)


def test_only_the_first_candidates_count(tables):
    """A fifth candidate does not play, however good it is; no candidate at all is worth 0."""
    rng = np.random.default_rng(2)
    four = gifts(rng, task.K)
    assert tables.value(3, [*four, *gifts(rng, 5)]) == tables.value(3, four)
    assert tables.value(3, []) == (0.0, 0.0)


@pytest.mark.parametrize("words", ["kite red", "red blue", "city kite", "red red", "red", ""])
def test_what_is_no_gift_has_no_reward(tables, words):
    """Two words in the wrong order or of the wrong kind are worth 0 to every type."""
    assert tables.by_type(0, [words]).tolist() == [[0.0]] * task.TYPES


def test_the_types_follow_their_probabilities_and_the_seed_alone(tables):
    """Frequencies are the table's within four standard errors; the stream does not depend on how it is cut."""
    rows = [int(tables.train[0])] * 20_000
    drawn = task.HiddenTypes(tables, 1).draw(rows)
    expected = tables.types[rows[0]]
    assert np.abs(np.bincount(drawn, minlength=task.TYPES) / len(rows) - expected).max() < 4 * 0.5 / len(rows) ** 0.5
    whole, parts = task.HiddenTypes(tables, 2), task.HiddenTypes(tables, 2)
    assert np.array_equal(whole.draw(rows[:64]), np.concatenate([parts.draw(rows[:40]), parts.draw(rows[:24])]))
    assert not np.array_equal(task.HiddenTypes(tables, 3).draw(rows), drawn)


def test_a_set_that_is_written_is_parsed_again():
    """Format and parser are inverse to each other, and what is complete is well-formed."""
    rng = np.random.default_rng(3)
    parser = parser_of(task.PARSER)
    for _ in range(50):
        chosen = gifts(rng, task.K)
        text = task.completion(chosen).removesuffix(f" {task.END}")
        assert list(parse_candidates(text, parser).texts) == chosen
        assert task.well_formed(text)
        assert not task.well_formed(text.rpartition(f" {task.MARK}")[0])
        assert not task.well_formed(f"{text} {task.MARK} red kite")
        assert not task.well_formed(text.replace(task.MARK, "red", 1))


def test_the_words_are_few_and_a_set_is_short():
    """At most 200 words, all different, at least four candidates, at most 24 new tokens."""
    assert len(task.VOCABULARY) == len(set(task.VOCABULARY)) < 200
    assert task.K >= 4
    assert len(task.completion(["red kite"] * task.K).split()) <= 24


def test_the_baseline_is_grpo_up_to_one_factor(tables):
    """`set_reward` gives every candidate the advantage of GRPO times one number that is the same for all prompts."""
    rng = np.random.default_rng(4)
    sets = [[gifts(rng, task.K) for _ in range(GROUP)] for _ in range(3)]
    rewards = [[tables.by_type(row, four)[0] for four in group] for row, group in enumerate(sets)]
    with Client("local:") as client:
        result = client.shapley(
            [four for group in rewards for four in group],
            groups=[row for row in range(3) for _ in range(GROUP)],
            credit="set_reward",
            advantage={"type": "pooled", "epsilon": 0.0},
        )
    best = np.array(rewards).max(axis=2)
    grpo = (best - best.mean(axis=1, keepdims=True)) / best.std(axis=1, ddof=1, keepdims=True)
    ratio = np.array([row.tolist() for row in result.advantages]) / grpo.reshape(-1, 1)
    factor = np.sqrt((GROUP * task.K - 1) / (task.K * (GROUP - 1)))
    assert ratio == pytest.approx(np.full(ratio.shape, factor), rel=1e-9)
