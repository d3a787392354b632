import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit import oracles
from credit.batches import CENTRED, WORKED, grid
from creditd.credit import Flag, Normalization
from creditd.credit.set_advantages import SetCreditEntries, set_advantages

AGREEMENT = 1e-10
"""The oracle sums exactly, the library in order; D and R are multiples of 1/8, so no spread is near rounding."""

KINDS = ("pooled", "batch_scaled", "centered", "response_preserving", "per_slot", "none")
CENTRED_KINDS = KINDS[:4]

WORKED_ROWS = [[0.9, 0.5, 0.5, 0.1], [0.2, 0.2, 0.2, 0.2], [1.0, 0.0, 0.0, 0.0], [0.4, 0.3, 0.8, 0.6]]
POOLED = [
    [1.4089806213, -0.0856286565, -0.0856286565, -0.5838317492],
    [-0.4904186693] * 4,
    [3.0592783657, -0.6772448290, -0.6772448290, -0.6772448290],
    [-0.2724548163, -0.3970055894, 0.8485021421, 0.1011975032],
]
POOLED_SETS = [0.1634728898, -0.4904186693, 0.2568859696, 0.0700598099]

responses = st.builds(
    lambda scaled, reward, empty, group: (oracles.Response(scaled, reward, empty), group),
    st.lists(grid, min_size=1, max_size=4),
    grid,
    st.sampled_from([0.0, 0.5]),
    st.integers(0, 2),
)
batches = st.lists(responses, min_size=1, max_size=9)


def entries_of(batch, n_groups=3):
    """Columns of (response, group) pairs."""
    return SetCreditEntries(
        credits=np.array([d / len(response.scaled) for response, _ in batch for d in response.scaled]),
        owner=np.repeat(np.arange(len(batch)), [len(response.scaled) for response, _ in batch]),
        set_rewards=np.array([response.reward for response, _ in batch]),
        empty_utilities=np.array([response.empty for response, _ in batch]),
        scales=np.array([abs(response.reward) for response, _ in batch]),
        groups=np.array([group for _, group in batch], dtype=np.int64),
        n_groups=n_groups,
    )


def solve(batch, kind="pooled", **options):
    """Advantages per response, set-level advantages and flags."""
    result = set_advantages(entries_of(batch), Normalization(type=kind, **options))
    ends = np.cumsum([len(response.scaled) for response, _ in batch])[:-1]
    return np.split(result.advantages, ends), result.set_advantages, [Flag(int(bits)) for bits in result.flags]


def even(batch):
    """The batch with its responses cut to one length, as `per_slot` needs them."""
    shortest = min(len(response.scaled) for response, _ in batch)
    return [(oracles.Response(r.scaled[:shortest], r.reward, r.empty), group) for r, group in batch]


def of_max(rows, group=0):
    """Responses of one group with Shapley credit of max."""
    return [(oracles.Response([len(r) * c for c in oracles.airport(r)], max(r), 0.0), group) for r in rows]


@pytest.mark.parametrize("kind", KINDS)
@given(batch=batches, ddof=st.sampled_from([0, 1]), epsilon=st.sampled_from([0.0, 1e-4]), data=st.data())
def test_each_group_is_normalized_by_its_formula(kind, batch, ddof, epsilon, data):
    """Ragged groups interleaved in any order equal a loop over each group, flags included."""
    batch = even(batch) if kind == "per_slot" else batch
    baseline = "group" if kind in {"per_slot", "none"} else data.draw(st.sampled_from(["group", "others"]))
    options = {"ddof": ddof, "epsilon": epsilon, "baseline": baseline}
    candidates, sets, flags = solve(batch, kind, **options)
    overall = oracles.deviation([d for response, _ in batch for d in response.scaled], ddof)
    groups = defaultdict(list)
    for row, (_, group) in enumerate(batch):
        groups[group].append(row)
    for rows in groups.values():
        expected = oracles.normalize_group([batch[r][0] for r in rows], kind, spread_of_request=overall, **options)
        size = 1.0 + max(abs(a) for row in [*expected.candidates, expected.responses] for a in row)
        for at, row in enumerate(rows):
            assert np.abs(candidates[row] - expected.candidates[at]).max() <= AGREEMENT * size
            assert abs(sets[row] - expected.responses[at]) <= AGREEMENT * size
            assert set(flags[row].wire_names) == expected.flags


@pytest.mark.parametrize("baseline", ["group", "others"])
@pytest.mark.parametrize("kind", CENTRED_KINDS)
@given(batch=batches, epsilon=st.sampled_from([0.0, 1e-4]))
def test_the_mean_over_responses_of_the_mean_over_candidates_is_zero(kind, baseline, batch, epsilon):
    """Each centred normalisation is centred on responses, each counted once whatever its size; so are those of sets."""
    candidates, sets, _ = solve(batch, kind, epsilon=epsilon, baseline=baseline)
    for group in {group for _, group in batch}:
        rows = [row for row, (_, own) in enumerate(batch) if own == group]
        largest = max([1.0, *(np.abs(candidates[row]).max() for row in rows), *(abs(sets[row]) for row in rows)])
        assert abs(oracles.mean([oracles.mean(candidates[row]) for row in rows])) <= CENTRED * largest
        assert abs(oracles.mean([sets[row] for row in rows])) <= CENTRED * largest


@given(batches, st.sampled_from(KINDS), st.randoms(use_true_random=False))
def test_order_changes_no_bit(batch, kind, random):
    """Responses in any order, and their candidates in any order but for `per_slot`, have the same bits."""
    batch = even(batch) if kind == "per_slot" else batch
    order = list(range(len(batch)))
    random.shuffle(order)
    inner = [list(range(len(response.scaled))) for response, _ in batch]
    if kind != "per_slot":
        for places in inner:
            random.shuffle(places)
    moved = []
    for i in order:
        response, group = batch[i]
        scaled = [response.scaled[j] for j in inner[i]]
        moved.append((oracles.Response(scaled, response.reward, response.empty), group))
    candidates, sets, flags = solve(batch, kind)
    moved_candidates, moved_sets, moved_flags = solve(moved, kind)
    assert moved_sets.tobytes() == sets[order].tobytes()
    assert moved_flags == [flags[i] for i in order]
    for at, i in enumerate(order):
        assert moved_candidates[at].tobytes() == candidates[i][inner[i]].tobytes()


@given(batches, st.sampled_from([kind for kind in KINDS if kind != "batch_scaled"]))
def test_company_changes_no_bit(batch, kind):
    """Of all normalisations only `batch_scaled` sees other groups."""
    batch = even(batch) if kind == "per_slot" else batch
    own = [row for row, (_, group) in enumerate(batch) if group == batch[0][1]]
    together, alone = solve(batch, kind), solve([batch[row] for row in own], kind)
    assert together[1][own].tobytes() == alone[1].tobytes()
    for at, row in enumerate(own):
        assert together[0][row].tobytes() == alone[0][at].tobytes()


def test_batch_scaled_sees_the_whole_request():
    """Another group changes the denominator of `batch_scaled`, and one group alone is `pooled`."""
    group = of_max(WORKED_ROWS)
    alone = np.concatenate(solve(group, "batch_scaled")[0])
    assert alone == pytest.approx(np.concatenate(solve(group, "pooled")[0]), abs=WORKED)
    wide = solve(group + of_max([[9.0, 1.0], [0.0, 3.0]], group=1), "batch_scaled")[0]
    assert np.abs(np.concatenate(wide[:4])).max() < 0.5 * np.abs(alone).max()


@given(st.lists(grid, min_size=2, max_size=6), st.sampled_from([0, 1]), st.sampled_from([0.0, 1e-4]))
def test_single_candidates_pooled_are_grpo(rewards, ddof, epsilon):
    """With K = 1, `pooled` is the GRPO advantage, and so is A^set."""
    candidates, sets, _ = solve(of_max([[r] for r in rewards]), ddof=ddof, epsilon=epsilon)
    expected = oracles.advantages_of_group(rewards, "grpo", ddof=ddof, epsilon=epsilon)
    assert np.concatenate(candidates) == pytest.approx(expected, abs=AGREEMENT * 100)
    assert sets == pytest.approx(expected, abs=AGREEMENT * 100)


@given(st.lists(st.lists(grid, min_size=1, max_size=5), min_size=2, max_size=5))
def test_efficient_credit_keeps_the_grpo_direction(rows):
    """For Shapley credit of ragged sets the mean over candidates is A^set; `response_preserving` makes it GRPO's."""
    group = of_max(rows)
    for kind in CENTRED_KINDS[:3]:
        candidates, sets, _ = solve(group, kind)
        largest = max([1.0, *(np.abs(row).max() for row in candidates)])
        assert [oracles.mean(row) for row in candidates] == pytest.approx(sets, abs=AGREEMENT * largest)
    candidates, sets, flags = solve(group, "response_preserving")
    expected = oracles.advantages_of_group([max(row) for row in rows], "grpo")
    assert [oracles.mean(row) for row in candidates] == pytest.approx(expected, abs=AGREEMENT * 1e4)
    assert sets == pytest.approx(expected, abs=AGREEMENT * 1e4)
    assert (Flag.DEGENERATE_GROUP in flags[0]) == (len({max(row) for row in rows}) == 1)


def test_worked_group():
    """Four responses of four candidates, Shapley, `pooled`, ε = 0 and ddof 1."""
    candidates, sets, flags = solve(of_max(WORKED_ROWS), epsilon=0.0)
    assert np.array(candidates) == pytest.approx(np.array(POOLED), abs=WORKED)
    assert sets == pytest.approx(POOLED_SETS, abs=WORKED)
    assert flags == [Flag(0)] * 4


def test_worked_group_with_epsilon():
    """The same group with ε = 10⁻⁴."""
    candidates, _, _ = solve(of_max(WORKED_ROWS))
    assert candidates[0][:2] == pytest.approx([1.4088490164, -0.0856206585], abs=WORKED)
    assert candidates[0][3] == pytest.approx(-0.5837772167, abs=WORKED)
    assert candidates[1] == pytest.approx([-0.4903728621] * 4, abs=WORKED)
    assert candidates[2] == pytest.approx([3.0589926158] + [-0.6771815714] * 3, abs=WORKED)


def test_worked_group_response_preserving():
    """The first response under `response_preserving`; its mean is the GRPO advantage .4869."""
    candidates, sets, _ = solve(of_max(WORKED_ROWS), "response_preserving", epsilon=0.0)
    assert candidates[0].round(4).tolist() == [4.1968, -0.2551, -0.2551, -1.739]
    assert sets.round(4).tolist() == [0.4869, -1.4608, 0.7652, 0.2087]
    assert candidates[0].mean() == pytest.approx(sets[0], abs=WORKED)


def test_response_preserving_is_flagged_when_rewards_hardly_differ():
    """Best rewards .9, .9, .9001, .9 make advantages of 18,000, flagged; `pooled` stays near one."""
    group = of_max([[0.9, 0.0], [0.9, 0.0], [0.9001, 0.0], [0.9, 0.0]])
    candidates, _, flags = solve(group, "response_preserving", epsilon=0.0)
    # σ_R is 5·10⁻⁵, and the third winner has D = 1.8002 against a mean of .900025.
    assert candidates[2][0] == pytest.approx((1.8002 - 0.900025) / 5e-5, rel=WORKED)
    assert 1.7e4 < max(row.max() for row in candidates) < 1.9e4
    assert all(Flag.UNSTABLE_NORMALIZATION in bits for bits in flags)
    candidates, _, flags = solve(group, "pooled", epsilon=0.0)
    assert max(row.max() for row in candidates) < 2.0
    assert flags == [Flag(0)] * 4
    steady = solve(of_max(WORKED_ROWS), "response_preserving", epsilon=0.0)[2]
    assert steady == [Flag(0)] * 4


@pytest.mark.parametrize(("ratio", "unstable"), [(99.0, False), (101.0, True)])
def test_a_hundredfold_spread_is_unstable(ratio, unstable):
    """The flag stands where the credits spread more than a hundred times wider than the rewards and ε together."""
    # D = ±1 twice has s_D = √(4/3); R = ±x has σ_R = x·√2.
    x = math.sqrt(4 / 3) / ratio / math.sqrt(2.0)
    group = [(oracles.Response([1.0, -1.0], sign * x, 0.0), 0) for sign in (1.0, -1.0)]
    flags = solve(group, "response_preserving", epsilon=0.0)[2]
    assert flags == [Flag.UNSTABLE_NORMALIZATION if unstable else Flag(0)] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_groups_without_contrast_give_exactly_zero(kind):
    """Equal credits of equal responses give 0.0 to the bit and a flag, whatever ε; `none` keeps the credit."""
    group = [(oracles.Response([0.1, 0.1, 0.1], 0.1, 0.0), 0)] * 3
    for epsilon in (0.0, 1e-4):
        candidates, sets, flags = solve(group, kind, epsilon=epsilon)
        if kind == "none":
            assert np.concatenate(candidates) == pytest.approx([0.1 / 3] * 9, abs=WORKED)
            assert sets.tolist() == [0.1] * 3
            assert flags == [Flag(0)] * 3
        else:
            assert np.concatenate(candidates).tolist() == [0.0] * 9
            assert sets.tolist() == [0.0] * 3
            assert flags == [Flag.DEGENERATE_GROUP] * 3


def test_rounding_is_no_contrast():
    """A spread of 10⁻¹² of the largest D is rounding, not contrast; ten times more is contrast."""
    flat = [(oracles.Response([1.0, 1.0 + 1e-13], 1.0, 0.0), 0), (oracles.Response([1.0], 1.0, 0.0), 0)]
    candidates, _, flags = solve(flat, epsilon=0.0)
    assert np.concatenate(candidates).tolist() == [0.0] * 3
    assert flags == [Flag.DEGENERATE_GROUP] * 2
    lively = [(oracles.Response([1.0, 1.0 + 1e-10], 1.0, 0.0), 0), flat[1]]
    candidates, _, flags = solve(lively, epsilon=0.0)
    assert candidates[0][1] > 0.5
    assert flags == [Flag(0)] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_one_response_is_compared_with_itself_or_not_at_all(kind):
    """Of one response `pooled`, `centered` and `none` keep the contrast inside the set, flagged; the others give 0."""
    (candidates,), sets, (flags,) = solve([(oracles.Response([3.0, 1.0], 2.0, 0.5), 0)], kind, epsilon=0.0)
    expected = {"pooled": [math.sqrt(0.5), -math.sqrt(0.5)], "centered": [1.0, -1.0], "none": [1.5, 0.5]}
    assert candidates == pytest.approx(expected.get(kind, [0.0, 0.0]), abs=WORKED)
    assert sets.tolist() == [1.5 if kind == "none" else 0.0]
    assert Flag.SINGLE_RESPONSE in flags
    assert (Flag.DEGENERATE_GROUP in flags) == (kind not in expected)


@pytest.mark.parametrize("kind", ["pooled", "centered"])
def test_one_response_has_no_others(kind):
    """The baseline of the other responses does not exist for one response: 0, flagged."""
    (candidates,), sets, (flags,) = solve([(oracles.Response([3.0, 1.0], 2.0, 0.5), 0)], kind, baseline="others")
    assert candidates.tolist() == [0.0, 0.0]
    assert sets.tolist() == [0.0]
    assert flags == Flag.SINGLE_RESPONSE | Flag.DEGENERATE_GROUP


def test_baseline_of_others_leaves_the_response_out():
    """`others` compares each response with the mean of the other G − 1: G/(G − 1) times the centred set advantage."""
    group = of_max(WORKED_ROWS)
    own, sets, _ = solve(group, "centered")
    others, sets_of_others, _ = solve(group, "centered", baseline="others")
    assert sets_of_others == pytest.approx(4 / 3 * sets, abs=WORKED)
    best = [max(row) for row in WORKED_ROWS]
    for at, row in enumerate(WORKED_ROWS):
        d = 4 * np.array(oracles.airport(row))
        assert others[at] == pytest.approx(d - (sum(best) - best[at]) / 3, abs=WORKED)
        assert own[at] == pytest.approx(d - sum(best) / 4, abs=WORKED)


def test_per_slot_standardizes_each_position():
    """`per_slot` compares the candidates at one position; a position without contrast gives 0 and a flag."""
    group = [(oracles.Response([1.0, 5.0], 1.0, 0.0), 0), (oracles.Response([2.0, 5.0], 3.0, 0.0), 0)]
    candidates, sets, flags = solve(group, "per_slot", epsilon=0.0)
    half = math.sqrt(0.5)
    assert candidates[0] == pytest.approx([-half, 0.0], abs=WORKED)
    assert candidates[1] == pytest.approx([half, 0.0], abs=WORKED)
    assert sets == pytest.approx([-half, half], abs=WORKED)
    assert flags == [Flag.DEGENERATE_GROUP] * 2


def test_per_slot_keeps_its_candidates_when_the_rewards_agree():
    """Equal set rewards give A^set = 0 and leave the contrast at each position."""
    group = [(oracles.Response([1.0, 3.0], 2.0, 0.0), 0), (oracles.Response([3.0, 1.0], 2.0, 0.0), 0)]
    candidates, sets, _ = solve(group, "per_slot", epsilon=0.0)
    assert sets.tolist() == [0.0, 0.0]
    assert candidates[0] == pytest.approx([-math.sqrt(0.5), math.sqrt(0.5)], abs=WORKED)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "per_slot", "baseline": "others"}, "per_slot has no baseline"),
        ({"type": "none", "baseline": "others"}, "none has no baseline"),
        ({"epsilon": -1e-9}, "negative"),
        ({"ddof": -1}, "negative"),
    ],
)
def test_normalizations_without_meaning_are_refused(options, message):
    """A choice that means nothing cannot be made."""
    with pytest.raises(ValueError, match=message):
        Normalization(**options)


@pytest.mark.parametrize("kind", KINDS)
def test_no_responses_have_no_advantages(kind):
    """An empty batch gives an empty answer."""
    empty = SetCreditEntries(
        credits=np.empty(0),
        owner=np.empty(0, dtype=np.int64),
        set_rewards=np.empty(0),
        empty_utilities=np.empty(0),
        scales=np.empty(0),
        groups=np.empty(0, dtype=np.int64),
        n_groups=0,
    )
    result = set_advantages(empty, Normalization(type=kind))
    assert result.advantages.shape == result.set_advantages.shape == result.flags.shape == (0,)


@pytest.mark.parametrize("kind", CENTRED_KINDS)
@pytest.mark.parametrize(("offset", "spread"), [(1e3, 0.1), (1e6, 0.1), (1.0, 1e-8)])
def test_a_large_offset_costs_no_digits_of_the_centre(kind, offset, spread):
    """The mean over responses of the mean over candidates is 0 to 1e-12 far away from 0 too."""
    draw = np.random.default_rng(5)
    batch = [(oracles.Response((offset + spread * draw.random(k)).tolist(), offset, 0.0), 0) for k in (1, 2, 4, 3)]
    batch = [
        (oracles.Response(r.scaled, offset + spread * place, 0.0), group) for place, (r, group) in enumerate(batch)
    ]
    candidates, _, flags = solve(batch, kind, epsilon=0.0)
    assert not any(flag & Flag.DEGENERATE_GROUP for flag in flags)
    assert abs(np.mean([np.mean(row) for row in candidates])) <= 1e-12
