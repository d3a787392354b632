"""Group advantages against the experience maker of OpenRLHF."""

import importlib
from types import SimpleNamespace

import pytest

from conventions.groups import LENGTH, OF_A_LIBRARY, REWARDS, TOKENS
from openrlhf_here import without_a_gpu

pytest.importorskip("openrlhf", reason="the lane `trainer` installs OpenRLHF into an environment of its own")
pytestmark = OF_A_LIBRARY

import numpy as np  # noqa: E402
import torch  # noqa: E402

from creditd.client import Client  # noqa: E402

AGREEMENT = 1e-12
"""OpenRLHF keeps the float64 of these rewards, but whitens in float32."""
SINGLE_PRECISION = 1e-6


@pytest.fixture(scope="module")
def openrlhf():
    """The classes of the experience maker and of what it reads."""
    with without_a_gpu():
        maker = importlib.import_module("openrlhf.trainer.ppo_utils.experience_maker").RemoteExperienceMaker
        experience = importlib.import_module("openrlhf.trainer.ppo_utils.experience").Experience
    return SimpleNamespace(maker=maker, experience=experience)


def theirs(openrlhf, estimator, rewards, tokens=TOKENS):
    """Rows of advantages, the same on every token of a response, from experiences of three responses each."""
    flat, lengths = [r for row in rewards for r in row], [n for row in tokens for n in row]
    advantage = SimpleNamespace(estimator=estimator, gamma=1.0, lambd=1.0, no_std_norm=False)
    reward = SimpleNamespace(
        clip_range=None, overlong_buffer_len=None, overlong_penalty_factor=0.0, stop_properly_penalty_coef=None
    )
    args = SimpleNamespace(
        algo=SimpleNamespace(advantage=advantage),
        rollout=SimpleNamespace(n_samples_per_prompt=len(rewards[0])),
        reward=reward,
    )
    maker = openrlhf.maker.__new__(openrlhf.maker)
    maker.strategy, maker.advantage_estimator = SimpleNamespace(args=args), estimator
    maker.kl_ctl = SimpleNamespace(value=0.0)
    experiences = []
    for start in range(0, len(flat), 3):
        at = list(range(start, min(start + 3, len(flat))))
        mask = torch.tensor([[float(t < lengths[i]) for t in range(LENGTH)] for i in at], dtype=torch.float64)
        experiences.append(
            openrlhf.experience(
                index=at,
                rewards=torch.tensor([flat[i] for i in at], dtype=torch.float64),
                action_mask=mask,
                kl=torch.zeros_like(mask),
                info={},
            )
        )
    done = maker.compute_advantages_and_returns(experiences)
    found = []
    for experience in done:
        mask = experience.action_mask.bool()
        for values, own in zip(experience.advantages, mask, strict=True):
            first = values[0].item()
            assert values[own].tolist() == pytest.approx([first] * int(own.sum()), rel=0, abs=0, nan_ok=True)
            found.append(first)
    rows = iter(found)
    return [[next(rows) for _ in row] for row in rewards]


def ours(rewards, advantage, **options):
    """The same from the client, over the whole way of a request."""
    with Client("local:") as client:
        answer = client.group(rewards, advantage=advantage, convention="openrlhf", **options)
    return [row.tolist() for row in answer.advantages]


def same(found, expected, tolerance=AGREEMENT):
    """Two lists of rows agree."""
    return found == [pytest.approx(row, rel=tolerance, abs=tolerance) for row in expected]


@pytest.mark.parametrize(
    ("advantage", "estimator", "tolerance"),
    [
        ("grpo", "group_norm", AGREEMENT),
        ("dr_grpo", "dr_grpo", AGREEMENT),
        ("rloo", "rloo", AGREEMENT),
        ("reinforce++_baseline", "reinforce_baseline", SINGLE_PRECISION),
    ],
)
def test_groups_with_a_contrast_have_the_numbers_of_openrlhf(openrlhf, advantage, estimator, tolerance):
    """Each rule in the convention `openrlhf` is the estimator; the whitening counts tokens, with ddof 0."""
    assert same(ours(REWARDS, advantage, n_tokens=TOKENS), theirs(openrlhf, estimator, REWARDS), tolerance)


def test_tokens_matter_to_the_whitening(openrlhf):
    """Without numbers of tokens each response counts once, which is OpenRLHF where all have as many."""
    assert not same(
        ours(REWARDS, "reinforce++_baseline"), theirs(openrlhf, "reinforce_baseline", REWARDS), SINGLE_PRECISION
    )
    equal = [[5] * len(row) for row in REWARDS]
    found = theirs(openrlhf, "reinforce_baseline", REWARDS, equal)
    assert same(ours(REWARDS, "reinforce++_baseline"), found, SINGLE_PRECISION)


def test_a_small_variance_meets_the_floor(openrlhf):
    """Below 1e-8 the variance is 1e-8 there and here, which is not a sum of the two."""
    rewards = [[2e-5, 0.0, 0.0, 0.0]]
    tokens = [[2, 1, 1, 1]]
    found = theirs(openrlhf, "reinforce_baseline", rewards, tokens)
    here = ours(rewards, "reinforce++_baseline", n_tokens=tokens)
    assert same(here, found, SINGLE_PRECISION)
    assert here[0][0] - here[0][1] == pytest.approx(2e-5 / 1e-4, rel=1e-12)


def test_a_constant_group_gets_the_shift_of_the_whitening(openrlhf):
    """A constant group is −m/s there, where m is the mean over tokens, and exactly 0 here; the others agree."""
    rewards, tokens = [[0.5, 0.5], [1.0, 0.0]], [[2, 3], [1, 4]]
    found = theirs(openrlhf, "reinforce_baseline", rewards, tokens)
    here = ours(rewards, "reinforce++_baseline", n_tokens=tokens)
    assert found[0][0] == found[0][1] > 0.1
    assert here[0] == [0.0, 0.0]
    assert same(here[1:], found[1:], SINGLE_PRECISION)


@pytest.mark.parametrize(("advantage", "estimator"), [("grpo", "group_norm"), ("rloo", "rloo")])
def test_a_singleton_is_no_number_there(openrlhf, advantage, estimator):
    """One response per prompt divides 0 by 0 in OpenRLHF; here it is 0 and flagged."""
    found = theirs(openrlhf, estimator, [[0.75], [0.5]], [[3], [2]])
    assert np.isnan(found).all()
    assert ours([[0.75], [0.5]], advantage) == [[0.0], [0.0]]


def test_equal_rewards_of_group_norm_are_rounding_over_epsilon_there(openrlhf):
    """Three rewards of .1 have a mean that is not .1 to the last bit; over ε = 1e-9 that is small, here it is 0."""
    rewards = [[0.1, 0.1, 0.1]]
    (found,) = theirs(openrlhf, "group_norm", rewards, [[1, 1, 1]])
    assert found == pytest.approx([0.0] * 3, abs=1e-6)
    assert ours(rewards, "grpo") == [[0.0] * 3]
