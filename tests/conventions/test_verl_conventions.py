"""Group advantages against the estimators of verl."""

import importlib

import pytest

from conventions.groups import LENGTH, OF_A_LIBRARY, REWARDS, TOKENS

pytest.importorskip("verl", reason="the lane `trainer` installs verl into an environment of its own")
pytestmark = OF_A_LIBRARY

import numpy as np  # noqa: E402
import torch  # noqa: E402

from creditd.client import Client  # noqa: E402

AGREEMENT = 1e-7
"""verl computes these tensors in float64, but adds 1e-8 to the number of tokens."""
SINGLE_PRECISION = 2e-6
"""Named rewards become float32 in verl's `gdpo`."""


@pytest.fixture(scope="module")
def algorithms():
    """The module of the estimators, which loads Ray and tensordict."""
    return importlib.import_module("verl.trainer.ppo.core_algos")


def tensors(rewards, tokens):
    """What an estimator takes: rewards on the last token, the mask of responses, the name of each group."""
    lengths = [n for row in tokens for n in row]
    mask = torch.zeros(len(lengths), LENGTH)
    scores = torch.zeros(len(lengths), LENGTH, dtype=torch.float64)
    for at, (n, reward) in enumerate(zip(lengths, [r for row in rewards for r in row], strict=True)):
        mask[at, :n], scores[at, n - 1] = 1.0, reward
    names = np.array([f"prompt {row}" for row, of_row in enumerate(rewards) for _ in of_row], dtype=object)
    return {"token_level_rewards": scores, "response_mask": mask, "index": names}


def theirs(estimate, rewards, tokens=TOKENS, **options):
    """Rows of advantages, the same on every token of a response."""
    given = tensors(rewards, tokens)
    found, _ = estimate(**given, **options)
    assert torch.equal(found, found[:, :1] * given["response_mask"])
    flat = iter(found[:, 0].tolist())
    return [[next(flat) for _ in row] for row in rewards]


def ours(rewards, advantage, **options):
    """The same from the client, over the whole way of a request."""
    with Client("local:") as client:
        answer = client.group(rewards, advantage=advantage, convention="verl", **options)
    return [row.tolist() for row in answer.advantages]


def same(found, expected, tolerance=AGREEMENT):
    """Two lists of rows agree."""
    return found == [pytest.approx(row, rel=tolerance, abs=tolerance) for row in expected]


@pytest.mark.parametrize(
    ("advantage", "name", "options"),
    [
        ("grpo", "compute_grpo_outcome_advantage", {}),
        ("grpo", "compute_grpo_vectorized_outcome_advantage", {}),
        ("dr_grpo", "compute_grpo_outcome_advantage", {"norm_adv_by_std_in_grpo": False}),
        ("rloo", "compute_rloo_outcome_advantage", {}),
        ("rloo", "compute_rloo_vectorized_outcome_advantage", {}),
        ("reinforce++_baseline", "compute_reinforce_plus_plus_baseline_outcome_advantage", {}),
        ("leave_one_out", "compute_grpo_passk_outcome_advantage", {"config": {"norm_adv_by_std_in_grpo": False}}),
    ],
)
def test_groups_with_a_contrast_have_the_numbers_of_verl(algorithms, advantage, name, options):
    """Each rule in the convention `verl` is the estimator of that name; the whitening counts tokens."""
    estimate = getattr(algorithms, name)
    assert same(ours(REWARDS, advantage, n_tokens=TOKENS), theirs(estimate, REWARDS, **options))


def test_tokens_matter_to_the_whitening(algorithms):
    """Without numbers of tokens each response counts once, which is verl only where all have as many."""
    estimate = algorithms.compute_reinforce_plus_plus_baseline_outcome_advantage
    assert not same(ours(REWARDS, "reinforce++_baseline"), theirs(estimate, REWARDS))
    equal = [[5] * len(row) for row in REWARDS]
    found = theirs(estimate, REWARDS, equal)
    assert same(ours(REWARDS, "reinforce++_baseline", n_tokens=equal), found)
    # A spread over N responses of L tokens has the divisor L·N − 1, not N − 1.
    size = sum(map(len, REWARDS))
    ratio = np.sqrt((5 * size - 1) / 5 / (size - 1))
    once = ours(REWARDS, {"type": "reinforce++_baseline", "whitening": {"type": "verl", "epsilon": 0.0}})
    assert same([[a * ratio for a in row] for row in once], found, 1e-6)


@pytest.mark.parametrize("weights", [None, {"correct": 1.0, "format": 0.5}])
def test_gdpo_is_the_estimator_of_that_name(algorithms, weights):
    """Each name is standardised within groups with ε = 1e-6, weighted, summed and whitened over tokens."""
    named = {"correct": REWARDS, "format": [[0.0, 1.0, 1.0, 1.0], [0.25, 0.5, 0.0, 1.0], [1.0, 0.0, 0.0, 0.5]]}
    lengths = torch.tensor([n for row in TOKENS for n in row])
    attention = torch.cat([torch.ones(12, 2), tensors(REWARDS, TOKENS)["response_mask"]], dim=1).long()
    assert attention.sum(1).tolist() == (lengths + 2).tolist()
    found = theirs(
        algorithms.compute_gdpo_outcome_advantage,
        REWARDS,
        config={
            "gdpo_reward_keys": list(named),
            "gdpo_reward_weights": None if weights is None else list(weights.values()),
        },
        non_tensor_batch={name: [r for row in rows for r in row] for name, rows in named.items()},
        batch={"prompts": torch.zeros(12, 2), "attention_mask": attention},
    )
    assert same(ours(named, "gdpo", weights=weights, n_tokens=TOKENS), found, SINGLE_PRECISION)


@pytest.mark.parametrize(
    ("advantage", "name"),
    [("grpo", "compute_grpo_outcome_advantage"), ("rloo", "compute_rloo_outcome_advantage")],
)
def test_verl_passes_the_raw_reward_of_a_singleton(algorithms, advantage, name):
    """A group of one response: its raw reward there (over 1 + ε in GRPO), 0 and a flag here."""
    rewards, tokens = [[0.75], [1.0, 0.0]], [[3], [2, 4]]
    found, here = theirs(getattr(algorithms, name), rewards, tokens), ours(rewards, advantage)
    assert found[0] == [pytest.approx(0.75, rel=2e-6)]
    assert here[0] == [0.0]
    assert same(here[1:], found[1:])


def test_verl_whitens_the_raw_reward_of_a_singleton_with_the_others(algorithms):
    """The raw reward of a singleton moves the mean and the spread of the whole request there; here it counts as 0."""
    estimate = algorithms.compute_reinforce_plus_plus_baseline_outcome_advantage
    rewards, tokens = [[0.75], [1.0, 0.0]], [[3], [2, 4]]
    found, here = theirs(estimate, rewards, tokens), ours(rewards, "reinforce++_baseline", n_tokens=tokens)
    assert here[0] == [0.0]
    assert not same(here, found)
    # With the singleton's centred reward, which is 0, the other group has verl's numbers.
    (_, expected) = theirs(estimate, [[0.0], [1.0, 0.0]], tokens)
    assert same(here[1:], [expected])


def test_verl_gives_a_constant_group_the_shift_of_the_whitening(algorithms):
    """A constant group is −m/s there, where m is the mean over tokens, and exactly 0 here; the others agree."""
    estimate = algorithms.compute_reinforce_plus_plus_baseline_outcome_advantage
    rewards, tokens = [[0.5, 0.5], [1.0, 0.0]], [[2, 3], [1, 4]]
    found, here = theirs(estimate, rewards, tokens), ours(rewards, "reinforce++_baseline", n_tokens=tokens)
    assert found[0][0] == found[0][1] > 0.1
    assert here[0] == [0.0, 0.0]
    assert same(here[1:], found[1:])


def test_verl_refuses_what_has_no_second_response(algorithms):
    """`grpo_passk` raises for a singleton; leave-one-out there is the reward, because v(∅) = 0."""
    with pytest.raises(ValueError, match="at least 2 samples"):
        theirs(algorithms.compute_grpo_passk_outcome_advantage, [[0.75]], [[3]], config={})
    assert ours([[0.75]], "leave_one_out") == [[0.75]]


def test_pass_at_k_of_verl_is_another_rule(algorithms):
    """`grpo_passk` pays the lead of the best response over its spread; `pass_at_k` pays all right ones alike."""
    estimate = algorithms.compute_grpo_passk_outcome_advantage
    rewards, tokens = [[1.0, 1.0, 0.0, 0.0]], [[1, 1, 1, 1]]
    assert theirs(estimate, rewards, tokens, config={}) == [[0.0] * 4]
    (here,) = ours(rewards, {"type": "pass_at_k", "k": 2})
    assert here[0] == here[1] > 0.0 > here[2] == here[3]
