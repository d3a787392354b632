"""SkyRL's adapter where SkyRL is not installed; tests/adapters/test_skyrl_package.py has the package."""

import asyncio
import copy
import sys
import types
from dataclasses import dataclass

import numpy as np
import pytest

from adapters.test_loop_credit import IDS, LENGTHS, PADDED, PARSER, Tokenizer, by_client, score
from creditd.adapters import skyrl
from creditd.adapters.compatibility import SKYRL, SeamMovedError
from creditd.adapters.skyrl import (
    CandidateReward,
    CreditConfig,
    CreditGenerator,
    LoopCredit,
    check_settings,
    handed_on,
    register,
)
from creditd.client import TransportError

SETTINGS = {
    "trainer.algorithm.advantage_estimator": "creditd",
    "generator.step_wise_trajectories": False,
    "generator.merge_stepwise_output": False,
    "generator.apply_overlong_filtering": False,
    "trainer.critic.model.path": None,
    "trainer.algorithm.use_kl_in_reward": False,
    "trainer.algorithm.advantage_batch_normalize": False,
    "trainer.algorithm.dynamic_sampling.type": None,
    "trainer.fully_async.sample_full_batch": False,
    "trainer.fully_async.enabled": False,
    "trainer.algorithm.policy_loss_type": "regular",
}
NOBODY = "http://127.0.0.1:9"


def settings(**changes):
    """A configuration with SkyRL's names; `changes` by the last part of a name, `GONE` takes it away."""
    made = types.SimpleNamespace()
    for path, value in SETTINGS.items():
        *above, last = path.split(".")
        place = made
        for part in above:
            place = vars(place).setdefault(part, types.SimpleNamespace())
        if changes.get(last) is not GONE:
            setattr(place, last, changes.get(last, value))
    return made


GONE = object()


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
        self.quiet = []
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

    async def generate(self, input_batch, disable_tqdm=False):  # noqa: FBT002 - as SkyRL has it
        """As SkyRL's."""
        assert input_batch["prompts"]
        self.quiet.append(disable_tqdm)
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


def wanted_credit(reward=score, **config):
    """Whom to ask."""
    return LoopCredit(
        CandidateReward(reward, PARSER), CreditConfig(**{"url": "local:"} | config), tokenizer=Tokenizer()
    )


def generated(generator=None, given=None, *, reward=score, weight=1.0, **config):
    """What SkyRL gets."""
    made = CreditGenerator(
        generator or Generator(), wanted_credit(reward, **config), settings(), environment_weight=weight
    )
    return asyncio.run(made.generate(given or batch()))


def test_rewards_are_token_advantages():
    """Those that the client gives, with the environment's as rewards of whole responses."""
    found = generated()
    assert found["rewards"] == by_client(set_rewards=[1.0, 0.0, 0.5, 0.5]).token_advantages.to_list()
    assert generated(weight=0.0)["rewards"] == by_client().token_advantages.to_list()
    assert generated(weight=2.0)["rewards"] == by_client(set_rewards=[2.0, 0.0, 1.0, 1.0]).token_advantages.to_list()
    assert found["response_ids"] == IDS
    assert found["rollout_metrics"]["generate/tokens"] == 17
    assert found["rollout_metrics"]["credit/reward/mean"] == 0.75
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
    assert steps[-1] == 2  # SkyRL's third


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
        (Generator(is_last_step=[True] * 4), None, "step-wise"),
        (Generator(trajectory_ids=[TrajectoryID(name, 0) for name in "qqpp"]), None, "another order"),
        (Generator(rewards=["good", 1.0, 1.0, 1.0]), None, "environment's reward of response 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(generator, given, words):
    """Nothing is guessed of groups or steps."""
    with pytest.raises(ValueError, match=words):
        generated(generator, given)


def test_everything_else_is_the_wrapped_generators():
    """Attributes that SkyRL's trainer looks at."""
    made = CreditGenerator(Generator(), wanted_credit(), settings())
    assert made.device == copy.copy(made).device == "somewhere"
    with pytest.raises(AttributeError):
        _ = made.nothing


def test_rewards_of_tokens_count_as_their_sum():
    """As the environments of SkyRL's own generator give them."""
    rewards = [[0.25, 0.0, 0.0, 0.75], [0.0] * 5, [0.5, 0.0], [0.0] * 5 + [0.5]]
    assert generated(Generator(rewards=rewards))["rewards"] == generated()["rewards"]


def test_a_completion_that_ended_by_its_length_was_cut_off():
    """Its open candidate is none."""
    stops = ["stop", "length", "stop", "abort"]
    assert generated(Generator(stop_reasons=stops))["rollout_metrics"]["credit/candidates"] == 7 / 4
    assert generated(Generator(stop_reasons=None))["rollout_metrics"]["credit/candidates"] == 9 / 4


def test_the_share_of_a_step_is_that_of_synchronous_training():
    """Steps are not told apart where groups are generated at once."""

    def logged(*, is_async):
        made = CreditGenerator(Generator(), wanted_credit(), settings(enabled=is_async))
        found = [asyncio.run(made.generate(batch(phase))) for phase in ("train", "train", "eval", "train", "train")]
        return ["credit/share_of_step" in one["rollout_metrics"] for one in found]

    assert logged(is_async=False) == [False, True, False, False, True]
    assert not any(logged(is_async=True))


def test_quietness_is_handed_on():
    """To a generator that knows it."""
    generator = Generator()
    credit = wanted_credit()
    made = CreditGenerator(generator, credit, settings())
    asyncio.run(made.generate(batch(), disable_tqdm=True))
    assert generator.quiet == [True]

    class Old:
        async def generate(self, input_batch):
            return await generator.generate(input_batch)

    asyncio.run(CreditGenerator(Old(), credit, settings()).generate(batch(), disable_tqdm=True))
    assert generator.quiet == [True, False]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"advantage_estimator": "grpo"}, "expected creditd"),
        ({"step_wise_trajectories": True}, "last step alone"),
        ({"path": "critic"}, "would learn advantages"),
        ({"type": "filter"}, "spread of rewards"),
        ({"policy_loss_type": "cross_entropy"}, "does not look at advantages"),
    ],
)
def test_settings_that_lose_credit_are_refused(changes, words):
    """All of them in the package, which tests/adapters/test_skyrl_package.py has."""
    with pytest.raises(ValueError, match=words):
        check_settings(settings(**changes))


def test_a_setting_that_moved_is_said():
    """Nobody knows whether it loses credit."""
    with pytest.raises(SeamMovedError, match=r"no setting trainer\.algorithm\.use_kl_in_reward any more"):
        check_settings(settings(use_kl_in_reward=GONE))


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
    looked = []
    monkeypatch.setattr(skyrl, "demand_seams", looked.append)
    register()
    register()
    assert known == {"creditd": handed_on}
    assert looked == [SKYRL, SKYRL]
