"""SkyRL's adapter against the documented signatures: the package itself needs another Python, and no lane has it."""

import asyncio
import sys
import types
from dataclasses import dataclass

import numpy as np
import pytest

from adapters.test_loop_credit import IDS, LENGTHS, PADDED, PARSER, Tokenizer, by_client, score
from creditd.adapters.skyrl import CandidateReward, CreditConfig, CreditGenerator, LoopCredit, handed_on, register
from creditd.client import TransportError

NOBODY = "http://127.0.0.1:9"


@dataclass
class TrajectoryID:
    """As SkyRL's."""

    instance_id: str
    repetition_id: int


@dataclass
class BatchMetadata:
    """As SkyRL's."""

    global_step: int
    training_phase: str


class Generator:
    """Returns what it was made with."""

    device = "somewhere"

    def __init__(self, **changes):
        self.output = {
            "prompt_token_ids": [[2], [2], [3], [3]],
            "response_ids": IDS,
            "rewards": [1.0, 0.0, 0.5, 0.5],
            "loss_masks": [[1] * length for length in LENGTHS],
            "stop_reasons": ["stop"] * 4,
            "rollout_metrics": {"generate/tokens": 17},
            "rollout_logprobs": None,
            **changes,
        }

    async def generate(self, _):
        """As SkyRL's."""
        return self.output


def batch(phase="train", step=3, names="ppqq"):
    """A `GeneratorInput`."""
    return {
        "prompts": [[{"role": "user", "content": name}] for name in names],
        "env_classes": ["words"] * 4,
        "env_extras": [{"topic": name} for name in names],
        "sampling_params": None,
        "trajectory_ids": [TrajectoryID(name, place) for place, name in enumerate(names)],
        "batch_metadata": BatchMetadata(step, phase),
    }


def generated(generator=None, given=None, *, reward=score, weight=1.0, **config):
    """What SkyRL gets."""
    credit = LoopCredit(
        CandidateReward(reward, PARSER), CreditConfig(**{"url": "local:"} | config), tokenizer=Tokenizer()
    )
    made = CreditGenerator(generator or Generator(), credit, environment_weight=weight)
    return asyncio.run(made.generate(given or batch()))


def test_rewards_are_token_advantages():
    """Those that the client gives, with the environment's as rewards of whole responses."""
    found = generated()
    assert found["rewards"] == by_client(set_rewards=[1.0, 0.0, 0.5, 0.5]).token_advantages.to_list()
    assert generated(weight=0.0)["rewards"] == by_client().token_advantages.to_list()
    assert generated(weight=2.0)["rewards"] == by_client(set_rewards=[2.0, 0.0, 1.0, 1.0]).token_advantages.to_list()
    assert found["response_ids"] == IDS
    assert found["rollout_metrics"]["generate/tokens"] == 17
    assert found["rollout_metrics"]["credit/reward"] == 0.75
    assert found["rollout_metrics"]["credit/fallbacks"] == 0.0


def test_tokens_that_are_not_trained_have_nothing():
    """Exactly 0 where the loss mask is."""
    masks = [[1, 1, 1, 1], [1, 1, 0, 0, 1], [1, 1], [1] * 6]
    assert generated(Generator(loss_masks=masks))["rewards"][1][2:4] == [0.0, 0.0]


def test_columns_and_steps_reach_functions():
    """What the data set says of a prompt, and the global step."""
    seen, steps = {}, []

    def with_columns(prompts, candidates, completions, *, env_extras, env_class):
        seen.update(env_extras=env_extras, env_class=env_class)
        return score(prompts, candidates, completions)

    generated(reward=with_columns, credit=lambda step: steps.append(step) or "shapley")
    assert [extra["topic"] for extra in seen["env_extras"]] == list("ppqq")
    assert seen["env_class"] == ["words"] * 4
    assert steps[-1] == 3


def test_evaluation_is_left_as_it_is():
    """Nobody is asked."""
    generator = Generator()
    assert generated(generator, batch("eval"), url=NOBODY) == generator.output


def test_a_dead_service_is_raised_or_counted():
    """As the failure policy has it."""
    with pytest.raises(TransportError):
        generated(url=NOBODY, deadline_s=0.2)
    found = generated(url=NOBODY, deadline_s=0.2, on_failure="mask")
    assert {value for row in found["rewards"] for value in row} == {0.0}
    assert found["rollout_metrics"]["credit/fallbacks"] == 1.0


@pytest.mark.parametrize(
    ("generator", "given", "words"),
    [
        (None, batch(names="pqpq"), "groups of"),
        (None, batch(names="pppq"), r"groups of \[1, 3\]"),
        (None, {**batch(), "trajectory_ids": None}, "no trajectory_ids"),
        (Generator(response_ids=[*IDS, IDS[0]]), None, "step-wise"),
        (Generator(rewards=[[0.0], [1.0], [0.0], [0.0]]), None, "for each token"),
    ],
)
def test_what_cannot_be_compared_is_refused(generator, given, words):
    """Nothing is guessed of groups, steps or token rewards."""
    with pytest.raises(ValueError, match=words):
        generated(generator, given)


def test_everything_else_is_the_wrapped_generators():
    """Attributes that SkyRL's trainer looks at."""
    assert CreditGenerator(Generator(), None).device == "somewhere"


def test_the_estimator_hands_on():
    """The numbers as they are, 0 on padding; it is registered once under its name."""
    rewards, mask = np.ones((4, 6)), (np.array(PADDED) > 0).astype(float)
    advantages, returns = handed_on(rewards, mask, index=None, grpo_norm_by_std=True)
    assert advantages.tolist() == returns.tolist() == mask.tolist()


def test_registration_is_by_skyrls_own_registry(monkeypatch):
    """Under the name of the setting, once."""
    known = {}

    class Registry:
        @classmethod
        def list_available(cls):
            return list(known)

        @classmethod
        def register(cls, name, function):
            assert name not in known
            known[name] = function

    parts = ["skyrl", "backends", "skyrl_train", "utils", "ppo_utils"]
    for depth in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:depth]), types.ModuleType(".".join(parts[:depth])))
    sys.modules[".".join(parts)].AdvantageEstimatorRegistry = Registry
    register()
    register()
    assert known == {"creditd": handed_on}
