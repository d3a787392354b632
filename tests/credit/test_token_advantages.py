import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit import oracles
from credit.batches import CENTRED, splits
from creditd.credit import TokenPolicy
from creditd.credit.token_advantages import (
    CandidateSpans,
    length_norm_weights,
    overlapping_candidates,
    token_advantages,
)

ROUNDING = 1e-13
"""One product and one quotient of numbers of size one."""

ADVANTAGES = st.floats(-4, 4).map(lambda x: round(x, 3))


@st.composite
def completions(draw):
    """(advantages, A^set, disjoint spans in any order, tokens) of one completion."""
    cuts = sorted(draw(st.lists(st.integers(0, 12), min_size=0, max_size=8)))
    # Equal cuts make an empty span.
    spans = draw(st.permutations([(cuts[i], cuts[i + 1]) for i in range(0, len(cuts) - 1, 2)]))
    n_tokens = draw(st.integers(max([0, *cuts]), 16))
    advantages = [draw(ADVANTAGES) for _ in spans]
    return advantages, draw(ADVANTAGES), spans, n_tokens


def spans_of(batch):
    """Where the candidates of a batch stand."""
    flat = np.array([span for _, _, spans, _ in batch for span in spans], dtype=np.int64).reshape(-1, 2)
    return CandidateSpans(
        owner=np.repeat(np.arange(len(batch)), [len(spans) for _, _, spans, _ in batch]),
        start=flat[:, 0],
        stop=flat[:, 1],
        n_tokens=np.array([n for *_, n in batch], dtype=np.int64),
    )


def solve(batch, **options):
    """Token advantages of each completion."""
    flat = np.array([a for advantages, *_ in batch for a in advantages], dtype=np.float64)
    of_sets = np.array([a for _, a, *_ in batch], dtype=np.float64)
    values = token_advantages(flat, of_sets, spans_of(batch), TokenPolicy(**options))
    return np.split(values, splits(n for *_, n in batch)[1:-1])


@pytest.mark.parametrize("length_norm", [False, True])
@pytest.mark.parametrize("other", ["set", "zero", "next"])
@given(batch=st.lists(completions(), min_size=1, max_size=5))
def test_every_token_equals_a_loop_over_tokens(other, length_norm, batch):
    """Candidates in any order, with and without tokens, at any place: each token is what the policy says."""
    got = solve(batch, other=other, length_norm=length_norm)
    for tokens, (advantages, of_set, spans, n_tokens) in zip(got, batch, strict=True):
        expected = oracles.tokens_of_response(advantages, of_set, spans, n_tokens, other=other, length_norm=length_norm)
        assert tokens.shape == (n_tokens,)
        assert np.abs(tokens - expected).max(initial=0.0) <= ROUNDING * 100


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [9, 2, 2, 9, 3, 3, 3, 3, 9, 9]),
        ({"other": "zero"}, [0, 2, 2, 0, 3, 3, 3, 3, 0, 0]),
        ({"other": "next"}, [2, 2, 2, 3, 3, 3, 3, 3, 9, 9]),
        ({"length_norm": True}, [9, 3, 3, 9, 2.25, 2.25, 2.25, 2.25, 9, 9]),
        ({"other": "next", "length_norm": True}, [2, 3, 3, 3, 2.25, 2.25, 2.25, 2.25, 9, 9]),
    ],
)
def test_worked_completion(options, expected):
    """Ten tokens, candidates of two and of four tokens with advantages 2 and 3, and A^set = 9."""
    completion = ([3.0, 2.0, 7.0], 9.0, [(4, 8), (1, 3), (0, 0)], 10)
    assert solve([completion], **options)[0].tolist() == expected


@given(st.lists(completions(), min_size=1, max_size=5))
def test_length_norm_keeps_the_total(batch):
    """Σ ω_k·L_k = Σ L_k in each response, and every candidate with tokens has the same mass per unit of advantage."""
    spans = spans_of(batch)
    lengths = spans.stop - spans.start
    weights = length_norm_weights(spans)
    for response in range(len(batch)):
        own = (spans.owner == response) & (lengths > 0)
        assert (weights[own] * lengths[own]).sum() == pytest.approx(lengths[own].sum(), rel=CENTRED)
        if own.any():
            share = lengths[own].sum() / own.sum()
            assert weights[own] * lengths[own] == pytest.approx(np.full(own.sum(), share), rel=CENTRED)
    assert (weights[lengths == 0] == 1.0).all()


@given(st.lists(completions(), min_size=1, max_size=4))
def test_tokens_of_a_candidate_carry_its_mass(batch):
    """Under `zero` a completion sums to Σ L_k·A_k, and with length_norm to (Σ L/K)·Σ A_k."""
    for tokens, evened, (advantages, of_set, spans, n_tokens) in zip(
        solve(batch, other="zero"), solve(batch, other="zero", length_norm=True), batch, strict=True
    ):
        if not spans:
            assert tokens.tolist() == evened.tolist() == [of_set] * n_tokens
            continue
        lengths = [stop - start for start, stop in spans]
        held = [(a, length) for a, length in zip(advantages, lengths, strict=True) if length]
        assert tokens.sum() == pytest.approx(sum(a * length for a, length in held), abs=ROUNDING * 100)
        share = sum(lengths) / max(len(held), 1)
        assert evened.sum() == pytest.approx(share * sum(a for a, _ in held), abs=ROUNDING * 1000)


def test_constant_set_advantage_closes_the_mass():
    """When the mean of A over candidates is A^set, `set` with length_norm sums to (tokens)·A^set."""
    ((tokens),) = solve([([3.0, -1.0, 1.0], 1.0, [(1, 2), (3, 8), (8, 9)], 12)], length_norm=True)
    assert tokens.sum() == pytest.approx(12.0, abs=ROUNDING * 100)


@pytest.mark.parametrize("other", ["set", "zero", "next"])
def test_a_response_without_candidates_has_its_own_advantage(other):
    """Whatever the policy, a response in which nothing was parsed has A^set on all its tokens."""
    before, bare, after = solve([([1.0], 5.0, [(0, 2)], 2), ([], 7.0, [], 3), ([2.0], 6.0, [(0, 1)], 1)], other=other)
    assert (before.tolist(), bare.tolist(), after.tolist()) == ([1.0, 1.0], [7.0, 7.0, 7.0], [2.0])


def test_no_completions_have_no_tokens():
    """An empty batch, and completions without tokens, give no values."""
    nothing = np.empty(0, dtype=np.int64)
    empty = CandidateSpans(owner=nothing, start=nothing, stop=nothing, n_tokens=nothing)
    assert token_advantages(np.empty(0), np.empty(0), empty, TokenPolicy()).shape == (0,)
    assert solve([([], 1.0, [], 0)])[0].shape == (0,)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 8), st.integers(0, 4)), max_size=8))
def test_overlaps_are_found(candidates):
    """Spans overlap when and only when some token of a response has two candidates."""
    spans = [(owner, start, start + length) for owner, start, length in candidates]
    owner, start, stop = (np.array([s[i] for s in spans], dtype=np.int64) for i in range(3))
    clashing = overlapping_candidates(owner, start, stop)
    taken = [(o, t) for o, a, b in spans for t in range(a, b)]
    assert (len(clashing) > 0) == (len(set(taken)) < len(taken))
    for index in clashing:
        o, a, b = spans[index]
        assert any(
            i != index and (o, t) in {(p, u) for u in range(c, d)}
            for t in range(a, b)
            for i, (p, c, d) in enumerate(spans)
        )


def test_the_later_of_two_overlapping_spans_is_named():
    """Touching and empty spans do not overlap; the one that begins inside another does, whatever their order."""
    owner = np.zeros(4, dtype=np.int64)
    start, stop = np.array([6, 0, 3, 2]), np.array([9, 3, 7, 2])
    assert overlapping_candidates(owner, start, stop).tolist() == [0]
    assert overlapping_candidates(np.array([0, 0, 1, 0]), start, stop).tolist() == []
