"""The contract of all adapters, held by loops written by hand and by SkyRL's generator."""

import asyncio

import pytest

from adapters.contract import (
    GROUP,
    HOLES,
    LABELS,
    LONGEST,
    PROMPTS,
    RAGGED,
    AdapterContract,
    Tokenizer,
    here,
    same,
    wanted,
)
from adapters.test_loop_credit import Threads
from adapters.test_skyrl import BatchMetadata, Generator, TrajectoryID, settings
from creditd.adapters.loop import LoopCredit
from creditd.adapters.skyrl import CreditGenerator


def loop(rollouts, config, processes=None):
    """A loop's credit."""
    return LoopCredit(rollouts.reward(), config, tokenizer=Tokenizer(), longest=LONGEST, processes=processes)


class TestLoop(AdapterContract):
    """`LoopCredit` with lists."""

    def advantages(self, tmp_path, rollouts, config):
        """What it returns."""
        del tmp_path
        found = loop(rollouts, config).advantages(
            PROMPTS, rollouts.ids, group_size=GROUP, completion_masks=rollouts.masks, columns={"label": LABELS}
        )
        return found.token_advantages


class TestSkyRL(AdapterContract):
    """`CreditGenerator` around a generator with SkyRL's documented output."""

    def advantages(self, tmp_path, rollouts, config):
        """The rewards of tokens, which `creditd` hands on."""
        del tmp_path
        generator = Generator(
            response_ids=rollouts.ids,
            prompt_token_ids=[[3, 5]] * len(PROMPTS),
            loss_masks=rollouts.masks,
            rewards=[0.0] * len(PROMPTS),
            stop_reasons=["stop"] * len(PROMPTS),
        )
        batch = {
            "prompts": PROMPTS,
            "env_classes": ["words"] * len(PROMPTS),
            "env_extras": [{"label": label} for label in LABELS],
            "trajectory_ids": [TrajectoryID(prompt, place) for place, prompt in enumerate(PROMPTS)],
            "batch_metadata": BatchMetadata(0, "train"),
        }
        made = CreditGenerator(generator, loop(rollouts, config), settings(), environment_weight=0.0)
        return asyncio.run(made.generate(batch))["rewards"]


@pytest.mark.parametrize("rollouts", [RAGGED, HOLES], ids=["ragged", "holes"])
def test_groups_that_are_split_over_processes_have_the_same(rollouts):
    """Three rows here and five there."""
    shares = [slice(0, 3), slice(3, 8)]

    def work(member):
        own = shares[member.rank]
        found = loop(rollouts, here(), member).advantages(
            PROMPTS[own],
            rollouts.ids[own],
            group_size=GROUP,
            completion_masks=rollouts.masks[own],
            columns={"label": LABELS[own]},
        )
        return found.token_advantages

    first, second = Threads(2).run(work)
    same([*first, *second], wanted(rollouts))
