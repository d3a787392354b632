"""A batch of completions: what is asked, what happens when something has no utility, and what comes out."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, strategies

from creditd.credit import EstimatorOptions
from creditd.credit.flags import Flag
from creditd.credit.span_credit import SpanBatch
from creditd.credit.span_items import Refusal, SpanCredits, SpanError, SpanItem, SpanOptions
from creditd.credit.text_units import TextUnits

REFUSED = Refusal("context_exceeded", "got 9 tokens; the model reads at most 8")
OPTIONS = SpanOptions(alpha=0.7, ddof=1)


def units_of(lengths: list[int], *, masked: int = 0, frozen: bool = False, merged: bool = False) -> TextUnits:
    """Units of these lengths one after another, behind some masked tokens."""
    ends = masked + np.cumsum(lengths, dtype=np.int64)
    tokens = np.stack([ends - np.array(lengths, dtype=np.int64), ends], axis=1) if lengths else np.empty((0, 2), int)
    n_tokens = masked + sum(lengths)
    return TextUnits(n_tokens, tokens, None, np.arange(n_tokens) >= masked, merged, frozen)


def written(lengths: list[int]) -> TextUnits:
    """The same where the text is known, one character to a token."""
    units = units_of(lengths)
    return replace(units, characters=units.tokens)


@dataclass
class World:
    """Utilities by prompt, completion and coalition, and what of it is refused."""

    seed: int = 0
    refused_empty: frozenset[int] = frozenset()
    refused_rows: frozenset[int] = frozenset()
    refused_whole: frozenset[int] = frozenset()
    nan_rows: frozenset[int] = frozenset()

    def empty(self, prompt: int) -> float | Refusal:
        """v(∅) of a prompt."""
        if prompt in self.refused_empty:
            return REFUSED
        return float(np.random.default_rng([self.seed, 1, prompt]).normal())

    def utilities(self, row: int, coalitions: np.ndarray) -> np.ndarray:
        """Utilities of coalitions of a completion."""
        numbers = [int("".join("01"[bit] for bit in one) or "0", 2) for one in coalitions.astype(int)]
        return np.array([np.random.default_rng([self.seed, 2, row, number]).normal() for number in numbers])


def run(batch: SpanBatch, world: World) -> SpanCredits:
    """Tell a batch everything it asks."""
    for _ in range(100):
        asked = batch.ask()
        if not asked:
            return batch.answer()
        for prompt in asked.empty:
            batch.tell_empty(prompt, world.empty(prompt))
        for row, coalitions in asked.coalitions:
            utilities, refusals = world.utilities(row, coalitions), {}
            whole = coalitions.all(axis=1)
            if row in world.nan_rows:
                utilities[~whole] = np.nan
            if row in world.refused_rows:
                refusals = dict.fromkeys(np.flatnonzero(~whole).tolist()[:1], REFUSED)
            if row in world.refused_whole:
                refusals |= dict.fromkeys(np.flatnonzero(whole).tolist(), REFUSED)
            batch.tell(row, coalitions, utilities, refusals)
        for row in asked.attention:
            batch.tell_attention(row, np.ones(batch._states[row].game.n_units))
    raise AssertionError("the batch asks for ever")


def batch_of(items, prompts=None, groups=None, options=OPTIONS, rejected=()) -> SpanBatch:
    alone = list(range(len(items)))
    return SpanBatch(
        items,
        np.array(prompts if prompts is not None else [0] * len(items)),
        np.array(groups if groups is not None else alone),
        options,
        rejected,
    )


def check_law(found: SpanCredits, items, world: World, prompts, alpha: float, without: set[int]) -> None:
    """Σ token rewards = Σ KL + other_reward + v(P) − α·v(∅), for every completion that has an answer."""
    for row, one in enumerate(found.items):
        if one is None:
            continue
        item = items[row]
        kl = 0.0 if item.kl is None else float(item.kl[item.units.trainable].sum())
        whole = world.utilities(row, np.ones((1, item.units.n_units), dtype=bool))[0]
        empty = 0.0 if row in without else alpha * world.empty(prompts[row])
        expected = kl + item.other_reward + whole - empty
        assert one.ledger.total == pytest.approx(expected, abs=1e-12)
        if item.units.trainable.any():
            assert one.token_rewards.sum() == pytest.approx(expected, abs=1e-9)
        assert not one.token_rewards[~item.units.trainable].any()
        assert one.token_advantages is None or not one.token_advantages[~item.units.trainable].any()
        assert np.isfinite(one.token_rewards).all()


VALUES = ["auto", "shapley", "owen", "prefix", "leave_one_out", "uniform", "attention"]
some_rows = strategies.frozensets(strategies.integers(0, 4))


@given(
    lengths=strategies.lists(strategies.lists(strategies.integers(1, 4), max_size=5), min_size=1, max_size=5),
    prompts=strategies.lists(strategies.integers(0, 2), min_size=5, max_size=5),
    value=strategies.sampled_from(VALUES),
    alpha=strategies.sampled_from([0.0, 0.3, 1.0]),
    masked=strategies.integers(0, 2),
    frozen=strategies.booleans(),
    world=strategies.builds(
        World,
        seed=strategies.integers(0, 9),
        refused_empty=strategies.frozensets(strategies.integers(0, 2), max_size=1),
        refused_rows=some_rows,
        refused_whole=some_rows,
        nan_rows=some_rows,
    ),
)
def test_whatever_happens_to_a_completion_it_returns_the_same(lengths, prompts, value, alpha, masked, frozen, world):
    items = [
        SpanItem(
            units_of(one, masked=masked, frozen=frozen and masked > 0),
            kl=np.full(masked + sum(one), 0.1),
            other_reward=0.25,
        )
        for one in lengths
    ]
    prompts = prompts[: len(items)]
    names = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    numbers = [names[prompt] for prompt in prompts]
    options = SpanOptions(value=value, alpha=alpha, ddof=1)
    found = run(batch_of(items, numbers, numbers, options), world)
    without = {row for row, number in enumerate(numbers) if number in world.refused_empty}
    check_law(found, items, world, numbers, alpha, without)
    failed = {error.row for error in found.errors}
    assert failed == {row for row in range(len(items)) if row in world.refused_whole}
    for one in found.items:
        if one is not None:
            assert bool(one.flags & Flag.FALLBACK_RETURN) == (one.values is None)
            assert (one.method is None) == (one.values is None)
            if one.values is not None:
                rest = one.ledger.remainder / alpha if alpha else -one.gap
                assert one.gap == pytest.approx(-rest, abs=1e-9)


def test_v_of_nothing_is_asked_once_for_each_prompt():
    items = [SpanItem(units_of([1, 1])), SpanItem(units_of([2])), SpanItem(units_of([1, 3]))]
    asked = batch_of(items, [0, 0, 1]).ask()
    assert asked.empty == (0, 1)
    assert all(coalitions.any(axis=1).all() for _, coalitions in asked.coalitions)


def test_frozen_text_has_an_empty_coalition_of_its_own():
    ((_, coalitions),) = batch_of([SpanItem(units_of([1, 1], masked=2, frozen=True))]).ask().coalitions
    assert len(coalitions) == 4


def test_what_frozen_text_is_worth_is_the_remainder():
    items = [SpanItem(units_of([1, 2], masked=1, frozen=True))]
    world = World(3)
    one = run(batch_of(items), world).items[0]
    frozen = world.utilities(0, np.zeros((1, 2), dtype=bool))[0]
    assert one.values.sum() == pytest.approx(one.grand - frozen)
    assert one.ledger.remainder == pytest.approx(0.7 * (frozen - one.empty))
    assert one.gap == pytest.approx(one.empty - frozen)


def test_no_v_of_nothing_takes_alpha_from_all_completions_that_are_compared():
    items = [SpanItem(units_of([1, 1])) for _ in range(4)]
    world = World(1, refused_empty=frozenset({1}))
    found = run(batch_of(items, [0, 1, 1, 2], [0, 0, 1, 1]), world)
    assert [one.ledger.alpha for one in found.items] == [0.0] * 4
    assert all(one.flags & Flag.FALLBACK_RETURN and one.empty is None for one in found.items)
    assert [one.token_rewards.tolist() for one in found.items] == [[0.0, one.grand] for one in found.items]


def test_other_prompts_keep_their_alpha():
    items = [SpanItem(units_of([1, 1])) for _ in range(2)]
    found = run(batch_of(items, [0, 1]), World(1, refused_empty=frozenset({1})))
    assert [one.ledger.alpha for one in found.items] == [0.7, 0.0]


def test_after_a_refusal_only_the_whole_text_is_asked_for():
    batch = batch_of([SpanItem(units_of([1] * 12))], options=SpanOptions(value="owen"))
    batch.tell_empty(0, REFUSED)
    ((_, coalitions),) = batch.ask().coalitions
    assert coalitions.tolist() == [[True] * 12]


@pytest.mark.parametrize("utility", [np.nan, np.inf, -1e91])
def test_a_whole_completion_without_a_finite_utility_is_an_error(utility):
    batch = batch_of([SpanItem(units_of([1]))])
    batch.tell_empty(0, 0.0)
    batch.tell(0, np.ones((1, 1), dtype=bool), np.array([utility]))
    assert batch.done
    found = batch.answer()
    assert found.items == (None,)
    assert [(error.row, error.code, error.field) for error in found.errors] == [(0, "non_finite_utility", "completion")]


def test_a_completion_without_units_asks_for_its_whole_text():
    batch = batch_of([SpanItem(units_of([], masked=2))])
    asked = batch.ask()
    assert [(row, coalitions.shape) for row, coalitions in asked.coalitions] == [(0, (1, 0))]
    one = run(batch, World()).items[0]
    assert one.token_rewards.tolist() == [0.0, 0.0]
    assert one.evaluations == 1


def test_auto_is_one_method_for_all_completions_that_are_compared():
    lengths = [[1] * 4, [1] * 12, [1] * 4]
    found = run(batch_of([SpanItem(units_of(one)) for one in lengths], [0, 0, 1], [0, 0, 1]), World())
    assert [one.method for one in found.items] == ["owen_tree", "owen_tree", "table"]


def test_auto_samples_the_short_completions_of_a_prompt_with_a_long_one():
    items = [SpanItem(units_of([1] * n)) for n in (8, 30)]
    found = run(batch_of(items, [0, 0], [0, 0], replace(OPTIONS, estimator=EstimatorOptions(budget=200))), World())
    assert [one.method for one in found.items] == ["permutations", "permutations"]


def test_a_named_estimator_means_shapley():
    options = replace(OPTIONS, estimator=EstimatorOptions("permutations", budget=128))
    found = run(batch_of([SpanItem(units_of([1] * 10))], options=options), World())
    assert found.items[0].method == "permutations"


def test_an_estimator_for_a_value_that_is_not_estimated_is_refused():
    with pytest.raises(ValueError, match="owen is not estimated"):
        SpanOptions(value="owen", estimator=EstimatorOptions("permutations"))


@pytest.mark.parametrize("options", [{"alpha": 1.5}, {"alpha": -0.1}, {"alpha": np.nan}, {"epsilon": -1}, {"ddof": 2}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="expected alpha"):
        SpanOptions(**options)


@pytest.mark.parametrize(
    ("item", "options", "code", "field"),
    [
        (SpanItem(units_of([1] * 5)), SpanOptions(most_units=4), "too_many_players", "units"),
        (SpanItem(units_of([1] * 27)), SpanOptions(value="owen"), "budget_exceeded", "units"),
        (SpanItem(units_of([1] * 300)), SpanOptions(), "budget_exceeded", "units"),
        (SpanItem(units_of([1, 1]), tree=np.array([[0, 1]])), SpanOptions(), "invalid_request", "tree"),
        (SpanItem(units_of([1, 1]), tree=np.array([[0, 1], [2, 3]])), SpanOptions("owen"), "invalid_request", "tree"),
        (SpanItem(units_of([1, 1]), tree=np.array([[0, 0]])), SpanOptions("owen"), "invalid_request", "tree"),
        (SpanItem(units_of([1]), tree=np.array([[0, 0]])), SpanOptions("owen"), "invalid_request", "tree"),
        (SpanItem(units_of([]), tree=np.array([[0, 1], [5, 9]])), SpanOptions("owen"), "invalid_request", "tree"),
        (SpanItem(written([1] * 5)), SpanOptions(most_units=4), "too_many_players", "completion"),
        (SpanItem(written([1] * 27)), SpanOptions(value="owen"), "budget_exceeded", "completion"),
        (
            SpanItem(units_of([1, 1], merged=True), tree=np.array([[0, 1]])),
            SpanOptions("owen"),
            "invalid_request",
            "tree",
        ),
    ],
)
def test_what_cannot_be_planned_costs_one_completion(item, options, code, field):
    found = run(batch_of([item, SpanItem(units_of([1]))], [0, 1], options=options), World())
    assert [(error.row, error.code, error.field) for error in found.errors] == [(0, code, field)]
    assert found.items[1] is not None


@pytest.mark.parametrize("lengths", [[], [1]])
def test_the_tree_of_one_unit_or_none_has_no_merges(lengths):
    item = SpanItem(units_of(lengths), tree=np.empty((0, 2), dtype=np.int64))
    assert run(batch_of([item], options=SpanOptions("owen")), World()).errors == ()


@pytest.mark.parametrize("ddof", [None, 1])
def test_rejected_completions_are_neither_asked_nor_lost(ddof):
    rejected = SpanError(0, "shape_mismatch", "kl", None, "got 2; expected 3")
    options = SpanOptions(ddof=ddof)
    batch = batch_of([None, SpanItem(units_of([1]))], [0, 1], [0, 0], options, rejected=(rejected,))
    assert batch.ask().empty == (1,)
    found = run(batch, World())
    assert found.errors == (rejected,)
    assert found.items[1].flags & Flag.GROUP_INCOMPLETE


def test_a_group_that_lost_one_may_be_lost():
    rejected = SpanError(0, "shape_mismatch", "kl", None, "got 2; expected 3")
    options = SpanOptions(fail_incomplete_groups=True)
    found = run(batch_of([None, SpanItem(units_of([1]))], [0, 0], [0, 0], options, (rejected,)), World())
    assert [error.code for error in found.errors] == ["shape_mismatch", "group_incomplete"]


def test_groups_of_another_size_than_expected_are_errors():
    items = [SpanItem(units_of([1])) for _ in range(3)]
    found = run(batch_of(items, [0, 0, 1], [0, 0, 1], SpanOptions(group_size=2)), World())
    assert [(error.row, error.code) for error in found.errors] == [(2, "group_size_mismatch")]


def test_nothing_can_be_answered_before_all_is_told():
    with pytest.raises(ValueError, match="not known yet"):
        batch_of([SpanItem(units_of([1]))]).answer()


def test_merged_units_are_flagged_and_advantages_are_the_groups():
    items = [SpanItem(units_of([1, 2], merged=True)), SpanItem(units_of([3]))]
    found = run(batch_of(items, [0, 0], [0, 0]), World())
    assert found.items[0].flags & Flag.UNITS_MERGED
    assert not found.items[1].flags & Flag.UNITS_MERGED
    means = [float(one.token_advantages.mean()) for one in found.items]
    assert sum(means) == pytest.approx(0.0, abs=1e-12)


def test_no_advantages_unless_they_are_wanted():
    assert run(batch_of([SpanItem(units_of([1]))], options=SpanOptions()), World()).items[0].token_advantages is None


def test_a_utility_of_the_largest_size_is_one():
    batch = batch_of([SpanItem(units_of([1]))])
    batch.tell_empty(0, -1e90)
    batch.tell(0, np.ones((1, 1), dtype=bool), np.array([1e90]))
    assert batch.answer().items[0].values.tolist() == [2e90]


def test_a_target_stops_the_sample_of_a_short_completion_beside_a_long_one():
    """Both are sampled: 2⁷ coalitions of the short one would fit the budget, and its sample stops before them."""
    options = SpanOptions(estimator=EstimatorOptions(budget=256, target_standard_error=1e3))
    found = run(batch_of([SpanItem(units_of([1] * n)) for n in (8, 40)], [0, 0], [0, 0], options), World())
    assert [one.method for one in found.items] == ["permutations", "permutations"]
    assert found.items[0].evaluations < 1 << 8


def test_what_trains_nothing_costs_others_no_digits():
    """It counts in the mean, however far below the others."""
    far = SpanItem(units_of([], masked=1), other_reward=-1e12)
    items = [far, SpanItem(units_of([1])), SpanItem(units_of([2]))]
    found = run(batch_of(items, [0, 0, 0], [0, 0, 0]), World()).items
    densities = [one.grand - 0.7 * one.empty for one in found[1:]]
    mean = (sum(densities) + found[0].ledger.total) / 3
    spread = np.std([densities[0], densities[1], densities[1]], ddof=1)
    assert found[1].token_advantages[0] == pytest.approx((densities[0] - mean) / (spread + 1e-4), rel=1e-9)
