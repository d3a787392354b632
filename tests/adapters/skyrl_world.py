"""SkyRL's own generator, trainer and loss around words that are written beforehand, without an engine or a GPU.

On Python 3.11 its data classes need the `TypedDict` of `typing_extensions`, which pydantic wants there; on 3.12 nothing
is changed.
"""

import asyncio
import sys
import typing

if sys.version_info < (3, 12):
    import typing_extensions

    typing.TypedDict = typing_extensions.TypedDict

import skyrl_gym
import torch
from skyrl.backends.skyrl_train.utils.ppo_utils import PolicyLossRegistry
from skyrl.train.config import SkyRLTrainConfig
from skyrl.train.generators.skyrl_gym_generator import SkyRLGymGenerator
from skyrl.train.generators.utils import concatenate_generator_outputs, prepare_generator_input
from skyrl.train.trainer import RayPPOTrainer
from skyrl.train.utils import validate_cfg
from skyrl_gym.envs.base_text_env import BaseTextEnv

from adapters import tiny

GROUP = 4
OURS = ("trainer.algorithm.advantage_estimator=creditd",)
ONE_GPU = (
    "trainer.logger=console",
    "trainer.placement.policy_num_gpus_per_node=1",
    "trainer.placement.ref_num_gpus_per_node=1",
    "generator.inference_engine.num_engines=1",
    "generator.inference_engine.enable_ray_prometheus_stats=false",
)
SIZES = (
    *ONE_GPU,
    "trainer.train_batch_size=2",
    "trainer.policy_mini_batch_size=2",
    "trainer.critic_mini_batch_size=2",
    "trainer.micro_train_batch_size_per_gpu=1",
    "trainer.micro_forward_batch_size_per_gpu=1",
    f"generator.n_samples_per_prompt={GROUP}",
    "generator.sampling_params.max_generate_length=8",
    "generator.sampling_params.logprobs=null",
    "generator.batched=false",
    "environment.env_class=words",
)
TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


class Words(BaseTextEnv):
    """Says after each turn but the last one what the data has for it; a turn is worth its words."""

    def __init__(self, env_config=None, extras=None):
        super().__init__()
        del env_config
        self.says = list((extras or {}).get("says", []))

    def step(self, action):
        """One turn."""
        done = not self.says
        seen = [] if done else [{"role": "user", "content": self.says.pop(0)}]
        return {"observations": seen, "reward": float(len(action.split())), "done": done, "metadata": {}}


if "words" not in skyrl_gym.envs.registration.registry:
    skyrl_gym.register(id="words", entry_point="adapters.skyrl_world:Words")


class Engine:
    """Writes what was written beforehand: for each row its turns, in whichever order it is asked."""

    def __init__(self, rows, stops):
        self.rows = [list(turns) for turns in rows]
        self.stops = stops

    async def generate(self, given, model=None):  # noqa: ARG002 - as SkyRL calls it
        """The next turn of the row that asks."""
        uid, _, repetition = given["session_ids"][0].rpartition("_")
        row = int(uid) * GROUP + int(repetition)
        words = self.rows[row].pop(0)
        ids = [tiny.VOCABULARY.index(word) for word in words]
        return {"responses": [" ".join(words)], "response_ids": [ids], "stop_reasons": [self.stops[row]]}

    async def finish_session(self, _):
        """Nothing is held."""


def tokenizer():
    """The tiny one, with a template for chats."""
    made = tiny.tokenizer()
    made.chat_template = TEMPLATE
    return made


def configured(*overrides):
    """SkyRL's configuration as its command line makes it."""
    return SkyRLTrainConfig.from_cli_overrides([*SIZES, *overrides])


def validated(*overrides):
    """The same, after SkyRL has looked at it."""
    config = configured(*overrides)
    validate_cfg(config)
    return config


def generator(config, words, stops=None, written=None):
    """SkyRL's own around an engine that writes these words, but for those that an environment writes between turns."""
    return SkyRLGymGenerator(
        generator_cfg=config.generator,
        skyrl_gym_cfg=config.environment.skyrl_gym,
        inference_engine_client=engine(words, stops, written),
        tokenizer=tokenizer(),
    )


def engine(words, stops=None, written=None):
    """What writes the policy's words of each row."""
    rows = [turns_of(row, mask)[0] for row, mask in zip(words, written or map(all_of, words), strict=True)]
    return Engine(rows, stops or ["stop"] * len(rows))


def all_of(row):
    """The policy wrote every word."""
    return [1] * len(row)


def turns_of(row, mask):
    """The policy's turns, and what the environment says between them."""
    turns, says = [[]], []
    for word, own in zip(row, mask, strict=True):
        if own:
            turns[-1].append(word)
        else:
            says.append(word)
            turns.append([])
    return turns, says


def batch(prompts, phase="train", step=1, extras=None):
    """What SkyRL's trainer hands to a generator, and the identities of its rows; `extras` has one for each of them."""
    rows = [
        {"prompt": [{"role": "user", "content": prompt}], "env_class": "words", "env_extras": {}, "uid": str(place)}
        for place, prompt in enumerate(prompts)
    ]
    given, uids = prepare_generator_input(rows, GROUP, None, "words", phase, step)
    for own, extra in zip(given["env_extras"], extras or [{}] * len(uids), strict=True):
        own.update(extra)
    return given, uids


class Dispatch:
    """What SkyRL's trainer asks of its workers before it hands them a batch: how many rows it has to fill up to."""

    def get_lcm_dp_size(self):
        """Three of them, so that eight rows are filled up to nine."""
        return 3


def trainer(config, made):
    """SkyRL's trainer with a generator, without models."""
    trains = RayPPOTrainer(
        cfg=config,
        tracker=None,
        tokenizer=tokenizer(),
        train_dataset=None,
        inference_engine_client=None,
        generator=made,
    )
    trains.dispatch = Dispatch()
    return trains


def stepped(of, given, uids, *, values=False):
    """The batch as the policy's workers get it, by SkyRL's own methods in the order of its `train`.

    With `values` there is a critic, which says 0.
    """
    return trained_on(of, asyncio.run(of.generate(given)), uids, values=values)


def trained_on(of, output, uids, *, values=False):
    """The same from what a generator made."""
    output, uids = of.postprocess_generator_output(output, uids)
    data = of.convert_to_training_input(output, uids)
    data["values"] = torch.zeros_like(data["rewards"]) if values else None
    return of.compute_advantages_and_returns(data)


def together(outputs):
    """One output of those of several groups, as SkyRL's asynchronous trainer makes it."""
    return concatenate_generator_outputs(list(outputs))


def gradients(of, data):
    """What SkyRL's loss says of the log-probability of each token: shape (B, T), as the batch has them."""
    data = of._normalize_advantages(data, data.metadata["policy_mini_batch_boundaries"])
    logps = torch.zeros_like(data["advantages"], requires_grad=True)
    loss_of = PolicyLossRegistry.get(of.cfg.trainer.algorithm.policy_loss_type)
    loss, _ = loss_of(logps, torch.zeros_like(logps), data["advantages"], of.cfg.trainer.algorithm, data["loss_mask"])
    loss.backward()
    return logps.grad


def by_rows(columns, lengths):
    """Rows without padding, which SkyRL has on the left, and without those that fill the batch up."""
    return [columns[row, columns.shape[1] - length :].tolist() for row, length in enumerate(lengths)]
