import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from credit import oracles
from credit.answers import bits, optional, row_of, solve
from credit.batches import (
    CENTRED,
    EFFICIENCY,
    EXACT,
    RULES,
    UTILITIES,
    WORKED,
    columns,
    grid,
)
from credit.oracles import OneSet, Question
from creditd.credit import (
    Blend,
    Flag,
    LeaveOneOut,
    MalformedPolicy,
    Max,
    Normalization,
    SetCreditOptions,
    Shapley,
    Table,
    TokenPolicy,
    set_credit,
)

AGREEMENT = 1e-9
"""Rewards are multiples of 1/8 and spreads at least 1e-2, so that a credit's 1e-10 grows a little on division."""
KINDS = ("pooled", "batch_scaled", "centered", "response_preserving", "per_slot", "none")
INF = float("inf")
NAN = float("nan")
MANY = 2 * settings().max_examples
"""Whole batches have more ways to differ than one formula; a profile with fewer examples has fewer here too."""

WORKED_ROWS = [[0.9, 0.5, 0.5, 0.1], [0.2, 0.2, 0.2, 0.2], [1.0, 0.0, 0.0, 0.0], [0.4, 0.3, 0.8, 0.6]]


def options_of(question, utility, rule, *, tokens=False, **more):
    """The library's options for a question of the oracle."""
    policy = TokenPolicy(
        other=question.other, length_norm=question.length_norm, set_reward_weight=question.set_reward_weight
    )
    return SetCreditOptions(
        utility=utility,
        rule=rule,
        normalization=Normalization(
            type=question.kind, ddof=question.ddof, epsilon=question.epsilon, baseline=question.baseline
        ),
        tokens=policy if tokens else None,
        malformed=MalformedPolicy(
            failure_reward=question.failure_reward,
            extra=question.extra,
            duplicates=question.duplicates,
            candidates=question.limit,
        ),
        **more,
    )


def assert_close(got, expected, tolerance):
    """Equal to the tolerance, and None exactly where None is expected."""
    got = optional(got)
    assert [v is None for v in got] == [v is None for v in expected]
    pairs = [(a, b) for a, b in zip(got, expected, strict=True) if b is not None]
    assert all(abs(a - b) <= tolerance for a, b in pairs), (got, expected)


@st.composite
def sets_with_faults(draw, *, tables=False, whole=False, tokens=False):
    """A set with ties, nulls, copies of one reward, now and then a number that is not finite."""
    size = draw(st.integers(0, 4))
    codes = draw(st.lists(st.integers(-1, 2), min_size=size, max_size=size))
    of_code = {code: draw(grid) for code in range(3)}
    rewards = [draw(grid) if code < 0 else of_code[code] for code in codes]
    values = None
    if tables:
        values = draw(st.lists(grid, min_size=1 << size, max_size=1 << size))
        if draw(st.integers(0, 9)) == 0:
            values[draw(st.integers(0, len(values) - 1))] = draw(st.sampled_from([NAN, INF]))
    elif size:
        rewards = [None if draw(st.integers(0, 6)) == 0 else r for r in rewards]
        if draw(st.integers(0, 9)) == 0:
            rewards[draw(st.integers(0, size - 1))] = draw(st.sampled_from([NAN, INF, -INF]))
            codes = [-1] * size
    cuts = sorted(draw(st.lists(st.integers(0, 12), min_size=2 * size, max_size=2 * size))) if tokens else []
    spans = draw(st.permutations([(cuts[2 * i], cuts[2 * i + 1]) for i in range(size)])) if tokens else None
    return OneSet(
        rewards,
        group=draw(st.integers(0, 2)),
        texts=codes,
        values=values,
        spans=spans,
        n_tokens=draw(st.integers(max([0, *cuts]), 14)) if tokens else 0,
        set_reward=draw(st.sampled_from([None, 0.0, 1.0, 0.5, 0.25])) if whole else None,
    )


questions = st.builds(
    Question,
    utility=st.none(),
    kind=st.sampled_from([kind for kind in KINDS if kind != "per_slot"]),
    ddof=st.sampled_from([0, 1]),
    epsilon=st.sampled_from([0.0, 1e-4]),
    failure_reward=st.sampled_from([0.0, -1.0, 0.375]),
    limit=st.sampled_from([None, 2, 3]),
    extra=st.sampled_from(["truncate", "score_all"]),
    duplicates=st.sampled_from(["keep", "collapse"]),
    other=st.sampled_from(["set", "zero", "next"]),
    length_norm=st.booleans(),
    set_reward_weight=st.sampled_from([0.0, 1.0, -0.5]),
)


def assert_batch(sets, question, utility, rule, *, tokens=False):
    """A whole batch equals the loops of the oracle, number by number."""
    if question.kind == "none":
        question = dataclasses.replace(question, baseline="group")
    answer = set_credit(columns(sets), options_of(question, utility, rule, tokens=tokens))
    expected = oracles.solve_batch(sets, question)
    assert [error.row for error in answer.errors] == [row for row, own in enumerate(expected) if own is None]
    assert answer.ok.tolist() == [own is not None for own in expected]
    for row, own in enumerate(expected):
        credit, advantages = row_of(answer.credits, answer, row), row_of(answer.advantages, answer, row)
        if own is None:
            summary = (answer.set_advantages, answer.utility_empty, answer.utility_grand, answer.gaps)
            assert np.isnan([*credit, *advantages, *(values[row] for values in (*summary, answer.credit_sums))]).all()
            assert answer.flags[row] == 0
            continue
        shares = [c for c in own.credits if c is not None]
        assert_close(credit, own.credits, EXACT * own.scale)
        size = 1.0 + max(map(abs, [own.of_set, *(a for a in own.advantages if a is not None)]))
        assert_close(advantages, own.advantages, AGREEMENT * size)
        assert answer.set_advantages[row] == pytest.approx(own.of_set, abs=AGREEMENT * size)
        assert answer.utility_empty[row] == own.empty
        assert answer.utility_grand[row] == pytest.approx(own.grand, abs=EXACT * own.scale)
        assert answer.credit_sums[row] == pytest.approx(math.fsum(shares), abs=EFFICIENCY * own.scale)
        gap = math.fsum(shares) - (own.grand - own.empty)
        assert answer.gaps[row] == pytest.approx(gap, abs=EFFICIENCY * own.scale)
        assert set(Flag(int(answer.flags[row])).wire_names) == own.flags
        if answer.set_reward_advantages is not None:
            size += abs(own.of_set_reward)
            assert answer.set_reward_advantages[row] == pytest.approx(own.of_set_reward, abs=AGREEMENT * size)
        if tokens:
            got = answer.token_advantages[answer.token_splits[row] : answer.token_splits[row + 1]]
            assert_close(got, own.tokens, 8 * AGREEMENT * size)


@settings(max_examples=MANY)
@given(
    st.lists(sets_with_faults(), min_size=1, max_size=7),
    questions,
    st.sampled_from(sorted(UTILITIES)),
    st.sampled_from(sorted(RULES)),
    st.sampled_from(["group", "others"]),
)
def test_a_batch_of_rewards_equals_the_loops(sets, question, utility_name, rule_name, baseline):
    """Ragged sets with nulls, copies, surplus and failures, groups in any order: all numbers and flags are defined."""
    (utility, definition), (rule, name) = UTILITIES[utility_name], RULES[rule_name]
    question = dataclasses.replace(question, utility=definition, rule=name, baseline=baseline)
    assert_batch(sets, question, utility, rule)


@settings(max_examples=MANY)
@given(st.lists(sets_with_faults(tables=True), min_size=1, max_size=6), questions, st.sampled_from(sorted(RULES)))
def test_a_batch_of_tables_equals_the_loops(sets, question, rule_name):
    """Tables of several sizes with copies, surplus and failures: all numbers and flags are defined."""
    rule, name = RULES[rule_name]
    assert_batch(sets, dataclasses.replace(question, rule=name), Table(), rule)


@settings(max_examples=MANY)
@given(st.lists(sets_with_faults(tokens=True, whole=True), min_size=1, max_size=6), questions)
def test_a_batch_of_tokens_equals_the_loops(sets, question):
    """With spans and set rewards, every token of every completion has the value of the loop over tokens."""
    question = dataclasses.replace(question, utility=oracles.best())
    assert_batch(sets, question, Max(), Shapley(), tokens=True)


@given(
    st.lists(st.tuples(st.lists(grid, min_size=3, max_size=3), st.integers(0, 1)), min_size=1, max_size=6),
    st.sampled_from([0.0, 1e-4]),
)
def test_even_groups_per_slot_equal_the_loops(rows, epsilon):
    """`per_slot` of even groups, interleaved in any order, equals the loop over positions."""
    sets = [OneSet(row, group=group) for row, group in rows]
    question = Question(oracles.best(), kind="per_slot", epsilon=epsilon)
    assert_batch(sets, question, Max(), Shapley())


@pytest.mark.parametrize("kind", ["pooled", "batch_scaled", "centered", "response_preserving"])
@pytest.mark.parametrize("rule_name", sorted(RULES))
@given(
    rows=st.lists(st.lists(grid, min_size=1, max_size=5), min_size=1, max_size=6),
    utility_name=st.sampled_from(sorted(UTILITIES)),
    data=st.data(),
)
def test_every_rule_is_centred_under_every_normalization(rule_name, kind, rows, utility_name, data):
    """The mean over the responses of a prompt of the mean over candidates is 0, whatever the rule and the utility."""
    groups = [data.draw(st.integers(0, 1)) for _ in rows]
    baseline = data.draw(st.sampled_from(["group", "others"]))
    sets = [OneSet(row, group=group) for row, group in zip(rows, groups, strict=True)]
    options = SetCreditOptions(
        utility=UTILITIES[utility_name][0],
        rule=RULES[rule_name][0],
        normalization=Normalization(type=kind, baseline=baseline, epsilon=data.draw(st.sampled_from([0.0, 1e-4]))),
    )
    answer = set_credit(columns(sets), options)
    for group in set(groups):
        own = [row_of(answer.advantages, answer, row) for row, g in enumerate(groups) if g == group]
        largest = max([1.0, *(np.abs(row).max() for row in own)])
        assert abs(oracles.mean([oracles.mean(row) for row in own])) <= CENTRED * largest


@given(
    st.lists(st.lists(grid, min_size=1, max_size=5), min_size=1, max_size=6),
    st.sampled_from(sorted(UTILITIES)),
    st.sampled_from(sorted(RULES)),
)
def test_gaps_are_near_zero_for_efficient_rules(rows, utility_name, rule_name):
    """Sums and gaps are those of the credits; Shapley and the set reward leave no gap."""
    (utility, definition), (rule, _) = UTILITIES[utility_name], RULES[rule_name]
    answer = solve(rows, utility=utility, rule=rule)
    for row, rewards in enumerate(rows):
        scale = oracles.scale_of(oracles.game_of(rewards, definition))
        total = math.fsum(row_of(answer.credits, answer, row))
        assert answer.credit_sums[row] == pytest.approx(total, abs=EFFICIENCY * scale)
        assert answer.gaps[row] == pytest.approx(total - (definition(rewards) - definition([])), abs=EFFICIENCY * scale)
        if rule_name in {"shapley", "set_reward"}:
            assert abs(answer.gaps[row]) <= EFFICIENCY * scale


def test_worked_group_shapley():
    """Shapley, `pooled`, ε = 0: the ten digits of the worked group."""
    answer = solve(WORKED_ROWS)
    assert answer.advantages.reshape(4, 4) == pytest.approx(
        np.array(
            [
                [1.4089806213, -0.0856286565, -0.0856286565, -0.5838317492],
                [-0.4904186693] * 4,
                [3.0592783657, -0.6772448290, -0.6772448290, -0.6772448290],
                [-0.2724548163, -0.3970055894, 0.8485021421, 0.1011975032],
            ]
        ),
        abs=WORKED,
    )
    assert answer.set_advantages == pytest.approx([0.1634728898, -0.4904186693, 0.2568859696, 0.0700598099], abs=WORKED)
    assert answer.credits[:4].round(6).tolist() == [0.558333, 0.158333, 0.158333, 0.025]
    assert answer.utility_grand.tolist() == [0.9, 0.2, 1.0, 0.8]
    assert answer.flags.tolist() == [0, 0, 0, 0]


def test_worked_group_shapley_with_the_default_epsilon():
    """The defaults are Shapley of max, `pooled`, ddof 1 and ε = 10⁻⁴."""
    answer = set_credit(columns([OneSet(row) for row in WORKED_ROWS]), SetCreditOptions())
    expected = [1.4088490164, -0.0856206585, -0.0856206585, -0.5837772167, *[-0.4903728621] * 4]
    assert answer.advantages[:8] == pytest.approx(expected, abs=WORKED)
    assert answer.advantages[8:12] == pytest.approx([3.0589926158] + [-0.6771815714] * 3, abs=WORKED)


def test_worked_group_leave_one_out():
    """Leave-one-out, `pooled`, ε = 0: the winners of sets 1, 3 and 4 stand out from one common value."""
    got = solve(WORKED_ROWS, rule=LeaveOneOut()).advantages
    expected = np.full(16, -0.3797772627)
    expected[[0, 8, 14]] = [1.1393317880, 3.4179953639, 0.3797772627]
    assert got == pytest.approx(expected, abs=WORKED)


def test_worked_group_half_way():
    """Half way from Shapley to leave-one-out, `pooled`, ε = 0: the first response."""
    got = solve(WORKED_ROWS, rule=Blend(Shapley(), LeaveOneOut(), 0.5)).advantages[:4]
    assert got == pytest.approx([1.2881256566, -0.2338443500, -0.2338443500, -0.4875060177], abs=WORKED)


def test_worked_group_response_preserving():
    """`response_preserving`, ε = 0: the first response, whose mean is the GRPO advantage."""
    answer = solve(WORKED_ROWS, kind="response_preserving")
    assert answer.advantages[:4].round(4).tolist() == [4.1968, -0.2551, -0.2551, -1.739]
    assert answer.set_advantages.round(4).tolist() == [0.4869, -1.4608, 0.7652, 0.2087]


def test_worked_values_with_a_floor_and_with_an_empty_utility():
    """A floor of ½ pays the best candidate alone; `empty` ½ moves every credit by −⅛. v(∅) is reported."""
    floor = solve([[0.9, 0.5, 0.5, 0.1]], utility=Max(floor=0.5))
    assert floor.credits == pytest.approx([0.4, 0.0, 0.0, 0.0], abs=WORKED)
    assert floor.credits[1:].tolist() == [0.0, 0.0, 0.0]
    empty = solve([[0.9, 0.5, 0.5, 0.1]], utility=Max(empty=0.5))
    assert empty.credits.round(4).tolist() == [0.4333, 0.0333, 0.0333, -0.1]
    assert floor.utility_empty.tolist() == empty.utility_empty.tolist() == [0.5]
    assert floor.utility_grand.tolist() == empty.utility_grand.tolist() == [0.9]


def random_sets(size, *, tables, seed=5, ranked=False):
    """Sets of one to six candidates in groups that are spread over the batch."""
    random = np.random.default_rng(seed)
    sets = []
    for row in range(size):
        n = int(random.integers(1, 7))
        values = random.normal(size=1 << n).tolist() if tables else None
        ranks = random.permutation(n).tolist() if ranked else None
        sets.append(OneSet(random.normal(size=n).tolist(), group=row % max(size // 4, 1), values=values, ranks=ranks))
    return sets


@pytest.mark.parametrize("size", [2, 63, 64, 65, 500])
@pytest.mark.parametrize("tables", [False, True])
def test_a_set_has_one_credit_in_every_batch(tables, size):
    """Alone and in a batch of any size and order, the credit of a set has the same bits."""
    sets = random_sets(size, tables=tables)
    utility = Table() if tables else Max()
    for rule, _ in RULES.values():
        options = SetCreditOptions(utility=utility, rule=rule)
        together, backwards = set_credit(columns(sets), options), set_credit(columns(sets[::-1]), options)
        for row in {0, 1, size // 2, size - 2, size - 1}:
            alone = set_credit(columns([sets[row]]), options)
            credit = row_of(together.credits, together, row).tobytes()
            assert alone.credits.tobytes() == credit
            assert row_of(backwards.credits, backwards, size - 1 - row).tobytes() == credit


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in {"per_slot", "batch_scaled"}])
@pytest.mark.parametrize("tables", [False, True])
def test_a_group_has_one_answer_in_any_company_and_order(tables, kind):
    """A group alone, or among others in any order, has the same bits in everything but `batch_scaled`."""
    sets = random_sets(64, tables=tables)
    options = SetCreditOptions(utility=Table() if tables else Max(), normalization=Normalization(type=kind))
    answer = set_credit(columns(sets), options)
    order = np.random.default_rng(1).permutation(64).tolist()
    shuffled = set_credit(columns([sets[row] for row in order]), options)
    for at, row in enumerate(order):
        assert bits(shuffled, at) == bits(answer, row)
    for group in range(4):
        rows = [row for row in order if sets[row].group == group]
        alone = set_credit(columns([sets[row] for row in rows]), options)
        assert [bits(alone, at) for at in range(len(rows))] == [bits(answer, row) for row in rows]


@given(st.randoms(use_true_random=False), st.sampled_from([rule for rule in sorted(RULES) if rule != "prefix_gain"]))
def test_the_order_of_candidates_changes_no_bit_under_ranks(random, rule_name):
    """Candidates of tables that carry ranks, in another order, have the same bits."""
    rule, _ = RULES[rule_name]
    (one,) = random_sets(1, tables=True, seed=random.randrange(1 << 20), ranked=True)
    n = len(one.rewards)
    order = random.sample(range(n), n)
    other = OneSet(
        [one.rewards[i] for i in order],
        values=[one.values[sum(1 << order[j] for j in oracles.members_of(mask, n))] for mask in range(1 << n)],
        ranks=[one.ranks[i] for i in order],
    )
    options = SetCreditOptions(utility=Table(), rule=rule)
    before, after = (set_credit(columns([each]), options) for each in (one, other))
    assert before.credits[order].tobytes() == after.credits.tobytes()
