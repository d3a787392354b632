"""The Owen values of the real shap package, on the trees that it is given."""

import importlib
import warnings

import numpy as np
import pytest

from credit import oracles
from credit.span_oracles import chain, index_of
from creditd.credit import balanced_tree, owen_plan

pytestmark = pytest.mark.models

AGREEMENT = 1e-9
"""Values equal those of shap, which adds them up in an order of its own, to this share of the largest utility."""
MANY = 1 << 10


def shap_module(name):
    """A module of shap; it imports matplotlib, which announces changes to come."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def values_of_shap(tree, table):
    """What PartitionExplainer of the real shap package makes of a tree and a game, and which coalitions it asks for."""
    n = len(tree) + 1
    sizes = [1] * n
    for left, right in tree.tolist():
        sizes.append(sizes[left] + sizes[right])

    class Coalitions:
        """A masker whose masked text is the coalition itself."""

        # A linkage of SciPy: both children, their distance, the leaves below.
        clustering = np.column_stack([tree, np.ones(n - 1), sizes[n:]])
        shape = (1, n)

        def __call__(self, coalition, _text):
            return (coalition.reshape(1, n),)

    asked = set()

    def utilities(rows):
        asked.update(index_of(row) for row in rows)
        return np.array([table[index_of(row)] for row in rows])

    explainer = shap_module("shap").explainers.PartitionExplainer(utilities, Coalitions())
    found = explainer(np.zeros((1, n)), max_evals=1 << n, fixed_context=None, silent=True)
    return found.values[0], asked


@pytest.mark.parametrize("seed", range(24))
def test_values_equal_those_of_shap_on_the_same_tree(seed):
    """PartitionExplainer, given a balanced tree, a chain or any other one, finds the same values."""
    random = np.random.default_rng(seed)
    n = int(random.integers(2, 11))
    left, merges = list(range(n)), []
    for merge in range(n - 1):
        merges.append([left.pop(int(random.integers(len(left)))) for _ in range(2)])
        left.append(n + merge)
    table = (random.normal(size=1 << n) * 10.0 ** random.integers(-2, 3) + random.integers(-5, 6)).tolist()
    for tree in (np.array(merges), balanced_tree(n), np.array(chain(n))):
        expected, asked = values_of_shap(tree, table)
        plan = owen_plan(tree, most=1 << n)
        coalitions = [index_of(row) for row in plan.coalitions]
        values = plan.values(np.array([table[coalition] for coalition in coalitions]))
        assert np.abs(values - expected).max() <= AGREEMENT * oracles.scale_of(table)
        assert asked == set(coalitions)


@pytest.mark.parametrize(("n", "same"), [(2, True), (4, True), (5, False), (8, True), (16, True)])
def test_the_balanced_tree_is_that_of_shap_for_powers_of_two(n, same):
    """Of 2^m alike spans the text masker of shap makes the balanced tree, of five it does not."""
    spans = np.array([f"span {i} says as much. " for i in range(n)])
    tree = shap_module("shap.maskers._text").partition_tree(spans, [])[:, :2].astype(np.int64)
    of_shap, ours = owen_plan(tree, most=MANY).coalitions, owen_plan(balanced_tree(n), most=MANY).coalitions
    assert (of_shap.tobytes() == ours.tobytes()) == same
