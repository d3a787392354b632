"""The contract of all adapters, kept by that of OpenRLHF: through its experiences, its trainer and its maker."""

from dataclasses import dataclass

import pytest

pytest.importorskip("openrlhf", reason="the lane `trainer` installs OpenRLHF into an environment of its own")

from conventions.groups import OF_A_LIBRARY

pytestmark = OF_A_LIBRARY

import ray  # noqa: E402

from adapters import openrlhf_world as world  # noqa: E402
from adapters import tiny  # noqa: E402
from adapters.contract import GROUP, LABELS, PROMPTS, AdapterContract  # noqa: E402
from creditd.adapters.openrlhf_options import CreditChoices  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def ray_here():
    """OpenRLHF gathers what its models say by Ray."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
    yield
    ray.shutdown()


@dataclass(frozen=True)
class Given(CreditChoices):
    """Choices whose reward and configuration are there already, and have no names."""

    pair: tuple = ()

    def made(self):
        """Them."""
        return self.pair


class TestOpenRLHF(AdapterContract):
    """Micro-batches of two; groups of four are whole again when creditd is asked."""

    def advantages(self, tmp_path, rollouts, config):
        """What OpenRLHF's loss is given, from the first token of each completion to its last one."""
        del tmp_path
        return self._trained(rollouts, config)

    def split(self, tmp_path, rollouts, config):
        """The same of micro-batches of one, and of three, which have rows of both groups."""
        del tmp_path
        alone, mixed = (self._trained(rollouts, config, "--rollout.micro_batch_size", size) for size in ("1", "3"))
        assert alone == mixed
        return mixed

    def _trained(self, rollouts, config, *more):
        """A step of its trainer."""
        sizes = [
            "--rollout.n_samples_per_prompt",
            str(GROUP),
            "--train.batch_size",
            "8",
            "--rollout.max_new_tokens",
            "8",
        ]
        of_reward = world.SPANS if rollouts.is_judged else world.CANDIDATES
        choices, args = world.chosen(*of_reward, *world.LOCAL, *world.GROUPS, *sizes, *more)
        args.rollout.n_samples_per_prompt = GROUP
        given = Given(choices.reward, choices.of_reward, choices.of_config, pair=(rollouts.reward(), config))
        trainer = world.trainer_with(given, args)
        generator = world.generators.SamplesGenerator.__new__(world.generators.SamplesGenerator)
        batch = [
            world.sample(
                generator, tiny.tokenizer(), prompt, label, " ".join(words),
                holes=[place for place, own in enumerate(mask) if not own],
            )
            for prompt, label, words, mask in zip(PROMPTS, LABELS, rollouts.words, rollouts.masks, strict=True)
        ]  # fmt: skip
        trainer.train_step(batch, 0)
        return world.by_rows(trainer.seen)
