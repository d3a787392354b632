import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit.estimator_oracles import subsets_of_rows
from creditd.credit import permutation_plan, stratified_plan
from creditd.credit.coalition_plans import core_plan, permutation_walks, row_keys

PLANS = {"stratified": stratified_plan, "permutations": permutation_plan}
players = st.integers(1, 9)
seeds = st.integers(0, 2**64)

WRITTEN_PLAN = [{0, 1}, {0, 3, 6}, {0, 1, 2, 5, 9}, {2, 3, 4, 6}, {0, 5, 6, 8, 9}]
WRITTEN_ORDERS = [[8, 9, 3, 5, 2, 4, 0, 1, 6, 7], [7, 5, 9, 0, 3, 1, 4, 2, 8, 6]]


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@given(n=players, budget=st.integers(0, 600), seed=seeds)
def test_a_plan_holds_distinct_coalitions_within_the_budget(plan, n, budget, seed):
    """No coalition comes twice and there are no more than asked for; all of them when the budget allows."""
    rows = plan(n, budget, seed)
    assert rows.dtype == bool
    assert rows.shape[1] == n
    assert len(set(subsets_of_rows(rows))) == len(rows) <= budget
    if budget >= 2**n:
        assert len(rows) == 2**n


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@given(n=st.integers(1, 14), budgets=st.tuples(st.integers(0, 700), st.integers(0, 700)), seed=seeds)
def test_a_larger_budget_goes_on_where_a_smaller_one_stopped(plan, n, budgets, seed):
    """The plan of a larger budget starts with the plan of a smaller one."""
    small, large = plan(n, min(budgets), seed), plan(n, max(budgets), seed)
    assert len(small) <= len(large)
    assert np.array_equal(large[: len(small)], small)


@pytest.mark.parametrize(("n", "budgets"), [(17, (70_000, 131_072)), (50, (1500, 4096)), (256, (2560, 6000))])
def test_plans_of_many_players_are_prefix_stable(n, budgets):
    """Strata that are half full, and strata that never fill, go on alike."""
    for plan in PLANS.values() if n > 17 else (stratified_plan,):
        small, large = (plan(n, budget, 3) for budget in budgets)
        assert np.array_equal(large[: len(small)], small)
        assert len(set(row_keys(large))) == len(large)


@given(n=st.integers(3, 30), budget=st.integers(0, 700), seed=seeds)
def test_a_stratified_plan_is_the_core_and_complement_pairs(n, budget, seed):
    """After ∅, N, the singletons and the leave-one-outs come pairs of complements, at most one row short."""
    rows = stratified_plan(n, budget, seed)
    core = core_plan(n)
    assert np.array_equal(rows[: len(core)], core[: len(rows)])
    assert Counter(core.sum(axis=1).tolist()) == Counter([0, n, *[1] * n, *[n - 1] * n])
    rest = rows[len(core) :]
    whole = rest[: len(rest) - len(rest) % 2]
    assert np.array_equal(whole[0::2], ~whole[1::2])
    assert len(rows) >= min(budget, 2**n) - (budget > len(core))


@given(n=st.integers(4, 40), budget=st.integers(100, 1500), seed=seeds)
def test_open_sizes_are_balanced(n, budget, seed):
    """Open sizes have as many coalitions as each other, but for the middle one, which has 8 pairs early on."""
    rows = stratified_plan(n, budget, seed)
    counts = np.bincount(rows.sum(axis=1), minlength=n + 1)
    still_open = [int(counts[s]) for s in range(2, n - 1) if counts[s] < math.comb(n, s) and 2 * s != n]
    assert max(still_open, default=0) - min(still_open, default=0) <= 1
    if still_open and n % 2 == 0 and counts[n // 2] < math.comb(n, n // 2):
        middle = counts[n // 2] // 2
        assert middle >= min(still_open[0], max(8, still_open[0] // 2)) - 1
        assert middle <= max(8, still_open[0] // 2 + 1)


@given(n=st.integers(6, 60), budget=st.integers(300, 1200), seed=seeds)
def test_small_coalitions_share_their_players(n, budget, seed):
    """The first coalitions of a size, as many as fit side by side, have no player in common."""
    pairs = stratified_plan(n, budget, seed)[len(core_plan(n)) :: 2]
    for size in range(2, n // 3 + 1):
        own = pairs[pairs.sum(axis=1) == size][: n // size]
        assert own.sum(axis=0).max(initial=0) <= 1


def test_sizes_of_a_plan_are_drawn_evenly():
    """Every coalition of a size comes first as often as any other, over many seeds."""
    first = Counter()
    for seed in range(3000):
        rows = stratified_plan(6, 22, seed)
        first.update(subsets_of_rows(row for row in rows[14:] if row.sum() == 2))
    counts = list(first.values())
    assert len(counts) == 15
    mean = sum(counts) / 15
    assert sum((c - mean) ** 2 / mean for c in counts) < 45.0


@given(n=players, budget=st.integers(2, 500), seed=seeds)
def test_walks_are_the_prefixes_of_orders_and_of_their_reversals(n, budget, seed):
    """Each walk adds the players of its order one by one, the walk back adds them in reverse."""
    plan, orders, walks = permutation_walks(n, budget, seed)
    for order, (there, back) in zip(orders.tolist(), walks.tolist(), strict=True):
        assert sorted(order) == list(range(n))
        assert subsets_of_rows(plan[there]) == [frozenset(order[:k]) for k in range(n + 1)]
        assert subsets_of_rows(plan[back]) == [frozenset(order[::-1][:k]) for k in range(n + 1)]


@given(n=st.integers(4, 12), budget=st.integers(30, 500), seed=seeds)
def test_a_permutation_plan_holds_as_many_orders_as_fit(n, budget, seed):
    """One more order would not fit into the budget."""
    plan, orders, _ = permutation_walks(n, budget, seed)
    more = permutation_walks(n, budget + 2 * n, seed)
    if len(plan) < 2**n and len(more[1]) > len(orders):
        prefixes = {frozenset(more[1][len(orders)][:k].tolist()) for k in range(n + 1)}
        prefixes |= {frozenset(range(n)) - prefix for prefix in prefixes}
        assert len(plan) + len(prefixes - set(subsets_of_rows(plan))) > budget


def test_the_seed_decides():
    """Another seed draws other coalitions; the same seed the same ones, and nobody can write to a plan."""
    assert not np.array_equal(stratified_plan(12, 200, 0), stratified_plan(12, 200, 1))
    assert not np.array_equal(permutation_plan(12, 200, 0), permutation_plan(12, 200, 1))
    with pytest.raises(ValueError, match="read-only"):
        stratified_plan(12, 200, 0)[0, 0] = True


def test_a_plan_is_the_same_for_ever():
    """The first pairs of one plan, written down: a change here changes every estimate under its seed."""
    plan = stratified_plan(10, 32, 7)[22:]
    assert subsets_of_rows(plan[0::2]) == WRITTEN_PLAN
    assert permutation_walks(10, 40, 7)[1].tolist() == WRITTEN_ORDERS


@pytest.mark.parametrize(("n", "budget", "seed"), [(0, 10, 0), (3, -1, 0), (3, 10, -1)])
def test_what_has_no_plan_is_refused(n, budget, seed):
    """No players, or a negative number, is an error."""
    with pytest.raises(ValueError, match="got"):
        stratified_plan(n, budget, seed)
