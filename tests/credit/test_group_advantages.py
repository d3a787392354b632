import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit import group_oracles, oracles
from credit.batches import CENTRED, WORKED, grid
from creditd.credit import (
    GRPO_EPSILONS,
    Flag,
    Whitening,
    gdpo_advantages,
    group_advantages,
    weighted_rewards,
)

AGREEMENT = 1e-10
"""The oracle sums exactly, the library in order: a few roundings, divided by a spread of at least 1/16."""

RULES = ("grpo", "dr_grpo", "rloo")
batches = st.lists(
    st.tuples(st.integers(0, 3), st.one_of(st.none(), grid, grid, st.floats(-100, 100).map(lambda x: round(x, 3)))),
    min_size=1,
    max_size=20,
)


def solve(pairs, **options):
    """Advantages of (group, reward or None) pairs, and the flags of four groups."""
    rewards = np.array([np.nan if r is None else r for _, r in pairs])
    groups = np.array([g for g, _ in pairs], dtype=np.int64)
    missing = np.array([r is None for _, r in pairs])
    return group_advantages(rewards, groups, 4, missing=missing, **options)


@pytest.mark.parametrize("rule", RULES)
@given(pairs=batches, ddof=st.sampled_from([0, 1]), epsilon=st.sampled_from([0.0, *GRPO_EPSILONS.values()]))
def test_each_group_is_solved_by_its_formula(rule, pairs, ddof, epsilon):
    """Groups interleaved in any order, with nulls, equal a loop over each group; flags name what is unusual."""
    answer = solve(pairs, rule=rule, ddof=ddof, epsilon=epsilon)
    groups = defaultdict(list)
    for row, (group, _) in enumerate(pairs):
        groups[group].append(row)
    for group in range(4):
        rows = groups[group]
        rewards = [pairs[row][1] for row in rows]
        expected = oracles.advantages_of_group(rewards, rule, ddof=ddof, epsilon=epsilon)
        size = max(map(abs, expected), default=0.0) + 1.0
        assert np.abs(answer.advantages[rows] - expected).max(initial=0.0) <= AGREEMENT * 100 * size
        present = [r for r in rewards if r is not None]
        flags = Flag(int(answer.flags[group]))
        assert (Flag.DEGENERATE_GROUP in flags) == (len(set(present)) <= 1)
        assert (Flag.SINGLE_RESPONSE in flags) == (len(present) == 1)
        assert (Flag.GROUP_INCOMPLETE in flags) == (len(present) < len(rewards))


@given(batches, st.sampled_from(RULES))
def test_advantages_of_a_group_sum_to_zero(pairs, rule):
    """Every rule is centred within each group, as a share of its largest reward over its denominator."""
    answer = solve(pairs, rule=rule)
    for group in range(4):
        own = [a for a, (g, _) in zip(answer.advantages, pairs, strict=True) if g == group]
        rewards = [r for g, r in pairs if g == group and r is not None]
        if rewards:
            denominator = oracles.deviation(rewards, 1) + GRPO_EPSILONS["trl"] if rule == "grpo" else 1.0
            assert abs(math.fsum(own)) <= CENTRED * max(1.0, *map(abs, rewards)) / min(1.0, denominator)


@given(batches, st.sampled_from(RULES), st.randoms(use_true_random=False))
def test_order_and_company_change_no_bit(pairs, rule, random):
    """An advantage is the same to the last bit in any order of its group, and with the other groups taken away."""
    order = list(range(len(pairs)))
    random.shuffle(order)
    answer = solve(pairs, rule=rule)
    shuffled = solve([pairs[i] for i in order], rule=rule)
    assert answer.advantages[order].tobytes() == shuffled.advantages.tobytes()
    assert answer.flags.tobytes() == shuffled.flags.tobytes()
    own = [row for row, (g, _) in enumerate(pairs) if g == pairs[0][0]]
    assert solve([pairs[row] for row in own], rule=rule).advantages.tobytes() == answer.advantages[own].tobytes()


@pytest.mark.parametrize(("ddof", "winner"), [(1, 1.0), (0, math.sqrt(1.5))])
def test_worked_values_of_grpo(ddof, winner):
    """Rewards 1, ½, 0 have GRPO advantages ±1 with ddof 1 and ±1.2247 with ddof 0."""
    answer = solve([(0, 1.0), (0, 0.5), (0, 0.0)], ddof=ddof, epsilon=0.0)
    assert answer.advantages[:3] == pytest.approx([winner, 0.0, -winner], abs=WORKED)


def test_worked_group_of_four_responses():
    """The best rewards .9, .2, 1, .8 have GRPO advantages .4869, −1.4608, .7652, .2087."""
    answer = solve([(2, 0.9), (2, 0.2), (2, 1.0), (2, 0.8)], epsilon=0.0)
    assert answer.advantages.round(4).tolist() == [0.4869, -1.4608, 0.7652, 0.2087]


def test_worked_values_of_dr_grpo_and_rloo():
    """Rewards 1, ½, 0: r − mean is ±½; r − mean of the others is half as much again."""
    group = [(1, 1.0), (1, 0.5), (1, 0.0)]
    assert solve(group, rule="dr_grpo").advantages == pytest.approx([0.5, 0.0, -0.5], abs=WORKED)
    assert solve(group, rule="rloo").advantages == pytest.approx([0.75, 0.0, -0.75], abs=WORKED)


def test_conventions_differ_in_epsilon():
    """Each framework adds its own ε to the standard deviation."""
    assert GRPO_EPSILONS == {"trl": 1e-4, "verl": 1e-6, "openrlhf": 1e-9}
    for epsilon in GRPO_EPSILONS.values():
        answer = solve([(0, 1.0), (0, 0.5), (0, 0.0)], epsilon=epsilon)
        assert answer.advantages[0] == pytest.approx(0.5 / (0.5 + epsilon), rel=1e-14)
    default = group_advantages(np.array([1.0, 0.5, 0.0]), np.zeros(3, dtype=np.int64), 1)
    assert default.advantages[0] == pytest.approx(0.5 / 0.5001, rel=1e-14)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rewards", [[0.1], [0.1, 0.1, 0.1], [None], [None, 0.3], [1 / 3] * 7])
def test_groups_without_contrast_give_exactly_zero(rule, rewards):
    """One response, equal responses or none at all: the advantage is 0.0 to the bit, and the group is flagged."""
    answer = solve([(1, r) for r in rewards], rule=rule, epsilon=0.0)
    assert answer.advantages.tolist() == [0.0] * len(rewards)
    assert not np.signbit(answer.advantages).any()
    flags = Flag(int(answer.flags[1]))
    assert Flag.DEGENERATE_GROUP in flags
    assert (Flag.SINGLE_RESPONSE in flags) == (sum(r is not None for r in rewards) == 1)


def test_too_many_degrees_of_freedom_give_zero():
    """A group with no more responses than ddof has no standard deviation, and is flagged."""
    answer = solve([(0, 1.0), (0, 2.0)], ddof=2)
    assert answer.advantages.tolist() == [0.0, 0.0]
    assert Flag.DEGENERATE_GROUP in Flag(int(answer.flags[0]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_reward_that_is_not_finite_is_refused(value):
    """NaN and infinities are an error unless they are marked as missing."""
    rewards = np.array([0.0, value])
    groups = np.zeros(2, dtype=np.int64)
    with pytest.raises(ValueError, match="finite"):
        group_advantages(rewards, groups, 1)
    marked = group_advantages(rewards, groups, 1, missing=np.array([False, True]))
    assert marked.advantages.tolist() == [0.0, 0.0]


def test_no_responses_have_no_advantages():
    """An empty batch gives an empty answer."""
    assert group_advantages(np.empty(0), np.empty(0, dtype=np.int64), 0).advantages.shape == (0,)


def test_two_rewards_a_rounding_apart_are_one_deviation_from_their_mean():
    """Numerator and denominator see the same differences, however small they are beside the rewards."""
    rewards = np.array([0.1 + 0.2, 0.3])
    result = group_advantages(rewards, np.zeros(2, dtype=np.int64), 1, epsilon=0.0)
    assert np.abs(result.advantages) == pytest.approx(np.sqrt(0.5), rel=1e-12)


# Draws.

DRAWS = ("pass_at_k", "max_at_k", "leave_one_out")
amounts = st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(-2, 2).map(lambda x: round(x, 3)))
batches_of_draws = st.lists(st.tuples(st.integers(0, 3), amounts), min_size=1, max_size=16)


@pytest.mark.parametrize("rule", DRAWS)
@given(pairs=batches_of_draws, k=st.integers(1, 5), threshold=st.sampled_from([0.25, 0.5]))
def test_rules_of_draws_are_solved_by_enumeration(rule, pairs, k, threshold):
    """Groups interleaved in any order, with nulls, equal an enumeration of each; flags name what is unusual."""
    answer = solve(pairs, rule=rule, k=k, threshold=threshold)
    assert solve(pairs[::-1], rule=rule, k=k, threshold=threshold).advantages.tobytes() == (
        answer.advantages[::-1].tobytes()
    )
    for group in range(4):
        own = [row for row, (g, _) in enumerate(pairs) if g == group]
        rewards = [pairs[row][1] for row in own]
        expected = group_oracles.drawn(rewards, rule, k=k, threshold=threshold)
        assert answer.advantages[own] == pytest.approx(expected, rel=0, abs=1e-11)
        present, flags = [r for r in rewards if r is not None], Flag(int(answer.flags[group]))
        if rule == "pass_at_k":
            flat = group_oracles.pass_at_k([r >= threshold for r in present], k) is None
        else:
            flat = rule == "max_at_k" and k > 1 and not group_oracles.has_contrast(rewards)
        assert (Flag.DEGENERATE_GROUP in flags) == flat
        assert (Flag.SINGLE_RESPONSE in flags) == (len(present) == 1)
        assert (Flag.GROUP_INCOMPLETE in flags) == (len(present) < len(rewards))


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 1.0])), min_size=1, max_size=16))
def test_one_draw_is_grpo_with_the_population_deviation(pairs):
    """`pass_at_k` with k = 1 equals `grpo` with ddof 0 and ε = 0 on rewards 0 and 1, which need no threshold."""
    one = solve(pairs, rule="pass_at_k", k=1)
    assert one.advantages == pytest.approx(solve(pairs, ddof=0, epsilon=0.0).advantages, rel=1e-12, abs=1e-12)
    assert one.flags.tobytes() == solve(pairs, ddof=0, epsilon=0.0).flags.tobytes()


def test_uncentred_rules_follow_their_formulas_where_there_is_no_contrast():
    """A single .7 keeps .7 under leave-one-out and k = 1, ties share .6/2 under k = 1; only k ≥ 2 makes them 0."""
    pairs = [(0, 0.7), (1, 0.6), (1, 0.6)]
    assert solve(pairs, rule="leave_one_out").advantages.tolist() == [0.7, 0.0, 0.0]
    assert solve(pairs, rule="max_at_k", k=1).advantages.tolist() == [0.7, 0.3, 0.3]
    assert solve(pairs, rule="max_at_k", k=2).advantages.tolist() == [0.0, 0.0, 0.0]
    for rule, k in (("leave_one_out", None), ("max_at_k", 1)):
        assert solve(pairs, rule=rule, k=k).flags[:2].tolist() == [Flag.SINGLE_RESPONSE, 0]
    both = Flag.SINGLE_RESPONSE | Flag.DEGENERATE_GROUP
    assert solve(pairs, rule="max_at_k", k=2).flags[:2].tolist() == [both, Flag.DEGENERATE_GROUP]


def test_draws_need_their_parameters():
    """Both rules of draws need k, and pass_at_k a threshold unless rewards are 0 or 1."""
    for rule in ("pass_at_k", "max_at_k"):
        with pytest.raises(ValueError, match=f"{rule} needs k"):
            solve([(0, 1.0)], rule=rule)
    with pytest.raises(ValueError, match="needs a threshold"):
        solve([(0, 1.0), (0, 0.5)], rule="pass_at_k", k=1)
    assert solve([(0, 1.0), (0, None)], rule="pass_at_k", k=1).advantages.tolist() == [0.0, 0.0]


# Rules that see the whole request.

CONVENTIONS = st.sampled_from(sorted(group_oracles.CONVENTIONS))
ROUNDING = 1e-10
"""Sums of some hundred tokens, over spreads of at least 1/100 of the values, divided twice."""


@st.composite
def requests(draw, n_names):
    """Rows of each of n names, tokens and weights."""
    sizes = draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
    cells = st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.integers(-8, 8).map(lambda n: n / 16))
    named = [[draw(st.lists(cells, min_size=n, max_size=n)) for n in sizes] for _ in range(n_names)]
    lengths = draw(st.none() | st.tuples(*[st.lists(st.integers(0, 9), min_size=n, max_size=n) for n in sizes]))
    weights = draw(st.lists(st.sampled_from([1.0, 0.5, -2.0, 0.0]), min_size=n_names, max_size=n_names).filter(any))
    return named, lengths, weights


def columns(named, lengths):
    """The arguments of the library: rewards, groups, number of groups, missing, tokens."""
    flat = [[r for row in rows for r in row] for rows in named]
    rewards = np.array([[np.nan if r is None else r for r in row] for row in flat], dtype=np.float64)
    missing = np.array([[r is None for r in row] for row in flat], dtype=np.bool_)
    groups = np.repeat(np.arange(len(named[0])), [len(row) for row in named[0]])
    tokens = None if lengths is None else np.array([n for row in lengths for n in row], dtype=np.int64)
    return rewards, groups, len(named[0]), missing, tokens


@given(requests(2), CONVENTIONS, st.booleans(), st.sampled_from([0, 1]))
def test_gdpo_normalises_each_name_and_then_the_request(request_, convention, whitens, ddof):
    """Standardised by name within groups, added by weight, whitened over all responses that have a reward."""
    named, lengths, weights = request_
    rewards, groups, n_groups, missing, tokens = columns(named, lengths)
    answer = gdpo_advantages(
        rewards,
        np.array(weights),
        groups,
        n_groups,
        ddof=ddof,
        epsilon=1e-3,
        whitening=Whitening(convention) if whitens else None,
        n_tokens=tokens,
        missing=missing,
    )
    how = group_oracles.CONVENTIONS[convention] if whitens else None
    expected = group_oracles.gdpo(named, weights, lengths, how, ddof=ddof, epsilon=1e-3)
    flat = [a for row in expected for a in row]
    # Names that cancel exactly leave rounding, which √(s² + 1e-8) magnifies ten-thousandfold at most.
    assert answer.advantages == pytest.approx(flat, rel=ROUNDING, abs=ROUNDING)
    for group in range(n_groups):
        looked_at = [rows[group] for rows, w in zip(named, weights, strict=True) if w]
        flags = Flag(int(answer.flags[group]))
        assert (Flag.GROUP_INCOMPLETE in flags) == any(r is None for row in looked_at for r in row)
        scored = sum(any(r is not None for r in rs) for rs in zip(*looked_at, strict=True))
        assert (Flag.SINGLE_RESPONSE in flags) == (scored == 1)
        assert (Flag.DEGENERATE_GROUP in flags) == (not any(map(group_oracles.has_contrast, looked_at)))


@given(requests(1), CONVENTIONS, st.booleans())
def test_reinforce_whitens_what_is_centred(request_, convention, whitens):
    """`reinforce++_baseline` is r − group mean, whitened over all responses; degenerate groups are 0 afterwards."""
    (rows,), lengths, _ = request_
    rewards, groups, n_groups, missing, tokens = columns([rows], lengths)
    answer = group_advantages(
        rewards[0],
        groups,
        n_groups,
        rule="reinforce++_baseline",
        whitening=Whitening(convention) if whitens else None,
        n_tokens=tokens,
        missing=missing[0],
    )
    expected = group_oracles.whitened_rows(
        [group_oracles.centred(row, "dr_grpo", ddof=1, epsilon=0.0) for row in rows],
        [[r is not None for r in row] for row in rows],
        [group_oracles.has_contrast(row) for row in rows],
        lengths,
        group_oracles.CONVENTIONS[convention] if whitens else None,
    )
    assert answer.advantages == pytest.approx([a for row in expected for a in row], rel=ROUNDING, abs=ROUNDING)
    for group, row in enumerate(rows):
        assert (Flag.DEGENERATE_GROUP in Flag(int(answer.flags[group]))) == (not group_oracles.has_contrast(row))


@given(requests(2), CONVENTIONS, st.randoms(use_true_random=False))
def test_no_order_changes_a_bit_of_a_whitened_request(request_, convention, random):
    """Responses in another order have the same advantages to the last bit, although they depend on one another."""
    named, lengths, weights = request_
    rewards, groups, n_groups, missing, tokens = columns(named, lengths)
    order = np.array(random.sample(range(len(groups)), len(groups)), dtype=np.int64)

    def answer(at, rule):
        options = {"whitening": Whitening(convention), "n_tokens": None if tokens is None else tokens[at]}
        if rule == "gdpo":
            found = gdpo_advantages(
                rewards[:, at], np.array(weights), groups[at], n_groups, missing=missing[:, at], **options
            )
        else:
            found = group_advantages(rewards[0, at], groups[at], n_groups, rule=rule, missing=missing[0, at], **options)
        return found.advantages, found.flags.tobytes()

    for rule in ("gdpo", "reinforce++_baseline"):
        (first, flags), (second, flags_again) = answer(np.arange(len(groups)), rule), answer(order, rule)
        assert first[order].tobytes() == second.tobytes()
        assert flags == flags_again


@given(requests(1), CONVENTIONS)
def test_one_name_needs_no_names(request_, convention):
    """One reward of weight 1 has the same bits with and without its name, in `gdpo` and in sums."""
    named, lengths, _ = request_
    rewards, groups, n_groups, missing, tokens = columns(named, lengths)
    options = {"whitening": Whitening(convention), "n_tokens": tokens}
    plain = group_advantages(rewards[0], groups, n_groups, rule="gdpo", missing=missing[0], **options)
    by_name = gdpo_advantages(rewards, np.ones(1), groups, n_groups, missing=missing, **options)
    assert plain.advantages.tobytes() == by_name.advantages.tobytes()
    sums, lacking = weighted_rewards(rewards, np.ones(1), missing)
    assert lacking.tolist() == missing[0].tolist()
    assert sums[~lacking].tolist() == rewards[0][~lacking].tolist()


@given(requests(3))
def test_weighted_rewards_lack_what_any_of_them_lacks(request_):
    """Σ w·r, unless a reward of a weight other than 0 is null: then the sum is null, and 0."""
    named, lengths, weights = request_
    rewards, _, _, missing, _ = columns(named, lengths)
    sums, lacking = weighted_rewards(rewards, np.array(weights), missing)
    for place, cells in enumerate(zip(*[[r for row in rows for r in row] for rows in named], strict=True)):
        looked_at = [(w, r) for w, r in zip(weights, cells, strict=True) if w]
        assert lacking[place] == any(r is None for _, r in looked_at)
        expected = 0.0 if lacking[place] else math.fsum(w * r for w, r in looked_at)
        assert sums[place] == pytest.approx(expected, rel=1e-14, abs=1e-14)
    complete, nowhere = weighted_rewards(np.nan_to_num(rewards), np.array(weights))
    assert complete[~lacking].tobytes() == sums[~lacking].tobytes()
    assert not nowhere.any()


def test_weights_of_nothing_but_zero_are_refused():
    """With no weight there is no reward."""
    for call in (weighted_rewards, lambda rewards, w: gdpo_advantages(rewards, w, np.zeros(2, dtype=np.int64), 1)):
        with pytest.raises(ValueError, match="every weight is 0"):
            call(np.ones((2, 2)), np.zeros(2))


TWO_ROLLOUTS = [[[0.0, 1.0], [0.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0], [1.0, 1.0]]]
"""Three groups of two rollouts with two binary rewards each: (0,0),(1,1); (0,0),(0,1); (0,1),(1,1)."""


def test_worked_values_of_gdpo():
    """The example of GDPO, arXiv 2601.05242: ∓1.4142 before whitening where a sum has ∓.7071, and whitened."""
    rewards, groups, n_groups, _, _ = columns(TWO_ROLLOUTS, None)
    exact = Whitening("trl", epsilon=0.0)
    options = {"epsilon": 0.0, "whitening": None}
    before = gdpo_advantages(rewards, np.ones(2), groups, n_groups, **options).advantages
    whole = gdpo_advantages(rewards, np.ones(2), groups, n_groups, epsilon=0.0, whitening=exact).advantages
    winners = slice(1, None, 2)
    assert before[winners] == pytest.approx([math.sqrt(2.0), math.sqrt(0.5), math.sqrt(0.5)], abs=1e-12)
    assert whole[winners] == pytest.approx([1.290994448735806, 0.645497224367903, 0.645497224367903], abs=1e-12)
    assert whole[::2] == pytest.approx(-whole[winners], abs=1e-12)
    summed = group_advantages(rewards.sum(axis=0), groups, n_groups, epsilon=0.0).advantages
    assert summed[winners] == pytest.approx([math.sqrt(0.5)] * 3, abs=1e-12)


def test_worked_values_of_reinforce():
    """Groups (1, 0) and (3, 0), tokens 1, 3, 2, 2: centred ±½ and ±3/2 have token mean −1/8 and s² = 79/56."""
    rewards, groups = np.array([1.0, 0.0, 3.0, 0.0]), np.array([0, 0, 1, 1])
    found = group_advantages(
        rewards,
        groups,
        2,
        rule="reinforce++_baseline",
        whitening=Whitening("verl", epsilon=0.0),
        n_tokens=np.array([1, 3, 2, 2]),
    ).advantages
    assert found == pytest.approx(np.array([0.625, -0.375, 1.625, -1.375]) / math.sqrt(79 / 56), abs=1e-12)


def test_a_flat_group_counts_in_the_spread_and_keeps_zero():
    """A group without contrast adds zeros to mean and spread; it gets exactly 0 where the shift −m/s is not."""
    rewards, groups = np.array([1.0, 0.0, 0.5, 0.5, 0.3]), np.array([0, 0, 1, 1, 2])
    tokens = np.array([3, 1, 2, 2, 1])
    for rule in ("reinforce++_baseline", "gdpo"):
        answer = group_advantages(rewards, groups, 3, rule=rule, whitening=Whitening("verl"), n_tokens=tokens)
        assert answer.advantages[2:].tolist() == [0.0, 0.0, 0.0]
        alone = group_advantages(
            rewards[:2], groups[:2], 1, rule=rule, whitening=Whitening("verl"), n_tokens=tokens[:2]
        )
        assert (answer.advantages[:2] != alone.advantages).all()
        flat = int(Flag.DEGENERATE_GROUP)
        assert answer.flags.tolist() == [0, flat, flat | int(Flag.SINGLE_RESPONSE)]


@pytest.mark.parametrize("rule", ["grpo", "gdpo", "reinforce++_baseline"])
def test_tiny_rewards_keep_their_contrast(rule):
    """Squares of rewards near 1e-200 leave float64, their spread does not: ±√½ with ddof 1 and ε = 0."""
    rewards, groups = np.array([3e-200, 1e-200]), np.zeros(2, dtype=np.int64)
    answer = group_advantages(rewards, groups, 1, rule=rule, epsilon=0.0, whitening=Whitening("trl", epsilon=0.0))
    assert answer.advantages == pytest.approx([math.sqrt(0.5), -math.sqrt(0.5)], rel=1e-12)
