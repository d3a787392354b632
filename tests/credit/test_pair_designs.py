import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit.estimator_oracles import subsets_of_rows
from creditd.credit import stratified_plan
from creditd.credit.pair_designs import FOLDS, LARGEST_FOLD, pair_design

plans = st.tuples(st.integers(3, 20), st.integers(0, 300), st.integers(0, 30))


@given(plans)
def test_a_design_holds_every_pair_of_the_plan(plan):
    """Rows of the plan are matched with their complements, the smaller coalition first, each once."""
    n, extra, seed = plan
    rows = stratified_plan(n, 2 * n + 2 + extra, seed)
    design = pair_design(rows, seed)
    everyone = frozenset(range(n))
    sets = subsets_of_rows(rows)
    for small, one, other in zip(subsets_of_rows(design.small), design.small_rows, design.large_rows, strict=True):
        assert small == sets[one] == everyone - sets[other]
        assert 1 <= len(small) <= n / 2
    used = [*design.small_rows.tolist(), *design.large_rows.tolist()]
    assert len(set(used)) == len(used) == len(rows) - 2
    assert design.sizes.tolist() == [len(s) for s in subsets_of_rows(design.small)]


@given(plans)
def test_folds_part_the_drawn_pairs_evenly(plan):
    """Singletons are in no fold; the others are spread over five, as evenly as can be."""
    n, extra, seed = plan
    design = pair_design(stratified_plan(n, 2 * n + 2 + extra, seed), seed)
    assert set(design.folds[:n].tolist()) == {-1}
    counts = Counter(design.folds[n:].tolist())
    assert set(counts) <= set(range(FOLDS))
    if counts:
        assert max(counts.values()) - min(counts.values()) <= 1 or len(counts) < FOLDS
        assert design.n_folds == len(counts)


@given(plans)
def test_strata_count_what_is_left(plan):
    """A stratum knows its pairs, its members and the share of its coalitions that were not drawn."""
    n, extra, seed = plan
    rows = stratified_plan(n, 2 * n + 2 + extra, seed)
    design = pair_design(rows, seed)
    open_counts = []
    for stratum in design.strata:
        size = stratum.size
        capacity = math.comb(n, size) / (2 if 2 * size == n else 1)
        assert stratum.is_middle == (2 * size == n)
        assert stratum.undrawn == pytest.approx(1 - len(stratum.pairs) / capacity, abs=1e-12)
        assert np.array_equal(stratum.members.T.astype(bool), design.small[stratum.pairs])
        assert stratum.inside.tolist() == design.small[stratum.pairs].sum(axis=0).tolist()
        if len(stratum.pairs) < capacity:
            open_counts.append(len(stratum.pairs))
        spread = 1.0 if 2 * size == n else 1 / (size / n * (1 - size / n))
        expected = spread * (1 - len(stratum.pairs) / capacity) / len(stratum.pairs) ** 2
        assert design.row_weight[stratum.pairs] == pytest.approx(expected, rel=1e-9, abs=1e-12)
    missing = n // 2 - len(design.strata)
    assert design.pairs_in_open_size == (0 if missing else min(open_counts, default=None))


def test_a_fold_is_never_large():
    """More pairs make more folds, not larger ones; the seed decides who is in which."""
    rows = stratified_plan(16, 4000, 0)
    design, other = pair_design(rows, 0), pair_design(rows, 1)
    counts = np.bincount(design.folds[16:])
    assert len(counts) == design.n_folds == 8
    assert counts.max() <= LARGEST_FOLD
    assert counts.max() - counts.min() <= 1
    assert not np.array_equal(design.folds, other.folds)
