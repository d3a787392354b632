import dataclasses
import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from credit import span_oracles
from credit.span_oracles import Told
from creditd.credit import (
    CompletionCredit,
    Flag,
    group_advantages,
    grouped_advantages,
    token_densities,
    token_rewards,
)
from creditd.credit.text_units import TextUnits

ROUNDING = 1e-12
"""Sums agree to this share of the sum of the magnitudes that went in."""
AGREEMENT = 1e-9
"""Advantages are differences divided by a spread: they agree to this share of the largest D over the denominator."""

numbers = st.one_of(st.integers(-8, 8).map(lambda k: k / 4), st.floats(-1000, 1000))
alphas = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))


@st.composite
def completions(draw, *, decomposed=None):
    """A completion: any mask, runs of trainable tokens cut into units, with or without values and v(∅)."""
    mask = draw(st.lists(st.sampled_from([True, True, False]), max_size=9))
    cut = draw(st.lists(st.booleans(), min_size=len(mask), max_size=len(mask)))
    units = []
    for t, own in enumerate(mask):
        if own and units and units[-1][1] == t and not cut[t]:
            units[-1] = (units[-1][0], t + 1)
        elif own:
            units.append((t, t + 1))
    whole = draw(st.booleans()) if decomposed is None else decomposed
    if not whole and draw(st.booleans()):
        units = []
    kl = [draw(numbers) if own else draw(st.sampled_from([np.nan, np.inf, 3.0])) for own in mask]
    has_values = whole or draw(st.booleans())
    return Told(
        mask=mask,
        units=units,
        values=[draw(numbers) for _ in units] if has_values else None,
        empty=draw(numbers) if whole or draw(st.booleans()) else None,
        grand=draw(numbers),
        kl=kl,
        other=draw(numbers),
    )


def units_of(told):
    """The units as the library has them."""
    return TextUnits(
        n_tokens=len(told.mask),
        tokens=np.array(told.units, dtype=np.int64).reshape(-1, 2),
        characters=None,
        trainable=np.array(told.mask, dtype=np.bool_),
        merged=False,
        has_frozen_text=not all(told.mask),
    )


def credit_of(told):
    """The completion as the library has it."""
    return CompletionCredit(
        units=units_of(told),
        values=None if told.values is None else np.array(told.values, dtype=np.float64),
        empty=told.empty,
        grand=told.grand,
        kl=np.array(told.kl, dtype=np.float64),
        other_reward=told.other,
    )


def size_of(told):
    """Sum of the magnitudes that the rewards of a completion are made from."""
    own_kl = [kl for kl, own in zip(told.kl, told.mask, strict=True) if own]
    return 1.0 + math.fsum(map(abs, [*own_kl, *(told.values or ()), told.empty or 0.0, told.grand, told.other]))


@given(completions(), alphas)
def test_token_rewards_sum_to_what_the_completion_returns(told, alpha):
    """Whatever is known of a completion, Σ R = Σ KL + other_reward + v(P) − α·v(∅), α = 0 without v(∅)."""
    rewards, ledger = token_rewards(credit_of(told), alpha)
    used = 0.0 if told.empty is None else alpha
    kl = math.fsum(kl for kl, own in zip(told.kl, told.mask, strict=True) if own)
    law = kl + told.other + told.grand - used * (told.empty or 0.0)
    assert ledger.alpha == used
    assert abs(ledger.total - law) <= ROUNDING * size_of(told)
    if any(told.mask):
        assert abs(math.fsum(rewards) - law) <= ROUNDING * size_of(told)
    else:
        assert not rewards.any()


@given(completions(), alphas)
def test_the_ledger_adds_up(told, alpha):
    """The five parts of a ledger are what they are called, and sum to its total."""
    ledger = token_rewards(credit_of(told), alpha)[1]
    entries = dataclasses.asdict(ledger)
    for name, expected in span_oracles.parts(told, alpha).items():
        assert abs(entries[name] - expected) <= ROUNDING * size_of(told), name
    parts = [ledger.kl, ledger.other_reward, ledger.units, ledger.terminal, ledger.remainder]
    assert abs(math.fsum(parts) - ledger.total) <= ROUNDING * size_of(told)


@given(completions(), alphas)
def test_rewards_stand_at_the_last_tokens_of_units(told, alpha):
    """Each token gets its KL, α·u_j where unit j ends, and at the last trainable one the rest; masked ones 0."""
    rewards, _ = token_rewards(credit_of(told), alpha)
    expected = span_oracles.rewards(told, alpha)
    assert np.abs(rewards - expected).max(initial=0.0) <= ROUNDING * size_of(told)
    masked = rewards[~np.array(told.mask, dtype=np.bool_)]
    assert masked.tobytes() == np.zeros(len(masked)).tobytes()


@given(completions(), alphas)
def test_densities_average_to_the_reward(told, alpha):
    """D of a token is that of its unit; its token mean is v(P) + other_reward − α·v(∅); masked tokens have 0."""
    densities = token_densities(credit_of(told), alpha)
    mask = np.array(told.mask, dtype=np.bool_)
    expected = span_oracles.densities(told, alpha)
    size = len(told.mask) * size_of(told)
    assert np.abs(densities - expected).max(initial=0.0) <= ROUNDING * size
    assert densities[~mask].tobytes() == np.zeros(int((~mask).sum())).tobytes()
    if mask.any():
        used = 0.0 if told.empty is None else alpha
        law = told.grand + told.other - used * (told.empty or 0.0)
        assert abs(math.fsum(densities) / mask.sum() - law) <= ROUNDING * size


UNITS = TextUnits(
    n_tokens=7,
    tokens=np.array([[0, 2], [3, 6]]),
    characters=None,
    trainable=np.array([True, True, False, True, True, True, False]),
    merged=False,
    has_frozen_text=True,
)


@pytest.mark.parametrize(
    ("changes", "rewards", "ledger"),
    [
        ({}, [0, 0.5, 0, 0, 0, 3.0, 0], (1.5, 2.0, -0.25)),
        ({"values": None}, [0, 0, 0, 0, 0, 3.5, 0], (0.0, 0.0, 3.25)),
        ({"empty": None}, [0, 0, 0, 0, 0, 4.25, 0], (0.0, 4.0, 0.0)),
        ({"values": None, "empty": None}, [0, 0, 0, 0, 0, 4.25, 0], (0.0, 4.0, 0.0)),
        ({"units": dataclasses.replace(UNITS, tokens=UNITS.tokens[:0]), "values": np.empty(0)},
         [0, 0, 0, 0, 0, 3.5, 0], (0.0, 0.0, 3.25)),
    ],
)  # fmt: skip
def test_worked_rewards_and_fallbacks(changes, rewards, ledger):
    """Values 1 and 2 of v(P) = 4, v(∅) = 3/2, α = ½: what cannot be decomposed stands on the last trainable token."""
    known = {"units": UNITS, "values": np.array([1.0, 2.0]), "empty": 1.5, "grand": 4.0, "other_reward": 0.25}
    found, parts = token_rewards(CompletionCredit(**{**known, **changes}), 0.5)
    assert found.tolist() == rewards
    assert (parts.units, parts.terminal, parts.remainder) == ledger


def test_a_real_reward_model_returns_the_same_with_and_without_its_spans():
    """v(∅) = −3.0854, v(P) = 2.74087, spans 2.109, .252, 1.912, 1.554: at α = ½ the return is 4.2836 either way.

    The published code returns 1.3704 for a completion that it cannot decompose.
    """
    spans = dataclasses.replace(
        UNITS, n_tokens=8, tokens=np.array([[0, 3], [3, 4], [4, 6], [6, 8]]), trainable=np.ones(8, dtype=np.bool_)
    )
    known = CompletionCredit(spans, np.array([2.109, 0.252, 1.912, 1.554]), -3.0854, 2.74087)
    rewards, ledger = token_rewards(known, 0.5)
    assert rewards[[2, 3, 5]].tolist() == [1.0545, 0.126, 0.956]
    assert ledger.units == pytest.approx(2.9135, abs=1e-12)
    # The spans are rounded to three digits: their sum misses v(P) − v(∅) by .00073.
    assert ledger.remainder == pytest.approx(-0.000365, abs=1e-12)
    whole, fallback = token_rewards(dataclasses.replace(known, values=None), 0.5)
    assert round(math.fsum(rewards), 4) == round(math.fsum(whole), 4) == round(fallback.total, 4) == 4.2836
    assert whole.tolist() == [0.0] * 7 + [fallback.total]
    assert round(0.5 * known.grand, 4) == 1.3704


@st.composite
def groups_of_completions(draw):
    """Completions in three groups, what each is worth, and which group it is in."""
    told = draw(st.lists(completions(), min_size=1, max_size=6))
    return told, draw(st.lists(st.integers(0, 2), min_size=len(told), max_size=len(told)))


def advantages_of(told, groups, alpha, **options):
    """Advantages of completions, and flags of three groups."""
    credits_of_all = [credit_of(one) for one in told]
    ledgers = [token_rewards(one, alpha)[1] for one in credits_of_all]
    return grouped_advantages(
        [token_densities(one, alpha) for one in credits_of_all],
        [one.units.trainable for one in credits_of_all],
        # Not the total less its KL terms, which may cost all digits of small rewards.
        np.array([math.fsum([one.other_reward, one.units, one.terminal, one.remainder]) for one in ledgers]),
        np.array(groups, dtype=np.int64),
        3,
        **options,
    )


@given(groups_of_completions(), alphas, st.sampled_from([0, 1]), st.sampled_from([1e-4, 0.5]))
def test_advantages_are_those_of_a_loop_over_each_group(batch, alpha, ddof, epsilon):
    """Â = (D − mean of the means)/(std of all D + ε) in each group; a group without contrast has 0, flagged."""
    told, groups = batch
    found, flags = advantages_of(told, groups, alpha, ddof=ddof, epsilon=epsilon)
    for group in range(3):
        rows = [row for row, of_row in enumerate(groups) if of_row == group]
        drawn = []
        for row in rows:
            densities = span_oracles.densities(told[row], alpha)
            parts = span_oracles.parts(told[row], alpha)
            own = [d for d, is_own in zip(densities, told[row].mask, strict=True) if is_own]
            drawn.append((own, parts["total"] - parts["kl"]))
        every = [d for own, _ in drawn for d in own]
        if 0.0 < max(every, default=0.0) - min(every, default=0.0) <= 1e-6 * max(map(abs, every)):
            continue  # whether that is rounding is for the tests below
        expected = span_oracles.advantages(drawn, ddof, epsilon)
        assert bool(flags[group] & Flag.DEGENERATE_GROUP) == (expected is None)
        assert bool(flags[group] & Flag.SINGLE_RESPONSE) == (len(rows) == 1)
        largest = 1.0 + max(map(abs, [*every, *(total for _, total in drawn)]), default=0.0)
        for place, row in enumerate(rows):
            mask = np.array(told[row].mask, dtype=np.bool_)
            wanted = np.zeros(mask.sum()) if expected is None else np.array(expected[place])
            assert np.abs(found[row][mask] - wanted).max(initial=0.0) <= AGREEMENT * largest / epsilon
            assert found[row][~mask].tobytes() == np.zeros(int((~mask).sum())).tobytes()


@given(st.lists(completions().filter(lambda told: any(told.mask)), min_size=1, max_size=6), alphas)
def test_token_means_average_to_zero(told, alpha):
    """The mean over a group of the means of Â over trainable tokens is 0, as a share of the largest D over ε."""
    found, _ = advantages_of(told, [0] * len(told), alpha, epsilon=0.5)
    means = [math.fsum(mine) / sum(one.mask) for one, mine in zip(told, found, strict=True)]
    assert abs(math.fsum(means)) <= ROUNDING * sum(len(one.mask) * size_of(one) for one in told) / 0.5


@given(groups_of_completions(), alphas, st.randoms(use_true_random=False))
def test_the_order_of_a_group_changes_no_bit(batch, alpha, random):
    """In any order, and without the other groups, a completion has the same advantages to the last bit."""
    told, groups = batch
    found, flags = advantages_of(told, groups, alpha)
    order = random.sample(range(len(told)), len(told))
    shuffled, same_flags = advantages_of([told[i] for i in order], [groups[i] for i in order], alpha)
    assert [one.tobytes() for one in shuffled] == [found[i].tobytes() for i in order]
    assert flags.tobytes() == same_flags.tobytes()
    own = [row for row, group in enumerate(groups) if group == groups[0]]
    alone, _ = advantages_of([told[i] for i in own], [groups[0]] * len(own), alpha)
    assert [one.tobytes() for one in alone] == [found[i].tobytes() for i in own]


@example(
    [
        Told([True, False], [(0, 1)], [0.0], 0.0, 0.0, [1.0, math.nan], 4.299205638218553e-304),
        Told([True], [(0, 1)], [0.0], 0.0, 0.0, [0.0], 0.0),
    ]
)
@given(st.lists(completions(decomposed=True).filter(lambda told: any(told.mask)), min_size=2, max_size=6))
def test_without_units_it_is_grpo_up_to_one_factor(told):
    """At α = 0 each token has the GRPO advantage of its completion, times one positive factor of the group."""
    rewards = np.array([one.grand + one.other for one in told])
    grpo = group_advantages(rewards, np.zeros(len(told), dtype=np.int64), 1, epsilon=0.0).advantages
    found, flags = advantages_of(told, [0] * len(told), 0.0, epsilon=0.0)
    of_completion = []
    for one, mine in zip(told, found, strict=True):
        own = mine[np.array(one.mask)]
        assert own.tolist() == [own[0]] * len(own)
        of_completion.append(own[0])
    largest = int(np.argmax(np.abs(grpo)))
    if flags[0] & Flag.DEGENERATE_GROUP:
        assert np.ptp(rewards) <= 1e-9 * np.abs(rewards).max()
        return
    factor = of_completion[largest] / grpo[largest]
    assert factor > 0.0
    scale = np.abs(rewards).max() / np.ptp(rewards)
    assert np.abs(of_completion - factor * grpo).max() <= AGREEMENT * max(1.0, factor) * (1.0 + scale)


def test_a_completion_without_trainable_tokens_counts_with_its_total():
    """Returns 1, 2 and, of one that has no token to train, 6: the mean is 3."""
    found, flags = grouped_advantages(
        [np.array([1.0, 1.0]), np.array([2.0, 0.0]), np.array([0.0])],
        [np.array([True, True]), np.array([True, False]), np.array([False])],
        np.array([1.0, 2.0, 6.0]),
        np.zeros(3, dtype=np.int64),
        1,
        ddof=0,
        epsilon=0.0,
    )
    spread = math.sqrt(2.0) / 3.0
    assert [one.tolist() for one in found] == [
        pytest.approx([-2.0 / spread] * 2, rel=1e-14),
        pytest.approx([-1.0 / spread, 0.0], rel=1e-14),
        [0.0],
    ]
    assert flags.tolist() == [0]


@pytest.mark.parametrize("epsilon", [0.0, 1e-4])
def test_groups_without_contrast_give_exactly_zero(epsilon):
    """Equal D, rounding of equal D, or no more tokens than ddof: exactly 0, flagged; one completion is flagged too."""
    noisy = np.array([0.3, 0.1 + 0.2])
    found, flags = grouped_advantages(
        [noisy, noisy[::-1].copy(), np.array([5.0]), np.array([1.0, 2.0])],
        [np.ones(2, dtype=np.bool_), np.ones(2, dtype=np.bool_), np.ones(1, dtype=np.bool_), np.ones(2, dtype=bool)],
        np.array([0.3, 0.3, 5.0, 1.5]),
        np.array([0, 0, 1, 2]),
        3,
        epsilon=epsilon,
    )
    assert [one.tobytes() for one in found[:3]] == [np.zeros(2).tobytes(), np.zeros(2).tobytes(), np.zeros(1).tobytes()]
    single, flat = int(Flag.SINGLE_RESPONSE), int(Flag.DEGENERATE_GROUP)
    assert flags.tolist() == [flat, flat | single, single]
    assert found[3].tolist() == pytest.approx(np.array([-0.5, 0.5]) / (math.sqrt(0.5) + epsilon), rel=1e-14)


@pytest.mark.parametrize("offset", [2.0**30, -(2.0**30)])
def test_an_offset_of_a_group_changes_no_bit(offset):
    """On a grid, D that are all larger by one number have the same advantages to the last bit."""
    densities = [np.array([1.0, 1.5, 3.0]), np.array([0.25, 2.0])]
    masks = [np.ones(3, dtype=np.bool_), np.ones(2, dtype=np.bool_)]
    totals, groups = np.array([1.75, 1.125]), np.zeros(2, dtype=np.int64)
    near, _ = grouped_advantages(densities, masks, totals, groups, 1)
    far, _ = grouped_advantages([each + offset for each in densities], masks, totals + offset, groups, 1)
    assert [one.tobytes() for one in near] == [one.tobytes() for one in far]


def test_tiny_contrasts_keep_their_size():
    """D of 1e-200 are told apart as well as D of 1: their squares do not vanish."""
    densities, masks = [np.array([0.0, 1.0]), np.array([2.0])], [np.ones(2, dtype=np.bool_), np.ones(1, dtype=np.bool_)]
    groups = np.zeros(2, dtype=np.int64)
    near, _ = grouped_advantages(densities, masks, np.array([0.5, 2.0]), groups, 1, epsilon=0.0)
    tiny, _ = grouped_advantages(
        [each * 2.0**-700 for each in densities], masks, np.array([0.5, 2.0]) * 2.0**-700, groups, 1, epsilon=0.0
    )
    assert [one.tobytes() for one in near] == [one.tobytes() for one in tiny]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": np.zeros(3)}, r"values: got shape \(3,\), expected \(2,\)"),
        ({"kl": np.zeros(6)}, r"kl: got shape \(6,\), expected \(7,\)"),
        ({"values": np.array([0.0, np.nan])}, "values: got nan, expected finite"),
        ({"kl": np.full(7, np.inf)}, "kl: got inf"),
        ({"empty": -np.inf}, "empty: got -inf"),
        ({"grand": np.nan}, "grand: got nan"),
        ({"other_reward": 1e101}, r"other_reward: got 1e\+101, expected finite numbers of magnitude at most 1e\+100"),
    ],
)
def test_what_has_no_return_is_refused(changes, message):
    """Shapes fit, and every number that counts is finite."""
    known = {"units": UNITS, "values": np.array([1.0, 2.0]), "empty": 1.5, "grand": 4.0}
    with pytest.raises(ValueError, match=message):
        CompletionCredit(**{**known, **changes})


@pytest.mark.parametrize("alpha", [-0.1, 1.1, np.nan])
def test_alpha_is_a_share(alpha):
    """α outside [0, 1] is refused, also where it would not be used."""
    for empty in (1.5, None):
        completion = CompletionCredit(UNITS, None, empty, 4.0)
        for refuses in (token_rewards, token_densities):
            with pytest.raises(ValueError, match="expected a number from 0 to 1"):
                refuses(completion, alpha)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"totals": np.zeros(1)}, "1 totals"),
        ({"densities": [np.array([np.nan]), np.zeros(1)]}, "densities: got nan"),
        ({"totals": np.array([np.inf, 0.0])}, "totals: got inf"),
        ({"ddof": -1}, "got -1 and 0.0001"),
        ({"epsilon": -1.0}, "got 1 and -1.0"),
    ],
)
def test_columns_that_do_not_fit_are_refused(changes, message):
    """One D, one mask, one total and one group for each completion, finite; ddof and ε not negative."""
    known = {
        "densities": [np.zeros(1), np.zeros(1)],
        "trainable": [np.ones(1, dtype=np.bool_)] * 2,
        "totals": np.zeros(2),
        "groups": np.zeros(2, dtype=np.int64),
        "n_groups": 1,
    }
    with pytest.raises(ValueError, match=message):
        grouped_advantages(**{**known, **changes})
