import numpy as np
import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = pytest.mark.models

import torch  # noqa: E402

from creditd.engines import outcome_probes  # noqa: E402
from creditd.engines.outcome_probes import (  # noqa: E402
    answer_ids,
    answer_places,
    change,
    change_gradient,
    changes,
    logits_of,
    measured_places,
    outcome,
    outcome_of,
    read_tokens,
)
from engines.policies import PROBES, item_of  # noqa: E402


def softmax(logits):
    """Of the last axis, in NumPy."""
    found = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return found / found.sum(axis=-1, keepdims=True)


@pytest.fixture
def logits():
    """Of two rows, three answer tokens and eleven tokens of a vocabulary."""
    return torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 11)).astype(np.float32))


def test_distributions_and_their_divergence(logits):
    """Softmax of the mean of the logits; Σ p·log(p/q) with the clean one first."""
    found = outcome(logits, torch.tensor([1, 2, 3]), "answer_mean")
    expected = softmax(logits.double().numpy().mean(axis=1))
    assert found.exp().numpy() == pytest.approx(expected, abs=1e-7)
    divergence = (expected[0] * np.log(expected[0] / expected[1])).sum()
    assert float(change(found[:1], found[1:], "answer_mean")) == pytest.approx(divergence, abs=1e-7)
    assert float(change(found[:1], found[:1], "last")) == 0.0


def test_the_mean_likelihood_of_the_answer(logits):
    """λ is a mean over answer tokens; its change is signed."""
    answer = torch.tensor([1, 2, 10])
    found = outcome(logits, answer, "answer_joint")
    known = np.log(softmax(logits.double().numpy()))
    expected = known[:, [0, 1, 2], answer.numpy()].mean(axis=1)
    assert found.numpy() == pytest.approx(expected, abs=1e-6)
    first, second = (float(change(found[i : i + 1], found[1 - i :][:1], "answer_joint")) for i in (0, 1))
    assert first == pytest.approx(-second)
    assert first == pytest.approx(expected[0] - expected[1], abs=1e-6)


def test_a_token_without_probability_adds_nothing():
    """Where the clean probability is 0, so is the term, and never NaN."""
    clean = torch.tensor([[0.0, -torch.inf]], dtype=torch.float64)
    assert float(change(clean, torch.tensor([[-1.0, -torch.inf]], dtype=torch.float64), "last")) == 1.0


def test_what_is_no_number_stays_none():
    """NaN is never taken for a token without probability."""
    clean = torch.tensor([[torch.nan, 0.0]], dtype=torch.float64)
    assert torch.isnan(change(clean, torch.zeros((1, 2), dtype=torch.float64), "last")).all()


def test_small_divergences_keep_their_digits():
    """A divergence of 1e-10 nats is told to four digits: it is taken in float64."""
    logits = torch.zeros((2, 1, 4), dtype=torch.float32)
    logits[1, 0, 0] = 2.0**-15
    found = outcome(logits, torch.tensor([0]), "last")
    size = float(change(found[:1], found[1:], "last"))
    step = 2.0**-15
    expected = np.log((3 + np.exp(step)) / 4) - step / 4
    assert size == pytest.approx(expected, rel=1e-4)
    assert 1e-11 < size < 1e-9


class _Sums:
    """A head that is linear, and counts the states that it is asked."""

    def __init__(self, *, averages):
        self.averages, self.asked = averages, 0

    def __call__(self, states):
        self.asked += len(states)
        return states * 2.0


@pytest.mark.parametrize("probe", PROBES)
def test_a_linear_head_is_asked_for_a_mean_where_a_mean_is_wanted(logits, probe):
    """Once a row; with a cap, or for likelihoods, for every state. Numbers are the same."""
    linear, other = _Sums(averages=True), _Sums(averages=False)
    answer = torch.tensor([1, 2, 3])
    found = outcome(logits_of(logits, linear, probe), answer, probe)
    assert torch.allclose(found, outcome(logits_of(logits, other, probe), answer, probe))
    assert linear.asked == (6 if probe == "answer_joint" else 2)
    assert other.asked == 6


@pytest.mark.parametrize("averages", [True, False])
@pytest.mark.parametrize("most", [1, 2 * 11, 5 * 11, 1 << 20])
@pytest.mark.parametrize("probe", PROBES)
def test_long_answers_are_looked_at_a_part_at_a_time(probe, most, averages, monkeypatch):
    """Outcomes, changes and gradients are the same however few logits are in memory at once."""
    monkeypatch.setattr(outcome_probes, "MOST_LOGITS", most)
    draw = torch.Generator().manual_seed(0)
    weights = torch.randn(11, 6, generator=draw, dtype=torch.float64)

    def head(states):
        asked.append(len(states))
        found = states @ weights.T
        return found if averages else 2.0 * torch.tanh(found / 2.0)

    head.averages = averages
    asked = []
    n_read = 1 if probe == "last" else 7
    clean_states, states = torch.randn(2, 3, n_read, 6, generator=draw, dtype=torch.float64)
    answer = torch.arange(n_read) + 2
    clean = outcome(logits_of(clean_states[:1], head, probe), answer, probe)
    expected = change(clean, outcome(logits_of(states, head, probe), answer, probe), probe)
    leaf = states[0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(
        change(clean, outcome(logits_of(leaf[None], head, probe), answer, probe), probe).sum(), leaf
    )
    asked.clear()
    kept = outcome_of(clean_states[:1], head, answer, probe, vocabulary=11)
    found = changes(kept, states, head, answer, probe, vocabulary=11)
    back = change_gradient(kept, states[0], head, answer, probe, vocabulary=11)
    assert torch.allclose(found, expected, rtol=1e-9)
    assert torch.allclose(back, gradient, rtol=1e-6, atol=1e-9)
    assert max(asked) <= max(1, most // 11)


def test_places_are_those_that_predict():
    """One before the answer tokens; `last` has the first alone; the token of a prompt may be one."""
    item = item_of(prompt=5, reasoning=4, conclusion=2, answer=3, measured=[1, 3])
    assert answer_places(item, "last").tolist() == [10]
    assert answer_places(item, "answer_mean").tolist() == answer_places(item, "answer_joint").tolist() == [10, 11, 12]
    assert measured_places(item).tolist() == [6, 8]
    assert len(read_tokens(item)) == 13
    assert answer_ids(item).tolist() == item.completion_ids[6:9].tolist()
    assert answer_places(item_of(prompt=5, reasoning=0, conclusion=0), "last").tolist() == [4]


def test_tokens_of_a_request_that_may_not_be_written_become_tensors():
    """As they come out of a binary body; torch would warn of its own view of them."""
    item = item_of()
    item.completion_ids.flags.writeable = False
    found = answer_ids(item)
    assert found.tolist() == item.completion_ids[slice(*item.answer)].tolist()
    assert torch.from_numpy(found).tolist() == found.tolist()
