"""Group advantages against those that the trainers of TRL compute."""

import math

import pytest

from conventions.groups import OF_A_LIBRARY

pytest.importorskip("trl", reason="the lane `trainer` installs TRL")
pytestmark = OF_A_LIBRARY

import numpy as np  # noqa: E402
from datasets import Dataset  # noqa: E402
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer  # noqa: E402

from adapters.tiny import model, tokenizer  # noqa: E402
from creditd.client import Client  # noqa: E402

AGREEMENT = 2e-6
"""TRL computes in float32; rewards are below 4 and spreads above ¼."""
CORRECT = [[1.0, 0.0, 0.25, 1.0], [0.5, 0.0, 3.0, 0.0]]
FORMAT = [[0.0, 1.0, 1.0, 1.0], [0.25, 0.5, 0.0, 1.0]]
WEIGHTS = {"correct": 1.0, "format": 0.5}
BOTH = {"correct": CORRECT, "format": FORMAT}


def theirs(directory, rewards, *, kind=GRPOTrainer, settings=GRPOConfig, **options):
    """What a trainer of TRL makes of rewards by name: a row of advantages per prompt."""

    def reward(name):
        def score(completions, **_):
            assert len(completions) == sum(len(row) for row in rewards[name])
            return [value for row in rewards[name] for value in row]

        score.__name__ = name
        return score

    rows = next(iter(rewards.values()))
    prompts = [{"prompt": f"ask {word}"} for word in ("one", "two", "three")[: len(rows)]]
    trainer = kind(
        model=model(),
        args=settings(
            output_dir=str(directory),
            use_cpu=True,
            bf16=False,
            report_to="none",
            per_device_train_batch_size=sum(map(len, rows)),
            num_generations=len(rows[0]),
            max_completion_length=4,
            beta=0.0,
            seed=0,
            **options,
        ),
        train_dataset=Dataset.from_list(prompts),
        processing_class=tokenizer(),
        reward_funcs=[reward(name) for name in rewards],
    )
    trainer.model.train()
    inputs = [prompt for prompt in prompts for _ in rows[0]]
    advantages = trainer._generate_and_score_completions(inputs)["advantages"]
    return advantages.reshape(len(rows), -1).tolist()


def ours(rewards, advantage, **options):
    """The same from the client, over the whole way of a request."""
    with Client("local:") as client:
        return [row.tolist() for row in client.group(rewards, advantage=advantage, **options).advantages]


def same(found, expected):
    """Two lists of rows agree as far as float32 does."""
    return found == [pytest.approx(row, rel=AGREEMENT, abs=AGREEMENT) for row in expected]


def test_grpo_is_the_trainer_that_scales_by_groups(tmp_path):
    """`scale_rewards="group"` is `grpo` on the weighted sum, with ddof 1 and ε = 1e-4."""
    found = theirs(tmp_path, BOTH, scale_rewards="group", reward_weights=list(WEIGHTS.values()))
    assert same(ours(BOTH, "grpo", weights=WEIGHTS), found)
    assert not same(ours(BOTH, "grpo", weights=WEIGHTS, convention="verl"), found)


def test_dr_grpo_is_the_trainer_that_does_not_scale(tmp_path):
    """`scale_rewards="none"` is `dr_grpo` on the weighted sum."""
    found = theirs(tmp_path, BOTH, scale_rewards="none", reward_weights=list(WEIGHTS.values()))
    assert same(ours(BOTH, "dr_grpo", weights=WEIGHTS), found)


def test_scaling_by_the_batch_divides_by_the_spread_of_raw_rewards(tmp_path):
    """`scale_rewards="batch"` divides by the spread of rewards, `reinforce++_baseline` by that of what is centred."""
    rewards = {"correct": CORRECT}
    found = theirs(tmp_path, rewards, scale_rewards="batch")
    spread = np.std(CORRECT, ddof=1) + 1e-4
    assert same([[a / spread for a in row] for row in ours(CORRECT, "dr_grpo")], found)
    assert not same(ours(CORRECT, "reinforce++_baseline"), found)


def test_gdpo_is_the_trainer_that_normalises_first(tmp_path):
    """`multi_objective_aggregation="normalize_then_sum"` is `gdpo`, whitened over responses whatever their tokens."""
    options = {"multi_objective_aggregation": "normalize_then_sum", "reward_weights": list(WEIGHTS.values())}
    found = theirs(tmp_path, BOTH, **options)
    tokens = [[1, 2, 3, 4], [4, 3, 2, 1]]
    assert same(ours(BOTH, "gdpo", weights=WEIGHTS, n_tokens=tokens), found)
    verl = {"type": "gdpo", "epsilon": 1e-4, "whitening": {"type": "verl"}}
    assert not same(ours(BOTH, verl, weights=WEIGHTS, n_tokens=tokens), found)


def test_rloo_is_the_trainer_of_that_name(tmp_path):
    """RLOO of the weighted sum; whitened it is `reinforce++_baseline`, because G/(G−1) cancels but for ε."""
    options = {"kind": RLOOTrainer, "settings": RLOOConfig, "reward_weights": list(WEIGHTS.values())}
    found = theirs(tmp_path, BOTH, normalize_advantages=False, **options)
    assert same(ours(BOTH, "rloo", weights=WEIGHTS), found)
    found = theirs(tmp_path, BOTH, normalize_advantages=True, **options)
    whitening = {"type": "trl", "epsilon": 1e-4 * 3 / 4}
    assert same(ours(BOTH, {"type": "reinforce++_baseline", "whitening": whitening}, weights=WEIGHTS), found)


def test_groups_without_contrast_are_nearly_zero_there_and_zero_here(tmp_path):
    """Equal rewards of .1: float32 leaves rounding over ε = 1e-4, or the shift of the whitening; here it is 0."""
    flat = {"correct": [[0.1] * 4, [1.0, 0.0, 0.5, 0.25]]}
    for advantage, options in (
        ("grpo", {"scale_rewards": "group"}),
        ("gdpo", {"multi_objective_aggregation": "normalize_then_sum"}),
    ):
        found, here = theirs(tmp_path, flat, **options), ours(flat, advantage)
        assert here[0] == [0.0] * 4
        assert found[0] == pytest.approx([0.0] * 4, abs=1e-3)
        assert same(here[1:], found[1:])


def test_nulls_of_all_names_are_left_out_alike(tmp_path):
    """A response that no function scores gets 0 and no part in any baseline, in both aggregations."""
    rewards = {"correct": [[1.0, None, 0.25, 0.5]], "format": [[0.0, None, 1.0, 0.5]]}
    for advantage, options in (("grpo", {}), ("gdpo", {"multi_objective_aggregation": "normalize_then_sum"})):
        found = theirs(tmp_path, rewards, **options)
        assert found[0][1] == 0.0
        assert same(ours(rewards, advantage), found)


def test_a_null_of_one_name(tmp_path):
    """In `gdpo` it leaves that name alone, as in TRL; in a sum TRL counts it as 0, and here the sum is null."""
    rewards = {"correct": [[1.0, None, 0.25, 0.5]], "format": [[0.0, 0.75, 1.0, 0.5]]}
    found = theirs(tmp_path, rewards, multi_objective_aggregation="normalize_then_sum")
    assert same(ours(rewards, "gdpo"), found)
    found = theirs(tmp_path, rewards)
    as_zero = {**rewards, "correct": [[r or 0.0 for r in row] for row in rewards["correct"]]}
    assert same(ours(as_zero, "grpo"), found)
    (here,) = ours(rewards, "grpo")
    assert here[1] == 0.0
    assert math.fsum(here) == pytest.approx(0.0, abs=1e-12)
    assert not same([here], found)
